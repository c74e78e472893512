"""What the service does by the clock: the table of contents."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Final

from contracts.cancellation import end
from contracts.certificate_watch import CertificateWatch
from contracts.leased_cache import LeasedCache, connect
from service.config import LibrarySettings
from service.database import build_session_maker
from service.engine import build_engine
from service.jobs.cleanup import announcement, clean_up, retention
from service.jobs.partitions import make_partitions
from service.jobs.scheduler import Busy, Daily, Every, Job, Run, Scheduler
from service.jobs.warming import warm

__all__ = ["NAMES", "Busy", "jobs", "run", "scheduler"]

NAMES: Final = ("cleanup", "partitions", "warming")

_COMMAND_SECONDS: Final = 60.0
_REDIS_SECONDS: Final = 2.0
"""A job may wait longer than a lookup does."""
_CERTIFICATE_SECONDS: Final = 5.0


def jobs(settings: LibrarySettings, cache: LeasedCache, watch: CertificateWatch) -> list[Job]:
    """Every job, as these settings want it."""
    kept = retention(settings)
    return [
        Job("cleanup", Daily(settings.cleanup_at), partial(clean_up, settings=settings), announcement(settings)),
        Job("partitions", Every(timedelta(hours=1)), partial(make_partitions, retention=kept)),
        Job("warming", Every(timedelta(seconds=settings.warming_interval)), partial(_warm, cache=cache, watch=watch)),
    ]


@asynccontextmanager
async def scheduler(settings: LibrarySettings) -> AsyncIterator[Scheduler]:
    """A scheduler with connections of its own, so that no job keeps a lane or a lookup waiting for one."""
    own = {"db_pool_size": 2, "db_pool_max_overflow": 0, "db_command_timeout": _COMMAND_SECONDS}
    engine = build_engine(settings.model_copy(update=own), application_name="persistence-jobs")
    redis = connect(settings.redis_url.get_secret_value(), timeout=_REDIS_SECONDS)
    watch = CertificateWatch(redis, namespace=settings.cache_namespace)
    cache = LeasedCache(
        redis,
        namespace=settings.cache_namespace,
        certificate=watch.current,
        ttl=settings.cache_ttl,
        timeout=_REDIS_SECONDS,
    )
    watching = asyncio.create_task(watch.run(), name="jobs watch the certificate")
    try:
        yield Scheduler(build_session_maker(engine), jobs(settings, cache, watch))
    finally:
        await end(watching)
        with suppress(Exception):
            await redis.aclose()
        await engine.dispose()


async def _warm(run: Run, *, cache: LeasedCache, watch: CertificateWatch) -> None:
    """At the start of the service it takes a moment until the cache may be filled; without it there is no success."""
    await watch.wait(_CERTIFICATE_SECONDS)
    await warm(run, cache)


async def run(settings: LibrarySettings) -> None:
    """Run what is due until cancelled."""
    async with scheduler(settings) as running:
        await running.run()
