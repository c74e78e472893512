"""Commands about trades."""

from collections.abc import Collection, Sequence
from uuid import UUID

from contracts.trade import RecordTrade, TradeView
from service.registry import CommandTable, Existing
from service.unit_of_work import UnitOfWork

handlers = CommandTable()


@handlers.handles(RecordTrade)
async def record_trade(command: RecordTrade, work: UnitOfWork) -> TradeView | Existing[TradeView]:
    trade, is_new = await work.trades.record_trade(command.model_dump(exclude_none=True))
    view = TradeView.model_validate(trade)
    return view if is_new else Existing(view)


@handlers.handles_many(RecordTrade)
async def record_trades(commands: Sequence[RecordTrade], causes: Sequence[UUID], work: UnitOfWork) -> Collection[int]:
    return await work.trades.record_new(commands, causes)
