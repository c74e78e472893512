"""The baseline: FastStream and SQLAlchemy the way the manual and their documentation show, with our guarantees.

One handler call, one session and one commit per message; the same rows in inbox, table and outbox.
``python -m tests.benchmarks.manual_pattern`` runs until it is ended; with ``--faststream-outbox`` it announces trades
in the outbox of that package instead of ours.
"""

import json
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import uvloop
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitMessage, RabbitQueue
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from contracts import (
    BotLogRef,
    BotLogSaved,
    OrderStatusChanged,
    OrderView,
    RecordTrade,
    SaveBotLog,
    TradeRecorded,
    TradeView,
    UpdateOrderStatus,
)
from contracts.topology import Lane
from service.config import Settings
from service.engine import build_engine
from service.inbox import payload_hash
from service.models import BotLog, Exchange, InboxMessage, Order, Trade
from service.outbox import record

_PREFETCH = 20

Handler = Callable[[dict[str, Any], RabbitMessage], Awaitable[None]]


def build(settings: Settings, *, with_faststream_outbox: bool = False) -> FastStream:
    """The application: a subscriber for each lane the benchmarks use."""
    broker = RabbitBroker(settings.rabbitmq_url.get_secret_value(), logger=None)
    engine = build_engine(settings)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    announce = _announced_with(engine) if with_faststream_outbox else _announce

    def subscriber(lane: Lane) -> Callable[[Handler], Handler]:
        register: Callable[[Handler], Handler] = broker.subscriber(
            RabbitQueue(lane.queue, declare=False),
            channel=Channel(prefetch_count=_PREFETCH),
            ack_policy=AckPolicy.REJECT_ON_ERROR,
        )
        return register

    @subscriber(Lane.TRADING)
    async def trading(body: dict[str, Any], message: RabbitMessage) -> None:
        async with sessions() as session, session.begin():
            if await is_new(session, message.message_id, message.raw_message.routing_key or "", message.body):
                if message.raw_message.routing_key == RecordTrade.wire_name:
                    await announce(session, await record_trade(session, RecordTrade.model_validate(body)))
                else:
                    await _update_order(session, UpdateOrderStatus.model_validate(body))

    @subscriber(Lane.BOT_LOGS)
    async def bot_logs(body: dict[str, Any], message: RabbitMessage) -> None:
        async with sessions() as session, session.begin():
            if await is_new(session, message.message_id, message.raw_message.routing_key or "", message.body):
                entry = BotLog(**SaveBotLog.model_validate(body).model_dump(exclude_none=True))
                session.add(entry)
                await session.flush()
                record(session, BotLogSaved, after=BotLogRef.model_validate(entry))

    return FastStream(broker, logger=None)


async def is_new(session: AsyncSession, message_id: str, command: str, body: bytes) -> bool:
    return (
        await session.scalar(
            insert(InboxMessage)
            .values(message_id=UUID(message_id), command=command, payload_hash=payload_hash(command, body))
            .on_conflict_do_nothing()
            .returning(InboxMessage.message_id)
        )
    ) is not None


async def record_trade(session: AsyncSession, command: RecordTrade) -> TradeView:
    account = await session.get_one(Exchange, command.ex_id)
    values = command.model_dump(exclude_none=True)
    trade = Trade(**values, cat_ex_id=account.cat_ex_id, cost=command.size * command.price, fee=Decimal(0))
    trade.timestamp = command.timestamp or datetime.now(UTC)
    session.add(trade)
    await session.flush()
    return TradeView.model_validate(trade)


async def _announce(session: AsyncSession, trade: TradeView) -> None:
    record(session, TradeRecorded, after=trade)


def _announced_with(engine: AsyncEngine) -> Callable[[AsyncSession, TradeView], Awaitable[None]]:
    from tests.benchmarks.outbox_pattern import Outbox  # noqa: PLC0415 - only who measures that package needs it

    outbox = Outbox(engine)

    async def announce(session: AsyncSession, trade: TradeView) -> None:
        change = {"key": {"trade_id": trade.trade_id}, "after": trade.model_dump(mode="json")}
        await outbox.add(session, json.dumps({"type": TradeRecorded.wire_name, "changes": [change]}))

    return announce


async def _update_order(session: AsyncSession, command: UpdateOrderStatus) -> None:
    order = await session.get_one(Order, command.order_id, with_for_update=True)
    before = OrderView.model_validate(order)
    order.status = command.status
    await session.flush()
    record(session, OrderStatusChanged, before=before, after=OrderView.model_validate(order))


if __name__ == "__main__":
    uvloop.run(build(Settings.read(), with_faststream_outbox="--faststream-outbox" in sys.argv).run())
