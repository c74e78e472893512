"""What tests of jobs start from."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from service.database import SessionMaker
from service.jobs.scheduler import Every, Job, Run, Scheduler

Work = Callable[[Run], Awaitable[None]]


@pytest.fixture
async def sql(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection past the service."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


Start = Callable[..., Scheduler]


@pytest.fixture
def start(sessions: SessionMaker) -> Start:
    """Makes an instance that runs one job, as often as a test likes."""

    def start(
        work: Work, *, name: str = "work", interval: float = 3_600, lease: float = 15, **more: Any
    ) -> Scheduler:
        schedule = more.pop("schedule", Every(timedelta(seconds=interval)))
        job = Job(name, schedule, work, **more)
        return Scheduler(sessions, [job], duration=timedelta(seconds=lease))

    return start
