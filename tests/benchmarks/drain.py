"""How fast a full queue is worked off: by us, by the manual's pattern, and by a consumer that does nothing."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg

from contracts.base import Command
from deploy.servers import Servers
from tests.benchmarks.stage import Stage, a_process, a_stage, publish

Messages = Callable[[Stage, int], Sequence[Command[Any]]]
Check = Callable[[asyncpg.Connection, int], Awaitable[None]]


async def service(servers: Servers, make: Messages, number: int, check: Check, *, desks: int) -> float:
    """Messages per second of the real service, everything committed and announced in the outbox."""
    return await _drain(servers, make, number, check, desks, "service", "serve")


async def manual_pattern(servers: Servers, make: Messages, number: int, check: Check, *, desks: int) -> float:
    """Messages per second of one session and one commit per message."""
    return await _drain(servers, make, number, check, desks, "tests.benchmarks.manual_pattern")


async def _drain(servers: Servers, make: Messages, number: int, check: Check, desks: int, *command: str) -> float:
    async with a_stage(servers, desks=desks) as stage:
        await publish(stage, make(stage, number))
        connection = await asyncpg.connect(stage.settings.database_url.get_secret_value())
        try:
            async with a_process(stage, *command):
                rate = await _rate(connection, number)
            await check(connection, number)
        finally:
            await connection.close()
        return rate


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
