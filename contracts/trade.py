"""Trades: what was really bought and sold."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from contracts.base import Command, Event, Lookup, Part, View
from contracts.topology import Lane
from contracts.types import STORABLE, Amount, Cursor, ExactDecimal, Flag, Id, Instant, LedgerId, Limit, Positive, Side
from contracts.user import UserView

ExchangeTradeId = Annotated[str, Field(min_length=1, max_length=64), STORABLE]


class TradeView(View):
    """An execution on an exchange."""

    trade_id: LedgerId
    ex_trade_id: str | None
    order_id: LedgerId | None
    ex_order_id: str | None
    bot_id: Id | None
    uid: Id
    ex_id: Id
    symbol_id: Id
    side: Side
    size: ExactDecimal
    """In units of the base currency."""
    price: ExactDecimal
    """Quote currency per unit of base currency."""
    cost: ExactDecimal
    """Size times price."""
    fee: ExactDecimal
    fee_currency: str | None
    leverage: ExactDecimal
    roi: ExactDecimal | None
    roi_pct: ExactDecimal | None
    timestamp: Instant
    """When it was executed."""
    row_version: int


class ExecutionFields(Part):
    """What one says of an execution, real or simulated."""

    bot_id: Id
    uid: Id
    ex_id: Id
    symbol_id: Id
    side: Side
    size: Positive
    price: Positive
    fee: Amount | None = None
    fee_currency: Annotated[str, Field(min_length=1, max_length=20), STORABLE] | None = None
    leverage: Positive | None = None
    roi: Amount | None = None
    roi_pct: Amount | None = None
    timestamp: Instant | None = None
    """When it was executed; the time of storing if left out."""


class TradeFields(ExecutionFields):
    """What one says of an execution on an exchange."""

    ex_trade_id: ExchangeTradeId | None = None
    order_id: LedgerId | None = None
    ex_order_id: Annotated[str, Field(min_length=1, max_length=64), STORABLE] | None = None


class RecordTrade(TradeFields, Command[TradeView], name="record_trade", lane=Lane.TRADING):
    """Put an execution on record, once.

    With ``ex_trade_id`` the pair (``ex_id``, ``ex_trade_id``) is unique for ever: the same trade again is answered
    with the stored one (``meta.duplicate``) and announced no second time, with other content it is a ``conflict``.
    Bot, account and user must belong together and the symbol to the account's exchange (``forbidden``).
    """


class TradeFailure(View):
    """A trade of a list that was refused, and why."""

    index: int
    """Its place in the list, from 0."""
    ex_trade_id: str | None
    code: str
    message: str
    field: str | None


class TradesRecorded(View):
    """What became of a list of trades."""

    inserted: int
    duplicates: int
    """On record before with the same content."""
    failures: list[TradeFailure]


class RecordTrades(Command[TradesRecorded], name="record_trades", lane=Lane.TRADING):
    """Put many executions on record as ``record_trade`` does; one that is refused does not hold up the others."""

    trades: Annotated[list[TradeFields], Field(min_length=1, max_length=1_000)]


class DryTradeView(View):
    """An execution that a bot only simulated."""

    dry_trade_id: LedgerId
    bot_id: Id
    uid: Id
    ex_id: Id
    symbol_id: Id
    side: Side
    size: ExactDecimal
    """In units of the base currency."""
    price: ExactDecimal
    """Quote currency per unit of base currency."""
    cost: ExactDecimal
    """Size times price."""
    fee: ExactDecimal
    fee_currency: str | None
    leverage: ExactDecimal
    roi: ExactDecimal | None
    """What the trade gained, in quote currency; the sum of it is the bot's dry margin."""
    roi_pct: ExactDecimal | None
    closing: bool
    """Whether it closed a position."""
    reason: str | None
    timestamp: Instant
    """When it would have been executed."""
    row_version: int


class RecordDryTrade(ExecutionFields, Command[DryTradeView], name="record_dry_trade", lane=Lane.TRADING):
    """Put a simulated execution on record.

    Bot, account and user must belong together and the symbol to the account's exchange (``forbidden``).
    """

    closing: Flag = False
    reason: Annotated[str, Field(max_length=255), STORABLE] | None = None


class ClearedDryTrades(View):
    """The dry trades of a bot up to ``last_dry_trade_id`` are gone."""

    bot_id: Id
    ex_id: Id | None = None
    """Only those on this account, which is gone; null for all of the bot's."""
    last_dry_trade_id: LedgerId
    count: int


class DeleteDryTrades(Command[int], name="delete_dry_trades", lane=Lane.TRADING):
    """Forget all dry trades of a bot; answered with how many there were."""

    bot_id: Id


class Pagination(View):
    """Where a page stands in the whole list."""

    page: int
    page_size: int
    total: int
    pages: int


class TradesPage(View):
    """One page of trades, newest first."""

    trades: list[TradeView]
    pagination: Pagination
    next_cursor: str | None
    """Give it as ``cursor`` to get what follows, also while trades are added; null once a page is not full."""


class TradesSlice(View):
    """Some trades, newest first."""

    trades: list[TradeView]
    next_cursor: str | None
    """Give it as ``cursor`` to get what follows; null once a page is not full."""


class DryTradesSlice(View):
    """Some dry trades, newest first."""

    dry_trades: list[DryTradeView]
    next_cursor: str | None
    """Give it as ``cursor`` to get what follows; null once a page is not full."""


