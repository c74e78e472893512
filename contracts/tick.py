"""Ticks: prices that were seen, sampled. The stream itself is not for a database."""

from typing import Annotated

from pydantic import Field

from contracts.base import Command, Lookup, Part, View
from contracts.types import Cursor, ExactDecimal, Id, Instant, Limit, NonNegative, Positive


class TickFields(Part):
    """What was seen of a symbol at one moment."""

    symbol_id: Id
    price: Positive
    volume: NonNegative | None = None
    bid: Positive | None = None
    ask: Positive | None = None
    last: Positive | None = None
    timestamp: Instant


class TicksRecorded(View):
    """What became of a list of ticks."""

    inserted: int
    duplicates: int
    """Of a symbol and a moment that has a tick already; it stays as it is."""


class RecordTicks(Command[TicksRecorded], name="record_ticks"):
    """Store ticks; the first one of a symbol and a moment stays. All or none: ``not_found`` names the symbol."""

    ticks: Annotated[list[TickFields], Field(min_length=1, max_length=2_000)]


class TickView(View):
    """What was seen of a symbol at one moment."""

    symbol_id: Id
    price: ExactDecimal
    volume: ExactDecimal | None
    bid: ExactDecimal | None
    ask: ExactDecimal | None
    last: ExactDecimal | None
    timestamp: Instant


class TicksPage(View):
    """Some ticks, newest first."""

    ticks: list[TickView]
    next_cursor: str | None
    """Give it as ``cursor`` to get what follows; null once a page is not full."""


class GetTicks(Lookup[TicksPage], name="get_ticks"):
    """The ticks of a symbol, newest first."""

    symbol_id: Id
    start_date: Instant | None = None
    """Not before this moment."""
    end_date: Instant | None = None
    """Before this moment."""
    limit: Limit = 100
    cursor: Cursor | None = None
