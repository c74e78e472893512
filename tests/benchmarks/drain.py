"""How fast a full queue is worked off: by us, by the manual's pattern, and by a consumer that does nothing."""

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
from aio_pika.abc import AbstractQueue

from contracts.base import Command
from contracts.client import new_message_id
from contracts.topology import EVENTS
from deploy.servers import Servers
from tests.benchmarks import cpu
from tests.benchmarks.stage import Stage, a_channel, a_process, a_stage, publish

Messages = Callable[[Stage, int], Sequence[Command[Any]]]
Send = Callable[[Stage, Sequence[Command[Any]]], Awaitable[None]]


@dataclass(frozen=True)
class Outcome:
    """What has to be there afterwards: for each ``command`` a row in ``table`` and a change in an ``event``."""

    command: str
    table: str
    key: str
    event: str


TRADES = Outcome("record_trade", "trades", "trade_id", "trade.recorded")
LOGS = Outcome("save_bot_log", "bot_logs", "log_id", "bot_log.saved")
MOVES = Outcome("update_order_status", "orders", "order_id", "order.status_changed")
OUTCOMES = (TRADES, LOGS, MOVES)


@dataclass(frozen=True)
class Drained:
    """How a queue was worked off."""

    per_second: float
    cpu: Mapping[str, float]
    """Microseconds per message, by process; those that run elsewhere are missing."""


async def service(servers: Servers, make: Messages, number: int, *, desks: int, orders: int = 0) -> Drained:
    """Messages of the real service, everything committed and announced in the outbox."""
    return await _drain(servers, make, number, desks, "service", "serve", orders=orders)


async def manual_pattern(servers: Servers, make: Messages, number: int, *, desks: int, orders: int = 0) -> float:
    """Messages per second of one session and one commit per message."""
    drained = await _drain(servers, make, number, desks, "tests.benchmarks.manual_pattern", orders=orders)
    return drained.per_second


async def celery_pattern(servers: Servers, make: Messages, number: int, *, desks: int) -> float:
    """Trades per second of two Celery workers, one task per message."""
    from tests.benchmarks import celery_pattern as pattern  # noqa: PLC0415 - only who measures Celery needs it

    app = ("tests.benchmarks.celery_pattern:worker_app", "worker", "--concurrency=2", "--loglevel=ERROR")
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")

    async def send(stage: Stage, commands: Sequence[Command[Any]]) -> None:
        def send_all() -> None:
            with pattern.build(stage.settings.rabbitmq_url.get_secret_value()) as celery:
                for command in commands:
                    body = command.model_dump(mode="json", exclude_unset=True)
                    celery.send_task(pattern.TASK, (body,), task_id=str(new_message_id()))

        await asyncio.to_thread(send_all)

    return (await _drain(servers, make, number, desks, "celery", "-A", *app, *quiet, send=send)).per_second


async def _drain(
    servers: Servers, make: Messages, number: int, desks: int, *command: str, send: Send = publish, orders: int = 0
) -> Drained:
    async with a_stage(servers, desks=desks, orders=orders) as stage:
        commands = make(stage, number)
        await send(stage, commands)
        connection = await asyncpg.connect(stage.settings.database_url.get_secret_value())
        try:
            async with a_channel(stage.settings.rabbitmq_url.get_secret_value()) as channel:
                events = await channel.declare_queue("bench.events", durable=True)
                expected = Counter(command.wire_name for command in commands)
                outcomes = [outcome for outcome in OUTCOMES if expected[outcome.command]]
                for outcome in outcomes:
                    await events.bind(EVENTS.name, outcome.event)
                async with a_process(stage, *command) as process:
                    drained = await _drained(connection, number, process.pid)
                announced = await _announced(connection, events)
                for outcome in outcomes:
                    await _check(connection, announced[outcome.event], outcome, expected[outcome.command])
                if command[0] == "service":
                    await _check_order(connection, announced[MOVES.event])
        finally:
            await connection.close()
        return drained


