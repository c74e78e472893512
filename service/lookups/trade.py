"""Lookups of trades, real and simulated, and what they add up to."""

from contracts import cache_keys
from contracts.trade import (
    BotTradeStats,
    DryTradesSlice,
    DryTradeView,
    GetDryTrades,
    GetLastDryTrade,
    GetLastTrade,
    GetLiveTrades,
    GetSymbolPriceStats,
    GetTrade,
    GetTradesByUser,
    GetTradesPaginated,
    GetTradeStats,
    GetUserTradingStats,
    GetUserTradingSummary,
    Pagination,
    SymbolPriceStats,
    TradesPage,
    TradesSlice,
    TradeView,
    TradingStats,
    UserTradingSummary,
)
from service.cursor import next_after
from service.models import Trade
from service.registry import LookupTable
from service.unit_of_work import UnitOfWork

lookups = LookupTable()


@lookups.answers(GetTradesPaginated)
async def get_trades_paginated(lookup: GetTradesPaginated, reads: UnitOfWork) -> TradesPage:
    page = await reads.trades.get_trades_paginated(lookup.uid, lookup.page, lookup.page_size, cursor=lookup.cursor)
    return TradesPage(
        trades=[TradeView.model_validate(trade) for trade in page.trades],
        pagination=Pagination(page=page.page, page_size=page.page_size, total=page.total, pages=page.pages),
        next_cursor=next_after(page.trades, lookup.page_size, "timestamp", "trade_id"),
    )


@lookups.answers(GetTrade)
async def get_trade(lookup: GetTrade, reads: UnitOfWork) -> TradeView | None:
    return _view(await reads.trades.get_by_id(lookup.trade_id))


@lookups.answers(GetLiveTrades)
async def get_live_trades(lookup: GetLiveTrades, reads: UnitOfWork) -> TradesSlice:
    trades = await reads.trades.get_live_trades(lookup.uid, **lookup.model_dump(exclude={"uid"}))
    return _slice(trades, lookup.limit)


@lookups.answers(GetTradesByUser)
async def get_trades_by_user(lookup: GetTradesByUser, reads: UnitOfWork) -> TradesSlice:
    return _slice(await reads.trades.get_trades_by_user(**lookup.model_dump()), lookup.limit)


@lookups.answers(GetLastTrade)
async def get_last_trade(lookup: GetLastTrade, reads: UnitOfWork) -> TradeView | None:
    return _view(await reads.trades.get_last_trade(lookup.ex_id))


@lookups.answers(GetDryTrades)
async def get_dry_trades(lookup: GetDryTrades, reads: UnitOfWork) -> DryTradesSlice:
    dry_trades = await reads.trades.get_dry_trades(**lookup.model_dump())
    return DryTradesSlice(
        dry_trades=[DryTradeView.model_validate(dry_trade) for dry_trade in dry_trades],
        next_cursor=next_after(dry_trades, lookup.limit, "timestamp", "dry_trade_id"),
    )


@lookups.answers(GetLastDryTrade)
async def get_last_dry_trade(lookup: GetLastDryTrade, reads: UnitOfWork) -> DryTradeView | None:
    dry_trade = await reads.trades.get_last_dry_trade(**lookup.model_dump())
    return None if dry_trade is None else DryTradeView.model_validate(dry_trade)


@lookups.answers(GetUserTradingStats)
async def get_user_trading_stats(lookup: GetUserTradingStats, reads: UnitOfWork) -> TradingStats:
    return TradingStats.model_validate(await reads.trades.get_user_trading_stats(lookup.uid))


@lookups.answers(GetTradeStats)
async def get_trade_stats(lookup: GetTradeStats, reads: UnitOfWork) -> BotTradeStats:
    return BotTradeStats.model_validate(await reads.trades.get_trade_stats(**lookup.model_dump()))


# No event of trades names this key: it would be dropped with every trade, and never be a hit.
@lookups.answers(GetUserTradingSummary, cached_under=lambda lookup: cache_keys.trading_summary(lookup.uid))
async def get_user_trading_summary(lookup: GetUserTradingSummary, reads: UnitOfWork) -> UserTradingSummary | None:
    summary = await reads.trades.get_user_trading_summary(lookup.uid)
    return None if summary is None else UserTradingSummary.model_validate(summary)


@lookups.answers(GetSymbolPriceStats)
async def get_symbol_price_stats(lookup: GetSymbolPriceStats, reads: UnitOfWork) -> list[SymbolPriceStats]:
    stats = await reads.trades.get_symbol_price_stats(lookup.start_date, lookup.symbol_id)
    return [SymbolPriceStats.model_validate(row) for row in stats]


def _view(trade: Trade | None) -> TradeView | None:
    return None if trade is None else TradeView.model_validate(trade)


def _slice(trades: list[Trade], limit: int) -> TradesSlice:
    return TradesSlice(
        trades=[TradeView.model_validate(trade) for trade in trades],
        next_cursor=next_after(trades, limit, "timestamp", "trade_id"),
    )
