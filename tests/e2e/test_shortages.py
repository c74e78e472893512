"""A machine that runs short of descriptors, room for logs or memory, or whose clock jumps."""

import asyncio
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import asyncpg
import pytest

from contracts import GetSymbol, Refusal, SaveBotLog
from contracts.client import PersistenceClient
from tests.builders import a_desk
from tests.conftest import RunningService, StartService
from tests.e2e.run import Load, Run, stored_are
from tests.e2e.wire import certified, eventually, http, value


class TestDescriptors:
    async def test_that_run_out_have_what_needs_one_wait_and_nothing_else(self, service: RunningService) -> None:
        async with Run.of(service) as run:
            trades = [run.desk.trade() for _ in range(300)]
            with limited(service, resource.RLIMIT_NOFILE, 3):
                for trade in trades[:100]:
                    await run.client.publish(trade)
                await eventually(lambda: stored_are(service.database_url, 100))
                await terminate_backends(service.database_url)
                for trade in trades[100:200]:
                    await run.client.publish(trade)
                assert not await stored_are(service.database_url, 200)
                assert service.process.returncode is None
            for trade in trades[200:]:
                await run.client.publish(trade)

            await run.has_exactly(trades, service=service)


class TestALogThatCannotBeWritten:
    async def test_keeps_nothing_from_being_stored_or_refused(self, service: RunningService) -> None:
        async with Run.of(service) as run:
            with limited(service, resource.RLIMIT_FSIZE, service.log.stat().st_size):
                trades = [run.desk.trade() for _ in range(20)]
                for trade in trades:
                    await run.client.call(trade)
                    with pytest.raises(Refusal, match="no bot"):
                        await run.client.call(run.desk.trade(bot_id=2**31 - 1))
                assert await metric(service, "persistence_log_lines_lost_total") >= 20

                await run.has_exactly(trades, service=service, refused=20)


class TestLittleMemory:
    async def test_is_enough_for_any_backlog(self, start_service: StartService) -> None:
        """The lane takes some commands ahead; all others stay with the broker."""
        service = await start_service(RABBITMQ_PREFETCH="50")
        async with PersistenceClient(service.rabbitmq_url, answer_timeout=10) as client:
            desk = await a_desk(client)
            room = address_space(service) + 64 * 2**20
            with limited(service, resource.RLIMIT_AS, room):
                blocker = await asyncpg.connect(service.database_url)
                try:
                    await blocker.execute("BEGIN; LOCK TABLE bot_logs IN ACCESS EXCLUSIVE MODE")
                    entry = SaveBotLog(bot_id=desk.bot.bot_id, message="x", data={"much": "x" * 60_000})
                    await asyncio.gather(*(client.publish(entry) for _ in range(1_000)))
                finally:
                    await blocker.close()
                count = "SELECT count(*) = 1000 FROM bot_logs"
                await eventually(lambda: value(service.database_url, count), seconds=30)

            assert await metric(service, "persistence_commands_total") == 1_000 + 6
            assert await service.terminate() == 0


class TestAClockThatJumps:
    async def test_delays_nothing_and_loses_nothing(self, start_service: StartService, tmp_path: Path) -> None:
        clock = tmp_path / "clock"
        clock.write_text("0")
        service = await start_service(program="tests.e2e.jumping_clock", CLOCK_FILE=str(clock))
        async with Run.of(service) as run:
            symbol = run.desk.symbol
            question = GetSymbol(symbol=symbol.symbol, cat_ex_id=symbol.cat_ex_id)
            async with Load(run, bots=4, pause=0.01) as load:
                for hours in (1, -1, 24 * 3_650, 0):
                    clock.write_text(str(hours * 3_600))
                    enough = len(load.confirmed) + 200
                    await eventually(partial(stored_are, service.database_url, enough), seconds=5)
                    assert await run.client.lookup(question) == symbol
            # Once or twice while the partitions of the time ahead are made, and not in a burst.
            assert await metric(service, "persistence_held_batches_total") < 5
            assert await metric(service, "persistence_relay_leader") == 1
            await certified(service.redis_url)

            await run.has_exactly(load.confirmed, service=service, repeated=0)


@contextmanager
def limited(service: RunningService, what: int, soft: int) -> Iterator[None]:
    """Let the service have no more of a resource than this."""
    before = resource.prlimit(service.process.pid, what)
    resource.prlimit(service.process.pid, what, (soft, before[1]))
    try:
        yield
    finally:
        if service.process.returncode is None:
            resource.prlimit(service.process.pid, what, before)


def address_space(service: RunningService) -> int:
    pages = Path(f"/proc/{service.process.pid}/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


async def terminate_backends(database_url: str) -> None:
    await value(
        database_url,
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )


async def metric(service: RunningService, name: str) -> float:
    """The sum over all labels."""
    _, page = await http(f"{service.http}/metrics")
    return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(name))
