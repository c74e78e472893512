"""Lookups of what users have on exchanges."""

from contracts.account import (
    BalanceView,
    ExchangeHistoryPage,
    ExchangeHistoryView,
    GetBalances,
    GetExchangeHistory,
    GetPositions,
    PositionView,
)
from service.cursor import next_after
from service.registry import LookupTable
from service.unit_of_work import UnitOfWork

lookups = LookupTable()


@lookups.answers(GetBalances)
async def get_balances(lookup: GetBalances, reads: UnitOfWork) -> list[BalanceView]:
    balances = await reads.accounts.get_balances(lookup.ex_id, lookup.currency)
    return [BalanceView.model_validate(balance) for balance in balances]


@lookups.answers(GetPositions)
async def get_positions(lookup: GetPositions, reads: UnitOfWork) -> list[PositionView]:
    positions = await reads.accounts.get_positions(lookup.ex_id, lookup.symbol_id)
    return [PositionView.model_validate(position) for position in positions]


@lookups.answers(GetExchangeHistory)
async def get_exchange_history(lookup: GetExchangeHistory, reads: UnitOfWork) -> ExchangeHistoryPage:
    history = await reads.accounts.get_exchange_history(**lookup.model_dump())
    return ExchangeHistoryPage(
        history=[ExchangeHistoryView.model_validate(entry) for entry in history],
        next_cursor=next_after(history, lookup.limit, "timestamp", "history_id"),
    )
