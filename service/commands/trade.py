"""Commands about trades, real and simulated."""

from collections.abc import Mapping, Sequence

from contracts.errors import Refusal
from contracts.trade import (
    DeleteDryTrades,
    DryTradeView,
    RecordDryTrade,
    RecordTrade,
    RecordTrades,
    TradeFailure,
    TradesRecorded,
    TradeView,
)
from service.inbox import Sent
from service.registry import CommandTable, Existing
from service.unit_of_work import UnitOfWork

handlers = CommandTable()


@handlers.handles(RecordTrade)
async def record_trade(command: RecordTrade, work: UnitOfWork) -> TradeView | Existing[TradeView]:
    trade, is_new = await work.trades.record_trade(command.model_dump(exclude_none=True))
    view = TradeView.model_validate(trade)
    return view if is_new else Existing(view)


async def recall_trade(trade_id: int, work: UnitOfWork) -> TradeView | None:
    trade = await work.trades.get_by_id(trade_id)
    return None if trade is None else TradeView.model_validate(trade)


@handlers.handles_many(RecordTrade, recall=recall_trade)
async def record_new_trades(commands: Sequence[RecordTrade], sent: Sent, work: UnitOfWork) -> Mapping[int, int]:
    return await work.trades.record_new(commands, sent)


@handlers.handles(RecordTrades)
async def record_trades(command: RecordTrades, work: UnitOfWork) -> TradesRecorded:
    outcomes = await work.trades.record_trades([trade.model_dump(exclude_none=True) for trade in command.trades])
    stored = [is_new for _, is_new in (outcome for outcome in outcomes if not isinstance(outcome, Refusal))]
    return TradesRecorded(
        inserted=sum(stored),
        duplicates=len(stored) - sum(stored),
        failures=[
            TradeFailure(
                index=index,
                ex_trade_id=command.trades[index].ex_trade_id,
                code=outcome.code,
                message=outcome.message,
                field=outcome.field,
            )
            for index, outcome in enumerate(outcomes)
            if isinstance(outcome, Refusal)
        ],
    )


@handlers.handles(RecordDryTrade)
async def record_dry_trade(command: RecordDryTrade, work: UnitOfWork) -> DryTradeView:
    return DryTradeView.model_validate(await work.trades.save_dry_trade(command.model_dump(exclude_none=True)))


async def recall_dry_trade(dry_trade_id: int, work: UnitOfWork) -> DryTradeView | None:
    dry_trade = await work.trades.get_dry_trade(dry_trade_id)
    return None if dry_trade is None else DryTradeView.model_validate(dry_trade)


@handlers.handles_many(RecordDryTrade, recall=recall_dry_trade)
async def record_new_dry_trades(
    commands: Sequence[RecordDryTrade], sent: Sent, work: UnitOfWork
) -> Mapping[int, int]:
    return await work.trades.record_new_dry(commands, sent)


@handlers.handles(DeleteDryTrades)
async def delete_dry_trades(command: DeleteDryTrades, work: UnitOfWork) -> int:
    return await work.trades.delete_dry_trades(command.bot_id)
