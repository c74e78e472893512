"""How long a message takes, and how many questions are answered, in processes of their own."""

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from itertools import cycle
from typing import Any, NamedTuple
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from faststream.rabbit import RabbitBroker
from redis.asyncio import Redis

from contracts import GetSymbol
from contracts.client import PersistenceClient, new_message_id
from contracts.topology import EVENTS
from deploy.servers import Servers
from tests.benchmarks.stage import Stage, a_channel, a_process, a_stage, trades

AT_ONCE = 100
_SYMBOLS = 20
_START_SECONDS = 120  # on a machine with many neighbours


async def lookups(servers: Servers, number: int) -> float:
    """Cached lookups per second, 100 at once, client and service in processes of their own."""
    async with a_stage(servers, desks=_SYMBOLS) as stage, a_service(stage):
        symbols = {GetSymbol(symbol=d.symbol.symbol, cat_ex_id=d.catalog.cat_ex_id): d.symbol for d in stage.desks}
        async with PersistenceClient(stage.settings.rabbitmq_url.get_secret_value(), answer_timeout=30) as client:
            for question, symbol in symbols.items():
                assert await client.lookup(question) == symbol
            in_turn = cycle(symbols.items())

            async def ask() -> None:
                question, symbol = next(in_turn)
                assert await client.lookup(question) == symbol

            return await _rate(ask, number)


async def echo(servers: Servers, number: int) -> float:
    """Round trips per second of a bare aio-pika echo, 100 at once, in processes of their own."""
    async with a_stage(servers, desks=0) as stage, a_process(stage, "tests.benchmarks.echo") as process:
        await _line(process)
        async with an_asker(stage.settings.rabbitmq_url.get_secret_value()) as ask:
            return await _rate(ask, number)


async def redis_get(servers: Servers, number: int) -> float:
    """GETs per second of bare redis-py, 100 at once: what a cache in the asker's own process gives."""
    async with Redis.from_url(servers.redis_url, max_connections=AT_ONCE) as redis:
        await redis.set("bench", b"x" * 300)

        async def ask() -> None:
            assert await redis.get("bench")

        try:
            return await _rate(ask, number)
        finally:
            await redis.delete("bench")


async def faststream_request(servers: Servers, number: int) -> float:
    """Round trips per second of FastStream's own request, 100 at once, against the same echo."""
    async with a_stage(servers, desks=0) as stage, a_process(stage, "tests.benchmarks.echo") as process:
        await _line(process)
        async with RabbitBroker(stage.settings.rabbitmq_url.get_secret_value(), logger=None) as broker:
            await broker.connect()

            async def ask() -> None:
                await broker.request(b"{}", queue="echo", timeout=30)

            return await _rate(ask, number)


class Way(NamedTuple):
    """How long a trade took from its publish to its event, in seconds."""

    total: float
    until_stored: float
    """Until the database began with the statement that stores it."""


async def event_latency(servers: Servers, number: int, *, per_second: int) -> list[Way]:
    """The ways of trades that are published at a steady rate, in order of publishing.

    Those of the first two seconds are left out: the service makes its partitions then, and connections plan.
    """
    first = 2 * per_second
    async with a_stage(servers, desks=10) as stage, a_service(stage):
        url = stage.settings.rabbitmq_url.get_secret_value()
        received: dict[str, tuple[float, float]] = {}
        async with a_channel(url) as channel, PersistenceClient(url) as client:
            queue = await channel.declare_queue("bench.events", durable=True, arguments={"x-queue-type": "quorum"})
            await queue.bind(EVENTS.name, "trade.recorded")

            async def note(message: AbstractIncomingMessage) -> None:
                now = time.time()
                event = json.loads(message.body)
                stored = datetime.fromisoformat(event["occurred_at"]).timestamp()
                for cause in event["causation_ids"]:
                    received[cause] = now, stored
                await message.ack()

            await queue.consume(note)
            sent: dict[str, float] = {}

            async def send(trade: Any) -> None:
                message_id = new_message_id()
                sent[str(message_id)] = time.time()  # as the database on this machine tells it
                await client.publish(trade, message_id=message_id)

            began = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for index, trade in enumerate(trades(stage.desks, first + number)):
                    await asyncio.sleep(max(0.0, began + index / per_second - time.perf_counter()))
                    group.create_task(send(trade))
            async with asyncio.timeout(30):
                while len(received) < first + number:
                    await asyncio.sleep(0.01)
        return [Way(*(at - sent[key] for at in received[key])) for key in list(sent)[first:]]


async def echo_latency(servers: Servers, number: int) -> list[float]:
    """Seconds of a bare aio-pika round trip, one after the other."""
    async with a_stage(servers, desks=0) as stage, a_process(stage, "tests.benchmarks.echo") as process:
        await _line(process)
        times = []
        async with an_asker(stage.settings.rabbitmq_url.get_secret_value()) as ask:
            for _ in range(number):
                began = time.perf_counter()
                await ask()
                times.append(time.perf_counter() - began)
        return times


def percentile(times: list[float], percent: int) -> float:
    """The time that ``percent`` of them do not exceed."""
    return statistics.quantiles(times, n=100, method="inclusive")[percent - 1]


@asynccontextmanager
async def a_service(stage: Stage) -> AsyncIterator[asyncio.subprocess.Process]:
    """The real service, once every lane has its consumer."""
    async with a_process(stage, "service", "serve") as process:
        async with a_channel(stage.settings.rabbitmq_url.get_secret_value()) as channel:
            async with asyncio.timeout(_START_SECONDS):
                while True:
                    queue = await channel.declare_queue("persistence.lookups", passive=True)
                    if queue.declaration_result.consumer_count:
                        break
                    await asyncio.sleep(0.05)
        yield process


@asynccontextmanager
async def an_asker(url: str) -> AsyncIterator[Any]:
    """A function that makes one round trip through the echo, over one reply consumer."""
    async with a_channel(url) as channel:
        waiting: dict[str, asyncio.Future[None]] = {}
        replies = await channel.get_queue("amq.rabbitmq.reply-to", ensure=False)

        async def receive(message: AbstractIncomingMessage) -> None:
            waiting.pop(message.correlation_id or "").set_result(None)

        await replies.consume(receive, no_ack=True)

        async def ask() -> None:
            key = uuid4().hex
            future = waiting[key] = asyncio.get_running_loop().create_future()
            message = aio_pika.Message(b"{}", correlation_id=key, reply_to="amq.rabbitmq.reply-to")
            await channel.default_exchange.publish(message, "echo")
            await future

        yield ask


async def _rate(ask: Any, number: int) -> float:
    left = number

    async def one_of_many() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await ask()

    for _ in range(20):
        await ask()
    began = time.perf_counter()
    await asyncio.gather(*(one_of_many() for _ in range(AT_ONCE)))
    return number / (time.perf_counter() - began)


async def _line(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    return await asyncio.wait_for(process.stdout.readline(), 30)
