"""Runs jobs when they are due, each by one instance at a time.

What is due stands in a table, so a run that was missed while nobody was there is made up for, once, and one that was
cut off is taken up by the next instance. Jobs work in short steps of a transaction each, and a step is only taken by
whoever holds the job's lease. All times are the database's.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from typing import Any, Final
from uuid import UUID, uuid4

import structlog
from redis.exceptions import RedisError
from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from service import lease
from service.database import SessionMaker
from service.errors import is_transient, reason
from service.models import JobRun
from service.observability import JOB_LAST_ROWS, JOB_LAST_SECONDS, JOB_LAST_SUCCESS, JOB_RUNS
from service.outbox import set_cause

log = structlog.get_logger()

_POLL_SECONDS: Final = 1.0
_FIRST_RETRY: Final = timedelta(seconds=10)
_LAST_RETRY: Final = timedelta(minutes=15)
_JITTER: Final = 0.1
"""Share of an interval, so that jobs of services started together do not stay together."""
_SPREAD: Final = timedelta(minutes=1)
"""The same for jobs at a time of day, where everybody's jobs run."""


@dataclass(frozen=True)
class Every:
    """At once, and then in intervals."""

    interval: timedelta

    def first(self, now: datetime) -> datetime:
        return now

    def after(self, now: datetime) -> datetime:
        return now + self.interval * random.uniform(1 - _JITTER, 1)


@dataclass(frozen=True)
class Daily:
    """Once a day, at a time in UTC."""

    at: time_of_day

    def first(self, now: datetime) -> datetime:
        return self.after(now)

    def after(self, now: datetime) -> datetime:
        today = datetime.combine(now.astimezone(UTC).date(), self.at, UTC)
        return (today if today > now else today + timedelta(days=1)) + _SPREAD * random.random()


class LeaseLost(Exception):  # noqa: N818 - another instance goes on
    """Another instance has taken this job over."""


class Busy(Exception):  # noqa: N818 - an answer
    """Another instance runs this job at the moment."""


@dataclass
class Run:
    """One run of a job: what it was asked for, what it has done, and the transactions to do it in."""

    sessions: SessionMaker
    job: str
    holder: UUID
    run_id: int
    parameters: dict[str, Any] = field(default_factory=dict)
    message_id: UUID | None = None
    done: Counter[str] = field(default_factory=Counter)
    """How much, by kind; together with what an attempt that was cut off had done."""
    report: Callable[[Counter[str]], None] = lambda _: None

    @asynccontextmanager
    async def step(self) -> AsyncIterator[AsyncSession]:
        """A short transaction, committed with the progress made in it; raises `LeaseLost` if it is not ours to take.

        What is announced in it names the command that asked for the run as its cause.
        """
        before = self.done.copy()
        try:
            async with self.sessions.begin() as session:
                if not await session.scalar(select(lease.is_held(self.job, self.holder))):
                    raise LeaseLost(self.job)  # noqa: TRY301 - it takes back the progress like any other failure
                set_cause(session, self.message_id)
                yield session
                if self.done != before:
                    await session.execute(
                        update(JobRun).where(JobRun.run_id == self.run_id).values(progress=dict(self.done))
                    )
        except BaseException:
            self.done = before
            raise
        if self.done != before:
            self.report(self.done)


@dataclass(frozen=True)
class Job:
    """Something that is done by the clock."""

    name: str
    schedule: Every | Daily
    work: Callable[[Run], Awaitable[None]]
    """Does it in steps; after a failure it is called again and goes on with what is left."""
    announce: Callable[[Run, AsyncSession], None] = lambda _, __: None
    """Records, in the transaction that ends a run, what others shall know of it."""


