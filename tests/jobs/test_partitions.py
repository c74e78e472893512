"""Partitions are there before their rows, and rows that came before are moved into them."""

import asyncio
import secrets
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy.exc import IntegrityError

from contracts import SaveBotLog
from contracts.client import new_message_id
from service.database import SessionMaker
from service.errors import is_transient
from service.jobs import partitions
from service.jobs.partitions import PARTITIONED, Partitioned, first_id, make_partitions, time_of
from service.jobs.scheduler import Run, Scheduler
from tests.builders import Desk, Direct, received
from tests.jobs.conftest import Start

BOT_LOGS, TICKS, INBOX, _ = PARTITIONED
KEPT = {table.table: timedelta(days=90) for table in (BOT_LOGS, TICKS)} | {"inbox": timedelta(days=7)}


@pytest.fixture
def scheduler(start: Start) -> Scheduler:
    async def work(run: Run) -> None:
        await make_partitions(run, KEPT)

    return start(work)


async def made(sessions: SessionMaker, table: Partitioned) -> list[partitions.Period]:
    async with sessions() as session:
        return sorted((await partitions.partitions(session, table)).values())


async def kept_in(sql: asyncpg.Connection, table: str) -> dict[str, int]:
    """Where the rows of a table are, and how many."""
    counts = await sql.fetch(f"SELECT tableoid::regclass::text, count(*) FROM {table} GROUP BY 1")  # noqa: S608
    return dict(map(tuple, counts))


def log_entry(desk: Desk, at: datetime) -> tuple[Any, ...]:
    return (desk.bot.bot_id, f"entry {secrets.token_hex(4)}", at)


LOG = "INSERT INTO bot_logs (bot_id, message, timestamp) VALUES ($1, $2, $3)"


class TestPeriods:
    @pytest.mark.parametrize("table", PARTITIONED, ids=lambda table: table.table)
    def test_follow_each_other_without_a_gap(self, table: Partitioned) -> None:
        period = table.period(datetime(2026, 2, 28, 23, 59, tzinfo=UTC))

        assert period.start <= datetime(2026, 2, 28, 23, 59, tzinfo=UTC) < period.end
        assert table.period(period.end) == (period.end, period.end + table.length)
        assert table.period(period.start) == period

    def test_of_ids_are_those_of_the_time_in_them(self) -> None:
        message_id = UUID(str(new_message_id()))

        assert abs(time_of(message_id) - datetime.now(UTC)) < timedelta(seconds=5)
        assert first_id(time_of(message_id)) <= message_id < first_id(time_of(message_id) + timedelta(milliseconds=1))


