"""Jobs are run when they are due, once, by one instance, and again if they fail."""

import asyncio
from datetime import UTC, datetime, time, timedelta

import asyncpg
import pytest
from structlog.testing import capture_logs

from contracts.certificate_watch import UncertifiedError
from service.database import SessionMaker
from service.jobs import Busy
from service.jobs.scheduler import Daily, Every, LeaseLost, Run
from service.observability import REGISTRY
from tests.jobs.conftest import Start


async def counting(run: Run) -> None:
    """One step that does one thing."""
    async with run.step():
        run.done["things"] += 1


class TestASchedule:
    @pytest.mark.parametrize(
        ("now", "day"),
        [
            pytest.param("2026-03-01T01:59:00+00:00", 1, id="today, if that is still to come"),
            pytest.param("2026-03-01T02:00:00+00:00", 2, id="tomorrow, if it has just been"),
            pytest.param("2026-03-01T23:30:00-05:00", 3, id="by the UTC day, whatever the offset"),
        ],
    )
    def test_of_once_a_day_is(self, now: str, day: int) -> None:
        due = Daily(time(2)).after(datetime.fromisoformat(now))

        assert timedelta(0) <= due - datetime(2026, 3, day, 2, tzinfo=UTC) < timedelta(minutes=1)

    def test_of_an_interval_begins_at_once_and_comes_a_little_early(self) -> None:
        now, every = datetime.now(UTC), Every(timedelta(minutes=5))

        assert every.first(now) == now
        assert timedelta(minutes=4, seconds=30) <= every.after(now) - now <= timedelta(minutes=5)

    async def test_of_once_a_day_does_not_begin_with_what_nobody_has_missed(self, start: Start) -> None:
        assert not await start(counting, schedule=Daily(time(2))).look()


