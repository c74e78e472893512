"""How long a subscriber's cache lags behind the database, at a steady rate of transactions that change something.

From the begin of the transaction that made the change until Redis has answered the removal, which is more than from
its commit. Beside it the least that a message can take: published by aio-pika with confirms, stored by a quorum
queue, consumed by aio-pika, at the same rate on the same broker.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from statistics import quantiles
from typing import Any, Final, NamedTuple

import aio_pika
import asyncpg
from aio_pika.abc import AbstractIncomingMessage

from contracts import cache_keys
from contracts.invalidator import CacheInvalidator
from contracts.leased_cache import connect
from deploy.servers import Servers
from service.database import build_session_maker
from service.engine import build_engine
from service.publisher import Publisher
from service.relay import Relay
from tests.benchmarks.stage import Stage, a_stage

CHANGES_PER_SECOND: Final = 200
_QUEUE: Final = "bare"
_SECONDS_TO_CATCH_UP: Final = 60
_CHANGE: Final = """
WITH changed AS (UPDATE symbols SET decimals = $2 % 18, row_version = row_version + 1 WHERE symbol_id = $1)
INSERT INTO outbox (type, causation_ids, changes, stale_keys) VALUES ('symbol.updated', '{}', '[]', ARRAY[$3])
"""


class Lag(NamedTuple):
    """Milliseconds."""

    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: list[float]) -> "Lag":
        cuts = quantiles(seconds, n=100)
        return cls(cuts[49] * 1_000, cuts[98] * 1_000)


class Outcome(NamedTuple):
    """Both sides, measured in the same run."""

    applied: Lag
    bare: Lag
    changes: int


async def measure(servers: Servers, seconds: float) -> Outcome:
    """Change for so many seconds; raises AssertionError if an event was not applied."""
    async with a_stage(servers, desks=10) as stage:
        applied = await _applied(stage, seconds)
        bare = await _bare(stage, seconds)
    return Outcome(Lag.of(applied), Lag.of(bare), len(applied))


async def _applied(stage: Stage, seconds: float) -> list[float]:
    settings = stage.settings
    url = settings.rabbitmq_url.get_secret_value()
    lags: list[float] = []
    engine = build_engine(settings)
    publisher = Publisher(settings)
    relay = Relay(build_session_maker(engine), publisher, settings)
    relaying = asyncio.create_task(relay.run())
    async with (
        connect(settings.redis_url.get_secret_value(), timeout=2) as redis,
        asyncpg.create_pool(settings.database_url.get_secret_value(), min_size=5) as pool,
        CacheInvalidator(
            url,
            redis,
            queue="lag.cache",
            namespace="lag",
            bindings=["symbol.#", "symbols.#"],
            on_applied=lambda lag, _: lags.append(lag),
        ),
    ):

        async def change(number: int) -> None:
            symbol = stage.desks[number % len(stage.desks)].symbol
            await pool.execute(_CHANGE, symbol.symbol_id, number, cache_keys.symbol_by_id(symbol.symbol_id))
            relay.wake()  # as a lane does after each commit

        await _steadily(seconds, change)
        expected = round(seconds * CHANGES_PER_SECOND)
        async with asyncio.timeout(_SECONDS_TO_CATCH_UP):
            while len(lags) < expected:
                await asyncio.sleep(0.1)
    relaying.cancel()
    await asyncio.gather(relaying, return_exceptions=True)
    await publisher.close()
    await engine.dispose()
    return lags


async def _bare(stage: Stage, seconds: float) -> list[float]:
    hops: list[float] = []
    url = stage.settings.rabbitmq_url.get_secret_value()
    async with await aio_pika.connect(url) as publishing, await aio_pika.connect(url) as consuming:
        channel = await consuming.channel()
        await channel.set_qos(200)
        queue = await channel.declare_queue(_QUEUE, durable=True, arguments={"x-queue-type": "quorum"})

        async def take(message: AbstractIncomingMessage) -> None:
            hops.append(time.monotonic() - float(message.body))
            await message.ack()

        await queue.consume(take)
        exchange = (await publishing.channel()).default_exchange

        async def publish(_: int) -> None:
            body = repr(time.monotonic()).encode()
            await exchange.publish(aio_pika.Message(body, delivery_mode=2), _QUEUE)

        await _steadily(seconds, publish)
        await asyncio.sleep(0.5)
    return hops


async def _steadily(seconds: float, do: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    """Begin ``do`` at the rate, however long each takes."""
    began = time.monotonic()
    async with asyncio.TaskGroup() as doing:
        for number in range(round(seconds * CHANGES_PER_SECOND)):
            await asyncio.sleep(max(0.0, began + number / CHANGES_PER_SECOND - time.monotonic()))
            doing.create_task(do(number))