class TestThePartitionsJob:
    async def test_makes_those_of_now_and_of_the_time_ahead(
        self, scheduler: Scheduler, sessions: SessionMaker
    ) -> None:
        await scheduler.look()

        now = datetime.now(UTC)
        for table in PARTITIONED:
            periods = await made(sessions, table)
            assert periods[0] == table.period(now)
            assert periods[-1].start <= now + table.ahead < periods[-1].end
            assert all(one.end == other.start for one, other in pairwise(periods))

    async def test_makes_nothing_twice(self, scheduler: Scheduler, sql: asyncpg.Connection) -> None:
        await scheduler.look()
        await sql.execute("UPDATE job_runs SET due_at = now()")

        assert await scheduler.look()

        assert await sql.fetchval("SELECT rows FROM job_runs") == 0

    async def test_leaves_the_tables_as_they_were_to_who_uses_them(
        self, scheduler: Scheduler, desk: Desk, direct: Direct, sql: asyncpg.Connection
    ) -> None:
        await scheduler.look()
        names = {table.table: table.name(table.period(datetime.now(UTC))) for table in PARTITIONED}

        message = received(SaveBotLog(bot_id=desk.bot.bot_id, message="hello"))
        [first] = await direct.executor.execute([message])
        [second] = await direct.executor.execute([message])

        assert (first.ok, second.meta.duplicate) == (True, True)
        assert await kept_in(sql, "bot_logs") == {names["bot_logs"]: 1}
        assert set(await kept_in(sql, "inbox")) == {names["inbox"]}
        checks = await sql.fetch(
            "SELECT conrelid::regclass::text, array_agg(conname ORDER BY conname) AS names FROM pg_constraint "
            "WHERE conrelid = ANY($1::regclass[]) AND contype = 'c' GROUP BY 1",
            ["ticks", names["ticks"]],
        )
        assert len({tuple(row["names"]) for row in checks}) == 1
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await sql.execute(LOG, 999, "of nobody", datetime.now(UTC))
        await sql.execute("DELETE FROM bots WHERE bot_id = $1", desk.bot.bot_id)
        assert await kept_in(sql, "bot_logs") == {}

    async def test_moves_rows_that_came_before_their_partition(
        self, scheduler: Scheduler, desk: Desk, sql: asyncpg.Connection
    ) -> None:
        now = datetime.now(UTC)
        moments = [now, now + timedelta(days=20), now - timedelta(days=20), now - timedelta(days=85)]
        for moment in moments:
            await sql.execute(LOG, *log_entry(desk, moment))
        before = await sql.fetch("SELECT * FROM bot_logs ORDER BY log_id")
        assert set(await kept_in(sql, "bot_logs")) == {"bot_logs_p_default"}

        await scheduler.look()

        names = {BOT_LOGS.name(BOT_LOGS.period(moment)) for moment in moments}
        assert await kept_in(sql, "bot_logs") == dict.fromkeys(names, 1)
        assert await sql.fetch("SELECT * FROM bot_logs ORDER BY log_id") == before

    async def test_accepts_a_row_outside_of_all_and_moves_it_when_its_time_has_come(
        self,
        scheduler: Scheduler,
        desk: Desk,
        sql: asyncpg.Connection,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        await scheduler.look()
        far = datetime.now(UTC) + timedelta(days=60)
        await sql.execute(LOG, *log_entry(desk, far))
        await sql.execute(LOG, *log_entry(desk, datetime(1999, 1, 1, tzinfo=UTC)))
        assert await kept_in(sql, "bot_logs") == {"bot_logs_p_default": 2}
        reaching = Partitioned("bot_logs", "timestamp", length=timedelta(days=7), ahead=timedelta(days=63))
        monkeypatch.setattr(partitions, "PARTITIONED", (reaching,))
        await sql.execute("UPDATE job_runs SET due_at = now()")

        await scheduler.look()

        assert await kept_in(sql, "bot_logs") == {BOT_LOGS.name(BOT_LOGS.period(far)): 1, "bot_logs_p_default": 1}

    async def test_leaves_alone_what_would_take_long_to_move(
        self,
        scheduler: Scheduler,
        desk: Desk,
        sql: asyncpg.Connection,
        sessions: SessionMaker,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(partitions, "_MOVED_AT_MOST", 2)
        now = datetime.now(UTC)
        await sql.executemany(LOG, [log_entry(desk, now) for _ in range(3)])

        await scheduler.look()

        assert await kept_in(sql, "bot_logs") == {"bot_logs_p_default": 3}
        assert [period.start for period in await made(sessions, BOT_LOGS)] == [
            BOT_LOGS.period(now).start + n * BOT_LOGS.length for n in range(1, 5)
        ]

    async def test_keeps_ids_that_are_no_times_out_of_the_way(
        self, scheduler: Scheduler, sql: asyncpg.Connection
    ) -> None:
        await scheduler.look()
        ids = [(uuid4(),) for _ in range(2_000)]

        await sql.executemany("INSERT INTO inbox (message_id, command, payload_hash) VALUES ($1, 'x', '')", ids)

        found = await kept_in(sql, "inbox")
        assert sum(found.values()) == 2_000
        assert found["inbox_p_high"] > 1_900
        assert found.get("inbox_p_default", 0) < 30

    async def test_gives_up_at_once_behind_a_long_reader_and_comes_again(
        self, scheduler: Scheduler, sql: asyncpg.Connection, sessions: SessionMaker, database_url: str
    ) -> None:
        reader = await asyncpg.connect(database_url)
        transaction = reader.transaction()
        await transaction.start()
        await reader.execute("SELECT count(*) FROM bot_logs")

        async with asyncio.timeout(5):
            await scheduler.look()
        assert await sql.fetchval("SELECT failures FROM job_runs") == 1
        assert await made(sessions, BOT_LOGS) == []
        await transaction.rollback()
        await reader.close()
        await sql.execute("UPDATE job_runs SET due_at = now()")
        await scheduler.look()

        assert len(await made(sessions, BOT_LOGS)) == 5

    async def test_keeps_nobody_waiting_for_long(
        self, scheduler: Scheduler, direct: Direct, desk: Desk, sql: asyncpg.Connection
    ) -> None:
        """Bots write and look all the while, into the default partitions too."""
        await sql.executemany(
            LOG, [log_entry(desk, datetime.now(UTC) - timedelta(days=n % 60)) for n in range(3_000)]
        )
        done = asyncio.Event()
        waits: list[float] = []
        overtaken: list[bool] = []

        async def write() -> None:
            while not done.is_set():
                started = time.perf_counter()
                message = received(SaveBotLog(bot_id=desk.bot.bot_id, message="hello"))
                try:
                    [reply] = await direct.executor.execute([message])
                except IntegrityError as error:
                    # A lane holds its batch then, and tries again.
                    overtaken.append(is_transient(error))
                    [reply] = await direct.executor.execute([message])
                waits.append(time.perf_counter() - started)
                assert reply.ok

        writers = [asyncio.create_task(write()) for _ in range(4)]
        await asyncio.sleep(0.3)
        await scheduler.look()
        done.set()
        await asyncio.gather(*writers)

        assert await sql.fetchval("SELECT failures FROM job_runs") == 0
        assert await sql.fetchval("SELECT count(*) FROM bot_logs_p_default") == 0
        assert all(overtaken)
        assert len(waits) > 20
        assert max(waits) < 2
