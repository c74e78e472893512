"""What is older than its retention is removed, and nothing else."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import RunCleanup
from contracts.job import CLEANED
from service.config import Settings
from service.database import SessionMaker
from service.jobs.cleanup import announcement, clean_up, retention, would_remove
from service.jobs.partitions import PARTITIONED, first_id, make_partitions
from service.jobs.scheduler import Daily, Run, Scheduler
from tests.builders import Desk, Direct, received
from tests.jobs.conftest import Start
from tests.observe import statements

SETTINGS = Settings.model_validate(
    {"database_url": "postgresql://unused", "rabbitmq_url": "amqp://unused", "redis_url": "redis://unused"}
)
BATCH = 3


@pytest.fixture
def scheduler(start: Start) -> Scheduler:
    async def work(run: Run) -> None:
        await clean_up(run, SETTINGS, batch=BATCH)

    return start(work, name="cleanup", announce=announcement(SETTINGS))


@pytest.fixture
async def partitioned(start: Start) -> None:
    """Partitions as they would have been made over the last months."""

    async def work(run: Run) -> None:
        await make_partitions(run, retention(SETTINGS))

    await start(work, name="partitions").look()


def ago(days: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


async def a_partition(sql: asyncpg.Connection, table: str, days: float) -> str:
    """Make the partition that a row of so many days ago belongs to; gives its name."""
    [partitioned] = [one for one in PARTITIONED if one.table == table]
    period = partitioned.period(ago(days))
    name = partitioned.name(period)
    bounds = f"FROM ({partitioned.bound(period.start)}) TO ({partitioned.bound(period.end)})"
    await sql.execute(f"CREATE TABLE {name} PARTITION OF {table} FOR VALUES {bounds}")
    return name


Insert = Callable[[asyncpg.Connection, Desk, float], Any]


async def log_of(sql: asyncpg.Connection, desk: Desk, days: float) -> None:
    await sql.execute(
        "INSERT INTO bot_logs (bot_id, message, timestamp) VALUES ($1, 'x', $2)", desk.bot.bot_id, ago(days)
    )


async def tick_of(sql: asyncpg.Connection, desk: Desk, days: float) -> None:
    await sql.execute(
        "INSERT INTO ticks (symbol_id, price, timestamp) VALUES ($1, 1, $2)", desk.symbol.symbol_id, ago(days)
    )


async def simulation_of(sql: asyncpg.Connection, desk: Desk, days: float) -> None:
    await sql.execute(
        "INSERT INTO simulations (bot_id, name, start_date, end_date, initial_balance, final_balance, total_trades, "
        "timestamp) VALUES ($1, $2, now(), now(), 1, 1, 0, $3)",
        desk.bot.bot_id,
        str(uuid4()),
        ago(days),
    )


async def message_of(sql: asyncpg.Connection, desk: Desk, days: float, *, message_id: UUID | None = None) -> None:
    await sql.execute(
        "INSERT INTO inbox (message_id, command, payload_hash, received_at) VALUES ($1, 'x', '', $2)",
        message_id or uuid4(),
        ago(days),
    )


async def resolved_of(sql: asyncpg.Connection, desk: Desk, days: float) -> None:
    await sql.execute(
        "INSERT INTO dead_letters (command, code, reason, body, body_size, body_hash, complete, properties, state, "
        "resolved_at) VALUES ('x', 'validation', 'x', '', 0, $1, true, '{}', 'discarded', $2)",
        uuid4().bytes,
        ago(days),
    )


async def published_of(sql: asyncpg.Connection, desk: Desk, days: float) -> None:
    await sql.execute(
        "INSERT INTO published_events VALUES ($2, $1, gen_random_uuid(), 'x', 1, 1, now(), '{}', '{}')",
        uuid4().int >> 65,
        ago(days),
    )


KINDS: dict[str, tuple[Insert, float]] = {
    "bot_logs": (log_of, 90),
    "ticks": (tick_of, 90),
    "simulations": (simulation_of, 90),
    "inbox": (message_of, 7),
    "dead_letters": (resolved_of, 90),
    "published_events": (published_of, 30),
}


def test_no_table_is_forgotten() -> None:
    assert set(KINDS) == set(CLEANED) == set(retention(SETTINGS))


class TestTheCleanupJob:
    @pytest.mark.parametrize("table", CLEANED)
    async def test_removes_only_what_is_old_a_few_rows_at_a_time(
        self, table: str, scheduler: Scheduler, desk: Desk, sql: asyncpg.Connection, engine: AsyncEngine
    ) -> None:
        insert, days = KINDS[table]
        kept_before = await sql.fetchval(f"SELECT count(*) FROM {table}")  # noqa: S608
        for age in (days + 0.1, days + 1, days + 2, days + 3, 5_000, 5_001, 5_002, days - 0.1, days - 1, 0):
            await insert(sql, desk, age)

        with statements(engine) as sent:
            await scheduler.look()

        assert await sql.fetchval(f"SELECT count(*) FROM {table}") == kept_before + 3  # noqa: S608
        deletes = [statement for statement in sent if statement.split()[:1] == ["DELETE"] and table in statement]
        assert len(deletes) >= 3
        [change] = [change for change in await events_of(sql) if change["after"]["table"] == table]
        assert change["after"] == {"table": table, "rows": 7, "older_than_days": days}

    async def test_drops_partitions_whose_time_is_over_and_no_others(
        self, scheduler: Scheduler, desk: Desk, sql: asyncpg.Connection, partitioned: None
    ) -> None:
        over = await a_partition(sql, "bot_logs", 98)
        still = await a_partition(sql, "bot_logs", 85)
        for days in (98, 85, 1):
            await log_of(sql, desk, days)

        await scheduler.look()

        names = {row[0] for row in await sql.fetch("SELECT DISTINCT tableoid::regclass::text FROM bot_logs")}
        assert still in names
        assert await sql.fetchval("SELECT to_regclass($1)", over) is None
        assert await sql.fetchval("SELECT count(*) FROM bot_logs") == 2
        assert [c["after"]["rows"] for c in await events_of(sql) if c["after"]["table"] == "bot_logs"] == [1]

    async def test_remembers_a_message_as_long_as_any_other_however_old_its_id(
        self, scheduler: Scheduler, desk: Desk, sql: asyncpg.Connection
    ) -> None:
        over, late = [await a_partition(sql, "inbox", days) for days in (9, 12)]
        await message_of(sql, desk, 9, message_id=first_id(ago(9)))
        await message_of(sql, desk, 12, message_id=UUID(int=first_id(ago(12)).int + 1))
        await message_of(sql, desk, 1, message_id=UUID(int=first_id(ago(12)).int + 2))

        await scheduler.look()

        assert await sql.fetchval("SELECT to_regclass($1)", over) is None
        assert await sql.fetchval("SELECT to_regclass($1)::text", late) == late

    async def test_never_touches_orders_trades_and_open_dead_letters(
        self, start: Start, direct: Direct, desk: Desk, sql: asyncpg.Connection
    ) -> None:
        long_ago = "2001-01-01T00:00:00Z"
        await direct.call(desk.order())
        await direct.call(desk.trade(timestamp=long_ago))
        await direct.call(desk.dry_trade(timestamp=long_ago))
        await direct.executor.execute([received(desk.trade(bot_id=999))])
        await sql.execute(
            "UPDATE orders SET timestamp = '2001-01-01'; UPDATE dead_letters SET received_at = '2001-01-01'"
        )
        await direct.call(RunCleanup(older_than_days=1))

        assert await cleaning(start).look()

        for table in ("orders", "trades", "dry_trades", "dead_letters"):
            assert await sql.fetchval(f"SELECT count(*) FROM {table}") == 1  # noqa: S608

    async def test_keeps_for_ever_what_it_is_told_to(self, start: Start, desk: Desk, sql: asyncpg.Connection) -> None:
        await log_of(sql, desk, 5_000)
        await simulation_of(sql, desk, 5_000)

        await cleaning(start, bot_logs_retention_days=0).look()

        assert await sql.fetchval("SELECT count(*) FROM bot_logs") == 1
        assert await sql.fetchval("SELECT count(*) FROM simulations") == 0
        assert "bot_logs" not in [change["after"]["table"] for change in await events_of(sql)]

    async def test_leaves_rows_that_somebody_holds_for_the_next_time(
        self, scheduler: Scheduler, desk: Desk, sql: asyncpg.Connection, database_url: str
    ) -> None:
        await simulation_of(sql, desk, 100)
        await simulation_of(sql, desk, 101)
        holder = await asyncpg.connect(database_url)
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("SELECT FROM simulations ORDER BY timestamp LIMIT 1 FOR UPDATE")

        await scheduler.look()

        assert await sql.fetchval("SELECT count(*) FROM simulations") == 1
        await transaction.rollback()
        await holder.close()

    async def test_counts_what_an_attempt_that_was_cut_off_has_removed(
        self, start: Start, desk: Desk, sql: asyncpg.Connection
    ) -> None:
        for days in range(100, 108):
            await simulation_of(sql, desk, days)

        async def dies(run: Run) -> None:
            def count(done: Any) -> None:
                if done["simulations"] == 2 * BATCH:
                    raise RuntimeError("killed")

            run.report = count
            await clean_up(run, SETTINGS, batch=BATCH)

        await start(dies, name="cleanup").look()
        assert await sql.fetchval("SELECT count(*) FROM simulations") == 2
        assert await events_of(sql) == []
        await sql.execute("UPDATE job_runs SET due_at = now()")

        await cleaning(start).look()

        assert [c["after"]["rows"] for c in await events_of(sql) if c["after"]["table"] == "simulations"] == [8]

    async def test_says_beforehand_what_it_would_remove(
        self, scheduler: Scheduler, desk: Desk, sql: asyncpg.Connection, sessions: SessionMaker
    ) -> None:
        await a_partition(sql, "bot_logs", 98)
        for days in (98, 500, 1):
            await log_of(sql, desk, days)
        await simulation_of(sql, desk, 100)

        async with sessions() as session:
            foreseen = await would_remove(session, SETTINGS, None)

        await scheduler.look()
        removed = {change["after"]["table"]: change["after"]["rows"] for change in await events_of(sql)}
        assert foreseen == removed == {**dict.fromkeys(CLEANED, 0), "bot_logs": 2, "simulations": 1}


class TestRunCleanup:
    async def test_is_answered_at_once_and_done_by_the_job_which_names_it_as_its_cause(
        self, start: Start, direct: Direct, desk: Desk, sql: asyncpg.Connection
    ) -> None:
        await log_of(sql, desk, 20)
        message = received(RunCleanup(older_than_days=10))

        [reply] = await direct.executor.execute([message])
        [again] = await direct.executor.execute([message])

        assert (reply.ok, reply.data["job"], again.meta.duplicate) == (True, "cleanup", True)
        assert await sql.fetchval("SELECT count(*) FROM bot_logs") == 1
        instance = cleaning(start, schedule_daily=True)
        assert await instance.look()
        assert not await instance.look()
        assert await sql.fetchval("SELECT count(*) FROM bot_logs") == 0
        causes = await sql.fetch("SELECT DISTINCT causation_ids FROM outbox WHERE type = 'cleanup.completed'")
        assert [[str(cause) for cause in row[0]] for row in causes] == [[message.message_id]]
        days = {change["after"]["table"]: change["after"]["older_than_days"] for change in await events_of(sql)}
        assert days == {**dict.fromkeys(CLEANED, 10), "inbox": 7}

    async def test_is_refused_for_today(self, direct: Direct) -> None:
        [reply] = await direct.executor.execute(
            [received(RunCleanup.model_construct(_fields_set={"older_than_days"}, older_than_days=0))]
        )

        assert reply.error is not None
        assert (reply.error.code, reply.error.field) == ("validation", "older_than_days")


def cleaning(start: Start, *, schedule_daily: bool = False, **changes: Any) -> Scheduler:
    """An instance that cleans up with other settings."""
    settings = SETTINGS.model_copy(update=changes)

    async def work(run: Run) -> None:
        await clean_up(run, settings)

    more = {"schedule": Daily(settings.cleanup_at)} if schedule_daily else {}
    return start(work, name="cleanup", announce=announcement(settings), **more)


async def events_of(sql: asyncpg.Connection) -> list[dict[str, Any]]:
    """The changes of all `cleanup.completed` that wait to be published."""
    rows = await sql.fetch("SELECT changes FROM outbox WHERE type = 'cleanup.completed' ORDER BY id")
    return [change for row in rows for change in json.loads(row[0])]
