"""How fast a full queue is worked off: by us, by the manual's pattern, and by a consumer that does nothing."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
from aio_pika.abc import AbstractQueue

from contracts.base import Command
from contracts.topology import EVENTS
from deploy.servers import Servers
from tests.benchmarks.stage import Stage, a_channel, a_process, a_stage, publish

Messages = Callable[[Stage, int], Sequence[Command[Any]]]


@dataclass(frozen=True)
class Outcome:
    """What has to be there afterwards: a row in ``table`` and a change in an ``event`` for each message."""

    table: str
    key: str
    event: str


TRADES = Outcome("trades", "trade_id", "trade.recorded")
LOGS = Outcome("bot_logs", "log_id", "bot_log.saved")


async def service(servers: Servers, make: Messages, number: int, outcome: Outcome, *, desks: int) -> float:
    """Messages per second of the real service, everything committed and announced in the outbox."""
    return await _drain(servers, make, number, outcome, desks, "service", "serve")


async def manual_pattern(servers: Servers, make: Messages, number: int, outcome: Outcome, *, desks: int) -> float:
    """Messages per second of one session and one commit per message."""
    return await _drain(servers, make, number, outcome, desks, "tests.benchmarks.manual_pattern")


async def _drain(servers: Servers, make: Messages, number: int, outcome: Outcome, desks: int, *command: str) -> float:
    async with a_stage(servers, desks=desks) as stage:
        await publish(stage, make(stage, number))
        connection = await asyncpg.connect(stage.settings.database_url.get_secret_value())
        try:
            async with a_channel(stage.settings.rabbitmq_url.get_secret_value()) as channel:
                events = await channel.declare_queue("bench.events", durable=True)
                await events.bind(EVENTS.name, outcome.event)
                async with a_process(stage, *command):
                    rate = await _rate(connection, number)
                await _check(connection, events, outcome, number)
        finally:
            await connection.close()
        return rate


async def _check(connection: asyncpg.Connection, events: AbstractQueue, outcome: Outcome, number: int) -> None:
    """Every message has its row, and every row its change, published or waiting in the outbox, exactly once."""
    rows = {row[0] for row in await connection.fetch(f"SELECT {outcome.key} FROM {outcome.table}")}  # noqa: S608
    waiting = await connection.fetch("SELECT changes FROM outbox WHERE type = $1", outcome.event)
    changes = [change for row in waiting for change in json.loads(row["changes"])]
    while (message := await events.get(no_ack=True, fail=False)) is not None:
        changes += json.loads(message.body)["changes"]
    announced = [change["key"][outcome.key] for change in changes]
    if len(rows) != number or sorted(announced) != sorted(rows):
        raise AssertionError(f"{number} messages made {len(rows)} rows and {len(announced)} changes in events")


async def _rate(connection: asyncpg.Connection, number: int) -> float:
    """Messages per second, from the first that is seen committed to the last."""
    started, first, handled = 0.0, 0, 0
    deadline = time.perf_counter() + 600
    while handled < number:
        handled = await connection.fetchval("SELECT count(*) FROM inbox")
        if handled and not started:
            started, first = time.perf_counter(), handled
        if time.perf_counter() > deadline:
            raise TimeoutError(f"{handled} of {number} messages were handled within ten minutes")
        await asyncio.sleep(0.02)
    if first == number:
        raise RuntimeError("all were handled at once; measure with more messages")
    return (number - first) / (time.perf_counter() - started)


async def bare_consumer(servers: Servers, make: Messages, number: int, *, desks: int) -> float:
    """Messages per second of a consumer that acknowledges in batches and writes nothing."""
    async with a_stage(servers, desks=desks) as stage:
        commands = make(stage, number)
        await publish(stage, commands)
        async with a_process(stage, "tests.benchmarks.bare_consumer", commands[0].lane.queue, str(number)) as process:
            assert process.stdout is not None
            line = await asyncio.wait_for(process.stdout.readline(), 300)
        return (number - 1) / float(line)
