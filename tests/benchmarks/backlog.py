"""A long queue: it is worked off as fast at the end as at the beginning, in the memory of an idle service."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import asyncpg

from deploy.servers import Servers
from tests.benchmarks.stage import Stage, a_process, a_stage, publish, trades
from tests.benchmarks.talk import a_service

_DESKS = 20
_SECONDS = 1_800


class Drained(NamedTuple):
    """How a backlog went."""

    per_second: float
    last_to_first: float
    """Rate of the last tenth, as a part of the rate of the first."""
    grown: float
    """Resident memory at its highest, in MB above that of an idle service."""


async def drained(servers: Servers, number: int) -> Drained:
    """Trades out of a queue of ``number``."""
    async with a_stage(servers, desks=_DESKS) as stage:
        idle = await _idle(stage)
        await publish(stage, trades(stage.desks, number))
        connection = await asyncpg.connect(stage.settings.database_url.get_secret_value())
        try:
            async with a_process(stage, "service", "serve") as process:
                stored = [
                    (at, count, memory) async for at, count, memory in _watched(connection, process.pid, number)
                ]
            await _check(connection, number)
        finally:
            await connection.close()
    tenth = number // 10
    began = next(at for at, count, _ in stored if count)
    first = next((at, count) for at, count, _ in stored if count >= tenth)
    before_last = next((at, count) for at, count, _ in stored if count >= number - tenth)
    start = next((at, count) for at, count, _ in stored if count)
    end = stored[-1]
    rate_first = (first[1] - start[1]) / max(first[0] - start[0], 1e-3)
    rate_last = (end[1] - before_last[1]) / max(end[0] - before_last[0], 1e-3)
    return Drained(number / (end[0] - began), rate_last / rate_first, max(memory for *_, memory in stored) - idle)


async def _idle(stage: Stage) -> float:
    async with a_service(stage) as process:
        await asyncio.sleep(1)
        return _resident(process.pid)


def _resident(pid: int) -> float:
    """Megabytes that a process holds."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) / 1024


async def _watched(connection: asyncpg.Connection, pid: int, number: int) -> AsyncIterator[tuple[float, int, float]]:
    """When, how many trades were stored and how much memory the process held, until all are stored."""
    deadline = time.perf_counter() + _SECONDS
    stored = 0
    while stored < number:
        if time.perf_counter() > deadline:
            raise TimeoutError(f"{stored} of {number} trades were stored in half an hour")
        # Counting a million rows many times a second would slow down what is measured.
        stored = await connection.fetchval("SELECT coalesce(max(trade_id), 0) FROM trades")
        yield time.perf_counter(), stored, _resident(pid)
        await asyncio.sleep(0.05)


async def _check(connection: asyncpg.Connection, number: int) -> None:
    """Every trade is there once, and was announced or will be."""
    rows, handled, refused = await connection.fetchrow(
        "SELECT (SELECT count(*) FROM trades), (SELECT count(*) FROM inbox), (SELECT count(*) FROM dead_letters)"
    )
    if (rows, handled, refused) != (number, number, 0):
        raise AssertionError(f"{number} messages: {rows} rows, {handled} handled, {refused} refused")
