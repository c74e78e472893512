"""How fast what was committed reaches subscribers: the relays by themselves, and all the way from a publisher."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from sqlalchemy.ext.asyncio import AsyncSession

from contracts import RecordTrade, TradeView
from contracts.topology import EVENTS
from deploy.servers import Servers
from service.engine import build_engine
from tests.benchmarks.stage import Stage, a_channel, a_process, a_stage, publish, trades
from tests.benchmarks.talk import a_service

_SECONDS = 600

# Events of $3 trades each, as our outbox holds them.
_FILL = """
INSERT INTO outbox (type, causation_ids, changes, stale_keys)
SELECT 'trade.recorded', array_agg(gen_random_uuid()),
    '[' || string_agg(replace($1, '"trade_id":1', '"trade_id":' || n), ',' ORDER BY n) || ']', '{}'
FROM generate_series(1, $2::int) AS n GROUP BY (n - 1) / $3::int ORDER BY min(n)
"""


class Heard:
    """Trades that a subscriber has been told of, in order, and when the last one came."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.ids: list[int] = []
        self.last = 0.0

    async def take(self, message: AbstractIncomingMessage) -> None:
        for change in json.loads(message.body)["changes"]:
            self.ids.append(change["key"]["trade_id"])
            self.names.append(change["after"]["ex_trade_id"])
        self.last = time.perf_counter()
        await message.ack()

    async def all(self, number: int) -> None:
        async with asyncio.timeout(_SECONDS):
            while len(self.names) < number:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def a_subscriber(stage: Stage) -> AsyncIterator[Heard]:
    """Hears of trades over a durable quorum queue."""
    heard = Heard()
    async with a_channel(stage.settings.rabbitmq_url.get_secret_value()) as channel:
        await channel.set_qos(prefetch_count=500)
        queue = await channel.declare_queue("bench.events", durable=True, arguments={"x-queue-type": "quorum"})
        await queue.bind(EVENTS.name, "trade.recorded")
        await queue.consume(heard.take)
        yield heard


async def relay(servers: Servers, number: int, *, per_event: int) -> float:
    """Changes per second of our relay, so many to an event, persistent and confirmed."""
    async with a_stage(servers, desks=1) as stage:
        connection = await asyncpg.connect(stage.settings.database_url.get_secret_value())
        try:
            await connection.execute(_FILL, json.dumps(_a_change(stage), separators=(",", ":")), number, per_event)
            return await _relayed(stage, number, "tests.benchmarks.relay_alone", per_event=per_event)
        finally:
            await connection.close()


async def faststream_outbox(servers: Servers, number: int) -> float:
    """Events per second of the relay of faststream-outbox, the same ones."""
    from tests.benchmarks.outbox_pattern import Outbox  # noqa: PLC0415 - only who measures that package needs it

    async with a_stage(servers, desks=1) as stage:
        engine = build_engine(stage.settings)
        outbox = Outbox(engine)
        await outbox.create()
        change = _a_change(stage)
        async with AsyncSession(engine) as session, session.begin():
            await outbox.add(
                session,
                *(
                    json.dumps({"type": "trade.recorded", "changes": [{**change, "key": {"trade_id": n}}]})
                    for n in range(1, number + 1)
                ),
            )
        await engine.dispose()
        return await _relayed(stage, number, "tests.benchmarks.outbox_pattern")


def _a_change(stage: Stage) -> dict[str, object]:
    [trade] = trades(stage.desks, 1)
    view = TradeView(
        **trade.model_dump(include=set(TradeView.model_fields), exclude_none=True),
        **dict.fromkeys(("order_id", "ex_order_id", "fee_currency", "roi", "roi_pct")),
        trade_id=1,
        cost=trade.size * trade.price,
        fee=0,
        leverage=1,
        row_version=1,
    )
    image = view.model_dump(mode="json")
    return {"key": {"trade_id": 1}, "version": 1, "before": None, "after": image, "changed": list(image)}


async def _relayed(stage: Stage, number: int, *command: str, per_event: int = 1) -> float:
    """Changes per second, from the first event that is seen in a subscriber's queue to the last."""
    events = -(-number // per_event)
    async with a_channel(stage.settings.rabbitmq_url.get_secret_value()) as channel:
        queue = await channel.declare_queue("bench.events", durable=True, arguments={"x-queue-type": "quorum"})
        await queue.bind(EVENTS.name, "trade.recorded")
        async with a_process(stage, *command), asyncio.timeout(_SECONDS):
            while not (first := await _held(channel)):
                await asyncio.sleep(0.005)
            began = time.perf_counter()
            while await _held(channel) < events:
                await asyncio.sleep(0.01)
            seconds = time.perf_counter() - began
        heard = Heard()
        await queue.consume(heard.take)
        await heard.all(number)
        await asyncio.sleep(0.2)
    if sorted(heard.ids) != list(range(1, number + 1)):
        raise AssertionError(f"{number} changes were announced {len(heard.ids)} times")
    return (events - first) * per_event / seconds


async def _held(channel: AbstractChannel) -> int:
    queue = await channel.declare_queue("bench.events", passive=True)
    return queue.declaration_result.message_count or 0


async def end_to_end(servers: Servers, number: int, *, desks: int) -> float:
    """Trades per second from the first publish to the last event heard, of the real service."""
    async with a_stage(servers, desks=desks) as stage, a_service(stage):
        return await _end_to_end(stage, number)


async def manual_end_to_end(servers: Servers, number: int, *, desks: int) -> float:
    """The same of the manual's pattern with faststream-outbox behind it."""
    from tests.benchmarks.outbox_pattern import Outbox  # noqa: PLC0415 - only who measures that package needs it

    async with a_stage(servers, desks=desks) as stage, AsyncExitStack() as running:
        engine = build_engine(stage.settings)
        await Outbox(engine).create()
        await engine.dispose()
        for command in (
            ["tests.benchmarks.manual_pattern", "--faststream-outbox"],
            ["tests.benchmarks.outbox_pattern"],
        ):
            await running.enter_async_context(a_process(stage, *command))
        await _consumed(stage)
        return await _end_to_end(stage, number)


async def _consumed(stage: Stage) -> None:
    async with a_channel(stage.settings.rabbitmq_url.get_secret_value()) as channel, asyncio.timeout(30):
        while True:
            queue = await channel.declare_queue("persistence.trading", passive=True)
            if queue.declaration_result.consumer_count:
                return
            await asyncio.sleep(0.05)


async def _end_to_end(stage: Stage, number: int) -> float:
    sent: Sequence[RecordTrade] = list(trades(stage.desks, number))
    async with a_subscriber(stage) as heard:
        began = time.perf_counter()
        await publish(stage, sent)
        await heard.all(number)
        await asyncio.sleep(0.3)
    connection = await asyncpg.connect(stage.settings.database_url.get_secret_value())
    rows = await connection.fetchval("SELECT count(*) FROM trades")
    await connection.close()
    if rows != number or sorted(heard.names) != sorted(str(trade.ex_trade_id) for trade in sent):
        raise AssertionError(f"{number} trades made {rows} rows and {len(heard.names)} changes in events")
    return number / (heard.last - began)
