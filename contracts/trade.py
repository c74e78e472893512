"""Trades: what was really bought and sold."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from contracts.base import Command, Event, Lookup, View
from contracts.topology import Lane
from contracts.types import Amount, ExactDecimal, Id, Instant, LedgerId, Positive, Side, Text


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


class RecordTrade(Command[TradeView], name="record_trade", lane=Lane.TRADING):
    """Put an execution on record, once.

    With ``ex_trade_id`` the pair (``ex_id``, ``ex_trade_id``) is unique for ever: the same trade again is answered
    with the stored one (``meta.duplicate``) and announced no second time, with other content it is a ``conflict``.
    Bot, account and user must belong together and the symbol to the account's exchange (``forbidden``).
    """

    bot_id: Id
    uid: Id
    ex_id: Id
    symbol_id: Id
    side: Side
    size: Positive
    price: Positive
    ex_trade_id: Annotated[Text, Field(min_length=1, max_length=64)] | None = None
    order_id: LedgerId | None = None
    ex_order_id: Annotated[Text, Field(min_length=1, max_length=64)] | None = None
    fee: Amount | None = None
    fee_currency: Annotated[Text, Field(min_length=1, max_length=20)] | None = None
    leverage: Positive | None = None
    roi: Amount | None = None
    roi_pct: Amount | None = None
    timestamp: Instant | None = None
    """When it was executed; the time of storing if left out."""


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
    """A user's trades by page, newest first."""

    uid: Id
    page: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 1
    page_size: Annotated[int, Field(strict=True, ge=1, le=1_000)] = 100


class GetUserTradingStats(Lookup[TradingStats], name="get_user_trading_stats"):
    """Totals over all trades of a user; zeros if there are none."""

    uid: Id


class TradeRecorded(Event[TradeView], name="trade.recorded", key=("trade_id",)):
    """Trades were put on record."""

    @classmethod
    def keys_of(cls, image: TradeView) -> Iterable[str]:  # noqa: ARG003 - the trading summary lives by its TTL alone
        return ()
