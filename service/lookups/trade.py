"""Lookups of trades and what they add up to."""

from contracts.trade import GetTradesPaginated, GetUserTradingStats, Pagination, TradesPage, TradeView, TradingStats
from service.registry import LookupTable
from service.unit_of_work import UnitOfWork

lookups = LookupTable()


@lookups.answers(GetTradesPaginated)
async def get_trades_paginated(lookup: GetTradesPaginated, reads: UnitOfWork) -> TradesPage:
    page = await reads.trades.get_trades_paginated(lookup.uid, lookup.page, lookup.page_size)
    return TradesPage(
        trades=[TradeView.model_validate(trade) for trade in page.trades],
        pagination=Pagination(page=page.page, page_size=page.page_size, total=page.total, pages=page.pages),
    )


@lookups.answers(GetUserTradingStats)
async def get_user_trading_stats(lookup: GetUserTradingStats, reads: UnitOfWork) -> TradingStats:
    return TradingStats.model_validate(await reads.trades.get_user_trading_stats(lookup.uid))
