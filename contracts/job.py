"""Jobs: what the service does by the clock, and on demand."""

from typing import Annotated, Final, Literal, get_args

from pydantic import Field, Strict

from contracts.base import Command, Event, View
from contracts.types import Count, Id, Instant, LedgerId

CleanedTable = Literal["bot_logs", "ticks", "inbox", "simulations", "dead_letters", "published_events"]
CLEANED: Final[tuple[str, ...]] = get_args(CleanedTable)


class JobRequested(View):
    """A job that was asked for. It is run at once or, if that job runs already, next."""

    run_id: LedgerId
    job: str
    requested_at: Instant


class WarmCache(Command[JobRequested], name="warm_cache"):
    """Have the service cache the symbols of exchanges that have active accounts, or of one exchange.

    ``not_found`` if there is no such exchange.
    """

    cat_ex_id: Id | None = None
    """Only this catalog exchange, with active accounts or without."""


class RunCleanup(Command[JobRequested], name="run_cleanup"):
    """Have the service remove what is older than the retention of its table; `cleanup.completed` tells what it was.

    Orders and trades are never removed.
    """

    older_than_days: Annotated[int, Strict(), Field(ge=1, le=36_500)] | None = None
    """Instead of the retention that is set for each table. The inbox keeps its own."""


class CleanupView(View):
    """What was removed from a table."""

    table: CleanedTable
    rows: Count
    older_than_days: Count


class CleanupCompleted(Event[CleanupView], name="cleanup.completed", key=("table",)):
    """Old rows were removed, of which no other event tells. There is a change for each table that was looked at."""
