"""Commands about trades."""

from collections.abc import Mapping, Sequence
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


async def recall_trade(trade_id: int, work: UnitOfWork) -> TradeView:
    return TradeView.model_validate(await work.trades.get_by_id(trade_id))


@handlers.handles_many(RecordTrade, recall=recall_trade)
async def record_trades(
    commands: Sequence[RecordTrade], causes: Sequence[UUID], work: UnitOfWork
) -> Mapping[int, int]:
    return await work.trades.record_new(commands, causes)