class TradingStats(View):
    """What a user's trades add up to. Volumes are in quote currency."""

    total_trades: int
    total_volume: ExactDecimal
    average_price: ExactDecimal
    """Plain mean of the prices, every trade counting the same."""
    vwap: ExactDecimal
    """Volume-weighted mean: total volume divided by total size."""
    buy_volume: ExactDecimal
    sell_volume: ExactDecimal
    net_volume: ExactDecimal


class GetTradesPaginated(Lookup[TradesPage], name="get_trades_paginated"):
    """A user's trades by page, newest first.

    A page deep in the list is found by counting, and moves while trades are added; a cursor does neither.
    """

    uid: Id
    page: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 1
    page_size: Limit = 100
    cursor: Cursor | None = None
    """Go on from here instead of counting pages; ``page`` is left out then."""

    @model_validator(mode="after")
    def _is_at_one_place(self) -> Self:
        if self.cursor is not None and self.page != 1:
            raise ValueError("page and cursor exclude each other")
        return self


class GetTrade(Lookup[TradeView | None], name="get_trade"):
    """A trade by id; null if there is none."""

    trade_id: LedgerId


class GetLiveTrades(Lookup[TradesSlice], name="get_live_trades"):
    """A user's trades, newest first, narrowed down by what is named."""

    uid: Id
    symbol_id: Id | None = None
    bot_id: Id | None = None
    ex_id: Id | None = None
    start_date: Instant | None = None
    """Not before this moment."""
    end_date: Instant | None = None
    """Before this moment."""
    limit: Limit = 100
    cursor: Cursor | None = None


class GetTradesByUser(Lookup[TradesSlice], name="get_trades_by_user"):
    """A user's trades, newest first."""

    uid: Id
    limit: Limit = 100
    cursor: Cursor | None = None


class GetLastTrade(Lookup[TradeView | None], name="get_last_trade"):
    """The newest trade on an account, where a poller goes on from; null if it has none."""

    ex_id: Id


class GetDryTrades(Lookup[DryTradesSlice], name="get_dry_trades"):
    """A bot's dry trades, newest first, narrowed down by what is named."""

    bot_id: Id
    symbol_id: Id | None = None
    ex_id: Id | None = None
    limit: Limit = 100
    cursor: Cursor | None = None


class GetLastDryTrade(Lookup[DryTradeView | None], name="get_last_dry_trade"):
    """A bot's newest dry trade, of a symbol and an account where they are named; null if it has none."""

    bot_id: Id
    symbol_id: Id | None = None
    ex_id: Id | None = None


class BotTradeStats(TradingStats):
    """What a bot's trades of some days add up to."""

    roi: ExactDecimal
    """The sum over the trades that say theirs."""
    winning_trades: int
    losing_trades: int
    win_rate: float | None
    """Winning trades as a part of those won or lost; null if there are none."""


class GetTradeStats(Lookup[BotTradeStats], name="get_trade_stats"):
    """Totals over the trades of a bot in the last ``days``; zeros if there are none."""

    bot_id: Id
    days: Annotated[int, Field(strict=True, ge=1, le=3_650)] = 30
    dry: Flag = False
    """Its dry trades instead of its real ones."""


class UserTradingSummary(View):
    """A user with what bots and trades add up to. Volumes are in quote currency."""

    user: UserView
    total_bots: int
    active_bots: int
    total_trades: int
    total_volume: ExactDecimal
    """Over all trades."""
    recent_trades_count: int
    """The newest trades, at most 100."""
    recent_volume: ExactDecimal
    """Over these."""
    generated_at: Instant


class GetUserTradingSummary(Lookup[UserTradingSummary | None], name="get_user_trading_summary"):
    """A user's trading at a glance, as it was at ``generated_at``; null if there is no such user.

    Kept for an hour. A new trade does not drop it: it would be dropped all the time.
    """

    uid: Id


class SymbolPriceStats(View):
    """Prices that a symbol was traded at."""

    symbol_id: Id
    trades: int
    median_price: float
    price_volatility: float | None
    """Standard deviation; null for a single trade."""


class GetSymbolPriceStats(Lookup[list[SymbolPriceStats]], name="get_symbol_price_stats"):
    """Median and deviation of the prices of each symbol traded since ``start_date``, by symbol id."""

    start_date: Instant
    symbol_id: Id | None = None


class GetUserTradingStats(Lookup[TradingStats], name="get_user_trading_stats"):
    """Totals over all trades of a user; zeros if there are none."""

    uid: Id


class TradeRecorded(Event[TradeView], name="trade.recorded", key=("trade_id",)):
    """Trades were put on record, or (with an image before) linked with their order."""


class TradeUpdated(Event[TradeView], name="trade.updated", key=("trade_id",)):
    """What is computed about trades changed: their roi."""


class TradeDeleted(Event[TradeView], name="trade.deleted", key=("trade_id",)):
    """Trades that were put on record by hand were taken back."""


class DryTradeRecorded(Event[DryTradeView], name="dry_trade.recorded", key=("dry_trade_id",)):
    """Dry trades were put on record."""


class DryTradeCleared(Event[ClearedDryTrades], name="dry_trade.cleared", key=("bot_id", "last_dry_trade_id")):
    """The dry trades of a bot are gone; ``before`` says up to which one."""
