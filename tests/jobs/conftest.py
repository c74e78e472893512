"""What tests of jobs start from."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from service.database import SessionMaker
from service.jobs.scheduler import Every, Job, Run, Scheduler

Work = Callable[[Run], Awaitable[None]]


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
