"""Refused commands, as the service announces them."""

from contracts.base import Event, View
from contracts.errors import ErrorCode
from contracts.types import Instant


class RejectionView(View):
    """A command that was not carried out, and why; its body stays in the service's dead letters."""

    dead_letter_id: int
    message_id: str | None
    command: str
    code: ErrorCode
    field: str | None
    reason: str
    user_id: str | None
    app_id: str | None
    received_at: Instant


class CommandRejected(Event[RejectionView], name="command.rejected", key=("dead_letter_id",)):
    """A command was refused and put among the dead letters."""