class Scheduler:
    """Runs jobs in this process, as far as no other instance does."""

    def __init__(
        self, sessions: SessionMaker, jobs: Sequence[Job], *, duration: timedelta = timedelta(seconds=15)
    ) -> None:
        """``duration`` is how long after its last sign of life an instance loses the job it runs."""
        self._sessions = sessions
        self._jobs = {job.name: job for job in jobs}
        self._duration = duration
        self._holder = uuid4()

    async def run(self) -> None:
        """Run what is due until cancelled. No failure of a job, and no outage, ends it."""
        pause = _POLL_SECONDS
        while True:
            try:
                while await self.look():
                    pass
                pause = _POLL_SECONDS
            except Exception as error:
                log.warning("jobs_wait", error=reason(error), exc_info=None if _is_outage(error) else error)
                pause = min(pause * 2, 30.0)
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))

    async def look(self) -> bool:
        """Run the first thing that is due and that nobody else runs; gives whether there was one."""
        async with self._sessions.begin() as session:
            await self._schedule(session)
            due = (JobRun.due_at <= func.clock_timestamp(), JobRun.job.in_(self._jobs))
            waiting = (await session.execute(select(JobRun.run_id, JobRun.job).where(*due).order_by("due_at"))).all()
            await _show_last_successes(session)
        for run_id, job in waiting:
            if (run := await self._take(job, run_id)) is not None:
                await self._carry_out(run)
                return True
        return False

    async def run_now(
        self, job: str, parameters: dict[str, Any], *, report: Callable[[Counter[str]], None] = lambda _: None
    ) -> Counter[str]:
        """Run a job now, whatever its schedule; gives what it did. Raises `Busy` if another instance runs it."""
        async with self._sessions.begin() as session:
            if await lease.take(session, job, self._holder, self._duration) is None:
                raise Busy(job)
            asked = JobRun(job=job, recurs=False, parameters=parameters)
            session.add(asked)
            await session.flush()
        run = Run(self._sessions, job, self._holder, asked.run_id, parameters, report=report)
        try:
            error = await self._carry_out(run, is_logged=False)
        finally:
            # Whoever asked is told that it failed, or broke it off: nobody is to try again for them.
            async with self._sessions.begin() as session:
                await session.execute(delete(JobRun).where(JobRun.run_id == run.run_id))
        if error is not None:
            raise error
        return run.done

    async def _schedule(self, session: AsyncSession) -> None:
        """Have a row for each job of this version."""
        known = set(await session.scalars(select(JobRun.job).where(JobRun.recurs)))
        if missing := [job for name, job in self._jobs.items() if name not in known]:
            now = await _now(session)
            rows = [{"job": job.name, "recurs": True, "due_at": job.schedule.first(now)} for job in missing]
            await session.execute(insert(JobRun).values(rows).on_conflict_do_nothing())

    async def _take(self, job: str, run_id: int) -> Run | None:
        """The run, if nobody else has the job and it is still due: another instance may just have finished it."""
        async with self._sessions.begin() as session:
            if await lease.take(session, job, self._holder, self._duration) is None:
                return None
            row = await session.scalar(
                select(JobRun).where(JobRun.run_id == run_id, JobRun.due_at <= func.clock_timestamp())
            )
            if row is None:
                await lease.release(session, job, self._holder)
                return None
        done = Counter(row.progress or {})
        return Run(self._sessions, job, self._holder, run_id, row.parameters, row.message_id, done)

    async def _carry_out(self, run: Run, *, is_logged: bool = True) -> Exception | None:
        """Do it and note what came of it; gives the failure, if it failed."""
        started = time.perf_counter()
        try:
            await self._while_leased(run)
            seconds = time.perf_counter() - started
            await self._note_success(run, seconds)
        except LeaseLost:
            log.warning("job_taken_over", job=run.job)
            JOB_RUNS.labels(job=run.job, outcome="taken_over").inc()
            return Busy(run.job)
        except Exception as error:
            if is_logged:
                if _is_outage(error):
                    log.warning("job_waits", job=run.job, error=reason(error))  # it is tried again
                else:
                    log.exception("job_failed", job=run.job, error=reason(error))
            JOB_RUNS.labels(job=run.job, outcome="failed").inc()
            await self._note_failure(run, error)
            return error
        except BaseException:
            # The process ends: let another instance go on at once.
            with suppress(Exception):
                async with asyncio.timeout(2), self._sessions.begin() as session:
                    await lease.release(session, run.job, self._holder)
            raise
        log.info("job_done", job=run.job, seconds=round(seconds, 3), **run.done)
        JOB_RUNS.labels(job=run.job, outcome="done").inc()
        return None

    async def _while_leased(self, run: Run) -> None:
        """Do the work, renewing the lease meanwhile; break it off if the lease is lost."""
        work = asyncio.ensure_future(self._jobs[run.job].work(run))
        try:
            while not (await asyncio.wait({work}, timeout=self._duration.total_seconds() / 4))[0]:
                async with self._sessions.begin() as session:
                    if await lease.take(session, run.job, self._holder, self._duration) is None:
                        raise LeaseLost(run.job)
            await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _note_success(self, run: Run, seconds: float) -> None:
        job = self._jobs[run.job]
        async with run.step() as session:
            job.announce(run, session)
            now = await _now(session)
            await session.execute(delete(JobRun).where(JobRun.run_id == run.run_id, ~JobRun.recurs))
            await session.execute(
                update(JobRun)
                .where(JobRun.run_id == run.run_id)
                .values(
                    due_at=job.schedule.after(now),
                    progress=None,
                    failures=0,
                    error=None,
                    succeeded_at=now,
                    seconds=seconds,
                    rows=run.done.total(),
                )
            )
            await lease.release(session, run.job, self._holder)

    async def _note_failure(self, run: Run, error: Exception) -> None:
        with suppress(LeaseLost):
            async with run.step() as session:
                failures = await session.scalar(select(JobRun.failures).where(JobRun.run_id == run.run_id)) or 0
                wait = min(_FIRST_RETRY * 2 ** min(failures, 10), _LAST_RETRY) * random.uniform(0.5, 1)
                await session.execute(
                    update(JobRun)
                    .where(JobRun.run_id == run.run_id)
                    .values(due_at=func.clock_timestamp() + wait, failures=failures + 1, error=reason(error))
                )
                await lease.release(session, run.job, self._holder)


def _is_outage(error: Exception) -> bool:
    return isinstance(error, RedisError) or is_transient(error)


async def _now(session: AsyncSession) -> datetime:
    now: datetime = (await session.execute(select(func.clock_timestamp()))).scalar_one()
    return now


async def _show_last_successes(session: AsyncSession) -> None:
    """Every instance tells the same of the jobs, whoever ran them."""
    for last in await session.scalars(select(JobRun).where(JobRun.recurs)):
        if last.succeeded_at is not None:
            JOB_LAST_SUCCESS.labels(job=last.job).set(last.succeeded_at.timestamp())
            JOB_LAST_SECONDS.labels(job=last.job).set(last.seconds or 0)
            JOB_LAST_ROWS.labels(job=last.job).set(last.rows or 0)
