"""Senders that number what they send, so that a command that never arrived is missed."""

from typing import Final

from contracts.base import Event, View
from contracts.types import Instant

PRODUCER_HEADER: Final = "producer"
"""Who counts: a UUID, such as that of a spool."""
SEQUENCE_HEADER: Final = "producer_sequence"
"""The number of the command among all that this producer ever sent, from 1 on and without a gap."""


class MissingView(View):
    """Numbers of a producer that did not arrive, though later ones did."""

    producer: str
    first: int
    last: int
    next_received_at: Instant
    """When the command after them arrived."""


class CommandsMissing(Event[MissingView], name="producer.gap_found", key=("producer", "first")):
    """Commands have been missing for 30 s: purged from a queue, dropped for want of room, or never handed over."""
