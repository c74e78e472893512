"""How database and cache are, in the manual's shapes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from contracts.health import (
    CheckDatabaseHealth,
    CollectPerformanceMetrics,
    GetCacheHealth,
    MonitorConnectionHealth,
)
from contracts.leased_cache import connect
from service.config import LibrarySettings
from service.database import get_async_session_maker, with_redis
from service.lookups import health
from service.unit_of_work import UnitOfWork


async def check_database_health() -> dict[str, Any]:
    """Whether database and cache answer, and how fast; ``errors`` says what does not, and nothing is raised."""
    async with _reads() as reads:
        return (await health.check_database_health(CheckDatabaseHealth(), reads)).model_dump(exclude_none=True)


async def get_cache_health() -> dict[str, Any]:
    """How Redis is; hits and misses are those of this process."""
    async with _reads() as reads:
        return (await health.get_cache_health(GetCacheHealth(), reads)).model_dump(exclude_none=True)


async def monitor_connection_health() -> dict[str, int]:
    """The connections of this process to the database."""
    async with _reads() as reads:
        return (await health.monitor_connection_health(MonitorConnectionHealth(), reads)).model_dump()


async def collect_performance_metrics(time_window: int = 300) -> dict[str, Any]:
    """How many users, bots, orders and trades are of the last ``time_window`` seconds."""
    async with _reads() as reads:
        found = await health.collect_performance_metrics(CollectPerformanceMetrics(time_window=time_window), reads)
    return {**found.model_dump(exclude_none=True), "collected_at": found.collected_at.isoformat()}


@asynccontextmanager
async def _reads() -> AsyncIterator[UnitOfWork]:
    settings = LibrarySettings.read()
    redis = connect(settings.redis_url.get_secret_value(), timeout=settings.cache_timeout)
    try:
        async with get_async_session_maker()() as session:
            session.info.update(with_redis(redis))
            yield UnitOfWork(session)
    finally:
        await redis.aclose()
