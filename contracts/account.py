"""Accounts: what a user has on an exchange, and how that came to be."""

from decimal import Decimal
from typing import Annotated, Self

from pydantic import Field, model_validator

from contracts.base import Command, Event, Lookup, Part, View
from contracts.topology import Lane
from contracts.types import (
    STORABLE,
    Amount,
    Count,
    Cursor,
    ExactDecimal,
    Id,
    Instant,
    LedgerId,
    Limit,
    NonNegative,
    PositionSide,
)

AssetCode = Annotated[str, Field(min_length=1, max_length=20), STORABLE]


class BalanceView(View):
    """How much of a currency an account has."""

    ex_id: Id
    currency: str
    free: ExactDecimal
    used: ExactDecimal
    """Held by open orders."""
    total: ExactDecimal
    timestamp: Instant
    """When the exchange said so."""
    row_version: int


class PositionView(View):
    """What an account holds of a symbol."""

    ex_id: Id
    symbol_id: Id
    bot_id: Id | None
    side: PositionSide
    volume: ExactDecimal
    """In units of the base currency; negative for a short position."""
    price: ExactDecimal
    """The average price it was entered at."""
    cost: ExactDecimal
    fee: ExactDecimal
    realized_pnl: ExactDecimal
    count: int
    """How many trades made it."""
    timestamp: Instant
    """When it was so."""
    row_version: int


class ExchangeHistoryView(View):
    """A change of how much of a currency an account has."""

    history_id: LedgerId
    ex_id: Id
    uid: Id
    currency: str
    balance: ExactDecimal
    """The total after the change."""
    change: ExactDecimal | None
    """Null for the first one."""
    comment: str | None
    timestamp: Instant


class SnapshotTaken(View):
    """What became of a snapshot."""

    updated: int
    """Rows that are new or newer than those stored."""
    outdated: int
    """Rows left alone, because what is stored is as new or newer."""


class BalanceFields(Part):
    """What an exchange says of one currency."""

    currency: AssetCode
    free: Amount
    used: Amount
    total: Amount | None = None
    """Free and used together if left out."""


class UpsertBalances(Command[SnapshotTaken], name="upsert_balances", lane=Lane.TRADING):
    """Store what an account has, as an exchange said at one moment; the newest snapshot wins.

    A total that changed is noted in the account's history. Currencies that are not named stay as they are.
    ``forbidden`` if ``uid`` is given and the account is another user's.
    """

    ex_id: Id
    uid: Id | None = None
    balances: Annotated[list[BalanceFields], Field(min_length=1, max_length=1_000)]
    timestamp: Instant
    comment: Annotated[str, Field(max_length=1_000), STORABLE] | None = None
    """Why it changed, for the history."""

    @model_validator(mode="after")
    def _names_each_once(self) -> Self:
        if len({balance.currency for balance in self.balances}) < len(self.balances):
            raise ValueError("balances name a currency twice")
        return self


class PositionFields(Part):
    """What an account holds of one symbol."""

    symbol_id: Id
    volume: Amount
    """Negative for a short position, zero for none."""
    side: PositionSide | None = None
    """Long, short or flat; what the volume says if left out."""
    price: NonNegative = Decimal(0)
    cost: Amount = Decimal(0)
    fee: Amount = Decimal(0)
    realized_pnl: Amount = Decimal(0)
    count: Count = 0
    bot_id: Id | None = None

    @property
    def says(self) -> PositionSide:
        """The side that the volume amounts to."""
        if self.volume == 0:
            return "flat"
        return "long" if self.volume > 0 else "short"

    @model_validator(mode="after")
    def _is_on_the_side_of_its_volume(self) -> Self:
        if self.side not in (None, self.says):
            raise ValueError(f"a volume of {self.volume:f} is {self.says}")
        return self


class UpsertPositions(Command[SnapshotTaken], name="upsert_positions", lane=Lane.TRADING):
    """Store what an account holds, as it was at one moment; the newest snapshot wins.

    Symbols that are not named stay as they are. ``forbidden`` if a bot or the account is another user's or a symbol
    is not listed on the account's exchange.
    """

    ex_id: Id
    uid: Id | None = None
    positions: Annotated[list[PositionFields], Field(min_length=1, max_length=1_000)]
    timestamp: Instant

    @model_validator(mode="after")
    def _names_each_once(self) -> Self:
        if len({position.symbol_id for position in self.positions}) < len(self.positions):
            raise ValueError("positions name a symbol twice")
        return self


class GetBalances(Lookup[list[BalanceView]], name="get_balances"):
    """What an account has, by currency; empty if nothing is known."""

    ex_id: Id
    currency: AssetCode | None = None


class GetPositions(Lookup[list[PositionView]], name="get_positions"):
    """What an account holds, by symbol id; empty if nothing is known."""

    ex_id: Id
    symbol_id: Id | None = None


class ExchangeHistoryPage(View):
    """Some of an account's history, newest first."""

    history: list[ExchangeHistoryView]
    next_cursor: str | None
    """Give it as ``cursor`` to get what follows; null once a page is not full."""


class GetExchangeHistory(Lookup[ExchangeHistoryPage], name="get_exchange_history"):
    """How an account's totals changed, newest first."""

    ex_id: Id
    currency: AssetCode | None = None
    start_date: Instant | None = None
    """Not before this moment."""
    end_date: Instant | None = None
    """Before this moment."""
    limit: Limit = 100
    cursor: Cursor | None = None


class BalanceUpdated(Event[BalanceView], name="balance.updated", key=("ex_id", "currency")):
    """Newer balances of accounts are known; where a total differs, the account's history tells it too."""


class PositionUpdated(Event[PositionView], name="position.updated", key=("ex_id", "symbol_id")):
    """Newer positions of accounts are known."""