class TestAnInstance:
    async def test_runs_what_is_due_and_then_not_until_it_is_due_again(
        self, start: Start, sql: asyncpg.Connection
    ) -> None:
        scheduler = start(counting)

        assert await scheduler.look()
        assert not await scheduler.look()

        run = await sql.fetchrow("SELECT *, due_at - clock_timestamp() AS wait FROM job_runs")
        assert (run["rows"], run["failures"], run["error"], run["progress"]) == (1, 0, None, None)
        assert run["succeeded_at"] <= datetime.now(UTC) + timedelta(seconds=1)
        assert timedelta(minutes=50) < run["wait"] <= timedelta(hours=1)

    async def test_makes_up_for_many_missed_runs_with_one(self, start: Start, sql: asyncpg.Connection) -> None:
        scheduler = start(counting, schedule=Daily(time(2)))
        await scheduler.look()
        await sql.execute("UPDATE job_runs SET due_at = now() - interval '9 days'")

        assert await scheduler.look()
        assert not await scheduler.look()

        assert await sql.fetchval("SELECT due_at > now() FROM job_runs")

    async def test_shares_each_run_with_the_others(self, start: Start) -> None:
        ran = 0

        async def work(run: Run) -> None:
            nonlocal ran
            ran += 1
            await asyncio.sleep(0.1)
            await counting(run)

        instances = [start(work) for _ in range(4)]

        for _ in range(2):
            await asyncio.gather(*(instance.look() for instance in instances))

        assert ran == 1

    async def test_goes_on_with_its_other_work_while_a_job_fails(self, start: Start, sql: asyncpg.Connection) -> None:
        attempts = 0

        async def work(run: Run) -> None:
            nonlocal attempts
            attempts += 1
            await counting(run)
            if attempts < 3:
                raise RuntimeError("no luck")

        before = REGISTRY.get_sample_value("persistence_job_runs_total", {"job": "work", "outcome": "failed"}) or 0
        scheduler = start(work)
        for failures in (1, 2):
            assert await scheduler.look()
            assert not await scheduler.look()
            run = await sql.fetchrow("SELECT failures, error, due_at > clock_timestamp() AS later FROM job_runs")
            assert tuple(run) == (failures, "RuntimeError: no luck", True)
            await sql.execute("UPDATE job_runs SET due_at = now()")

        await scheduler.look()

        run = await sql.fetchrow("SELECT failures, error, rows FROM job_runs")
        assert tuple(run) == (0, None, 3)
        failed = REGISTRY.get_sample_value("persistence_job_runs_total", {"job": "work", "outcome": "failed"})
        assert failed == before + 2

    @pytest.mark.parametrize(
        ("failure", "level"),
        [(UncertifiedError("nobody certifies it"), "warning"), (RuntimeError("no luck"), "error")],
    )
    async def test_alarms_nobody_of_an_outage_that_passes(self, start: Start, failure: Exception, level: str) -> None:
        async def fails(_: Run) -> None:
            raise failure

        with capture_logs() as lines:
            assert await start(fails).look()

        [line] = [line for line in lines if str(failure) in line.get("error", "")]
        assert (line["log_level"], line["job"]) == (level, "work")

    async def test_shows_when_a_job_was_last_done_whoever_did_it(self, start: Start, sql: asyncpg.Connection) -> None:
        await start(counting, name="shown").look()

        await start(counting, name="shown").look()

        shown = REGISTRY.get_sample_value("persistence_job_last_success_timestamp_seconds", {"job": "shown"})
        assert shown == pytest.approx((await sql.fetchval("SELECT succeeded_at FROM job_runs")).timestamp())

    async def test_waits_out_an_outage(self, start: Start, sql: asyncpg.Connection) -> None:
        scheduler = start(counting)
        await sql.execute("ALTER TABLE job_runs RENAME TO away")
        running = asyncio.create_task(scheduler.run())
        await asyncio.sleep(0.2)
        assert not running.done()

        await sql.execute("ALTER TABLE away RENAME TO job_runs")

        async with asyncio.timeout(10):
            while not await sql.fetchval("SELECT count(*) FROM job_runs WHERE rows = 1"):
                await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class TestAnInstanceThatGoesAway:
    """In the middle of a job."""

    async def test_by_a_crash_is_followed_by_another_that_goes_on_where_it_was(
        self, start: Start, sql: asyncpg.Connection
    ) -> None:
        started = asyncio.Event()

        async def dies(run: Run) -> None:
            await counting(run)
            started.set()
            await asyncio.sleep(60)

        crashed = asyncio.create_task(start(dies, lease=0.5).look())
        await started.wait()
        other = start(counting, lease=0.5)
        assert not await other.look()
        # Nothing of the first one is left: neither does it renew, nor does it release.
        await sql.execute("UPDATE leases SET holder = gen_random_uuid() WHERE name = 'work'")
        await asyncio.sleep(0.6)

        assert await other.look()

        assert await sql.fetchval("SELECT rows FROM job_runs") == 2
        crashed.cancel()
        await asyncio.gather(crashed, return_exceptions=True)

    async def test_by_a_stop_leaves_the_job_to_another_at_once(self, start: Start) -> None:
        started = asyncio.Event()

        async def long(run: Run) -> None:
            started.set()
            await asyncio.sleep(60)

        stopped = asyncio.create_task(start(long).look())
        await started.wait()
        stopped.cancel()
        await asyncio.gather(stopped, return_exceptions=True)

        assert await start(counting).look()

    async def test_and_wakes_up_does_nothing_more(
        self, start: Start, sql: asyncpg.Connection, sessions: SessionMaker
    ) -> None:
        asleep, awake = asyncio.Event(), asyncio.Event()
        failure: list[BaseException] = []

        async def sleeps(run: Run) -> None:
            asleep.set()
            await awake.wait()
            try:
                await counting(run)
            except LeaseLost as error:
                failure.append(error)
                raise

        first = asyncio.create_task(start(sleeps, lease=60).look())
        await asleep.wait()
        await sql.execute("UPDATE leases SET expires_at = now() - interval '1 second' WHERE name = 'work'")
        assert await start(counting).look()
        awake.set()
        await first

        assert len(failure) == 1
        assert await sql.fetchval("SELECT rows FROM job_runs") == 1

    async def test_breaks_off_a_long_job_when_it_has_lost_the_lease(
        self, start: Start, sql: asyncpg.Connection
    ) -> None:
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def long(run: Run) -> None:
            started.set()
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()

        losing = asyncio.create_task(start(long, lease=0.4).look())
        await started.wait()
        await sql.execute(
            "UPDATE leases SET holder = gen_random_uuid(), expires_at = now() + interval '1 hour' WHERE name = 'work'"
        )

        async with asyncio.timeout(5):
            await losing
        assert cancelled.is_set()


class TestARunByHand:
    async def test_is_done_at_once_and_leaves_the_schedule_alone(self, start: Start, sql: asyncpg.Connection) -> None:
        scheduler = start(counting, schedule=Daily(time(2)))
        await scheduler.look()
        due = await sql.fetchval("SELECT due_at FROM job_runs")
        told: list[int] = []

        done = await scheduler.run_now("work", {}, report=lambda done: told.append(done.total()))

        assert done == {"things": 1}
        assert told == [1]
        assert await sql.fetch("SELECT due_at FROM job_runs") == [(due,)]

    async def test_is_refused_while_another_instance_runs_the_same_job(self, start: Start) -> None:
        started = asyncio.Event()

        async def long(run: Run) -> None:
            started.set()
            await asyncio.sleep(60)

        other = asyncio.create_task(start(long).look())
        await started.wait()

        with pytest.raises(Busy):
            await start(counting).run_now("work", {})

        other.cancel()
        await asyncio.gather(other, return_exceptions=True)

    async def test_that_fails_says_so_and_is_not_tried_again(self, start: Start, sql: asyncpg.Connection) -> None:
        async def fails(run: Run) -> None:
            raise RuntimeError("no luck")

        with pytest.raises(RuntimeError, match="no luck"):
            await start(fails).run_now("work", {})

        assert await sql.fetchval("SELECT count(*) FROM job_runs") == 0