async def _announced(connection: asyncpg.Connection, events: AbstractQueue) -> dict[str, list[Any]]:
    """The changes of each type, those published first and then those that wait in the outbox."""
    changes: dict[str, list[Any]] = defaultdict(list)
    while (message := await events.get(no_ack=True, fail=False)) is not None:
        changes[message.routing_key or ""] += json.loads(message.body)["changes"]
    for row in await connection.fetch("SELECT type, changes FROM outbox ORDER BY id"):
        changes[row["type"]] += json.loads(row["changes"])
    return changes


async def _check(connection: asyncpg.Connection, changes: list[Any], outcome: Outcome, number: int) -> None:
    """Every message has its effect, and every effect its change, exactly once; nothing was refused."""
    if refused := await connection.fetchval("SELECT count(*) FROM dead_letters"):
        raise AssertionError(f"{refused} messages were refused")
    announced = sorted(change["key"][outcome.key] for change in changes)
    if outcome is MOVES:
        moved = await connection.fetch("SELECT order_id, row_version - 1 AS moves FROM orders ORDER BY order_id")
        effects = [row["order_id"] for row in moved for _ in range(row["moves"])]
    else:
        effects = sorted(row[0] for row in await connection.fetch(f"SELECT {outcome.key} FROM {outcome.table}"))  # noqa: S608
    if len(effects) != number or announced != effects:
        raise AssertionError(f"{number} messages had {len(effects)} effects and {len(announced)} changes in events")


async def _check_order(connection: asyncpg.Connection, moves: list[Any]) -> None:
    """What each bot sent first comes first, in the tables and in the events."""
    for query in (
        "SELECT bot_id, split_part(ex_trade_id, '-', 3)::int AS place FROM trades ORDER BY trade_id",
        "SELECT bot_id, split_part(message, ':', 1)::int AS place FROM bot_logs ORDER BY log_id",
    ):
        newest: dict[int, int] = {}
        for row in await connection.fetch(query):
            if row["place"] <= newest.get(row["bot_id"], -1):
                raise AssertionError(f"message {row['place']} of bot {row['bot_id']} came too late")
            newest[row["bot_id"]] = row["place"]
    versions: dict[int, int] = {}
    for change in moves:
        order_id, version = change["key"]["order_id"], change["version"]
        if version != versions.get(order_id, 1) + 1:
            raise AssertionError(f"version {version} of order {order_id} follows {versions.get(order_id, 1)}")
        versions[order_id] = version


async def _drained(connection: asyncpg.Connection, number: int, pid: int) -> Drained:
    """What it took, from the first that is seen committed to the last."""
    started, first, handled = 0.0, 0, 0
    before: Mapping[str, float] = {}
    deadline = time.perf_counter() + 600
    while handled < number:
        handled = await connection.fetchval("SELECT count(*) FROM inbox")
        now = time.perf_counter()
        if handled and not started:
            started, first, before = now, handled, cpu.used(pid)
        if now > deadline:
            raise TimeoutError(f"{handled} of {number} messages were handled within ten minutes")
        # To count them takes longer the more there are, and takes it from who works: seldom, until the end is near.
        left = (number - handled) * (now - started) / (handled - first) if handled > first else 0.0
        await asyncio.sleep(min(max(left / 3, 0.02), 1.0))
    if first == number:
        raise RuntimeError("all were handled at once; measure with more messages")
    rate = (number - first) / (now - started)
    return Drained(rate, cpu.between(before, cpu.used(pid), number - first))


async def bare_consumer(servers: Servers, make: Messages, number: int, *, desks: int) -> Drained:
    """Messages of a consumer that acknowledges in batches and writes nothing."""
    async with a_stage(servers, desks=desks) as stage:
        commands = make(stage, number)
        await publish(stage, commands)
        async with a_process(stage, "tests.benchmarks.bare_consumer", commands[0].lane.queue, str(number)) as process:
            assert process.stdout is not None
            line = await asyncio.wait_for(process.stdout.readline(), 300)
        seconds, own_cpu = map(float, line.split())
        return Drained((number - 1) / seconds, {"service": own_cpu / number * 1e6})
