"""Lookups of how the service and its servers are; never cached."""

import time
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.pool import QueuePool

from contracts.health import (
    CacheHealth,
    CheckDatabaseHealth,
    CollectPerformanceMetrics,
    ConnectionPool,
    DatabaseHealth,
    GetCacheHealth,
    MonitorConnectionHealth,
    PerformanceMetrics,
    QueryPerformance,
    TableMetrics,
)
from service.connections import invalidated_connections
from service.database import redis_of
from service.errors import reason
from service.observability import CACHE_REQUESTS
from service.registry import LookupTable
from service.repositories import HealthRepository
from service.unit_of_work import UnitOfWork

lookups = LookupTable()

_SECONDS_PER_MINUTE: Final = 60


@lookups.answers(CheckDatabaseHealth, connects=False)
async def check_database_health(_: CheckDatabaseHealth, reads: UnitOfWork) -> DatabaseHealth:
    errors: list[str] = []
    found: dict[str, Any] = {"database": "unhealthy", "cache": "unhealthy"}
    latencies: dict[str, float] = {}
    try:
        await reads.session.connection(execution_options={"postgresql_readonly": True})
        latencies["db_latency_ms"] = await _milliseconds(reads.session.execute(text("SELECT 1")))
        health = HealthRepository(reads.session)
        found["outbox_lag_seconds"] = await health.outbox_lag()
        found["dead_letters"] = await health.open_dead_letters()
        found["database"] = "healthy"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what was asked for
        errors.append(f"Database: {reason(error)}")
    try:
        latencies["cache_latency_ms"] = await _milliseconds(redis_of(reads.session).ping())
        found["cache"] = "healthy"
    except Exception as error:  # noqa: BLE001 - as above
        errors.append(f"Cache: {reason(error)}")
    performance = QueryPerformance(**latencies)
    return DatabaseHealth(**found, connection_pool=_pool(reads), query_performance=performance, errors=errors)


@lookups.answers(GetCacheHealth, connects=False)
async def get_cache_health(_: GetCacheHealth, reads: UnitOfWork) -> CacheHealth:
    try:
        redis = redis_of(reads.session)
        await redis.ping()
        info = await redis.info()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what was asked for
        return CacheHealth(redis_status="unhealthy", error=reason(error))
    return CacheHealth(
        redis_status="healthy",
        connected_clients=info.get("connected_clients", 0),
        used_memory=info.get("used_memory_human", "unknown"),
        # Redis counts for all its users together, and lookups of other things too.
        cache_hits=_reads_with("hit") + _reads_with("absent"),
        cache_misses=_reads_with("miss"),
        uptime=info.get("uptime_in_seconds", 0),
    )


@lookups.answers(MonitorConnectionHealth, connects=False)
async def monitor_connection_health(_: MonitorConnectionHealth, reads: UnitOfWork) -> ConnectionPool:
    return _pool(reads)


@lookups.answers(CollectPerformanceMetrics)
async def collect_performance_metrics(lookup: CollectPerformanceMetrics, reads: UnitOfWork) -> PerformanceMetrics:
    health = HealthRepository(reads.session)
    found = await health.new_records(timedelta(seconds=lookup.time_window))
    minutes = lookup.time_window / _SECONDS_PER_MINUTE
    return PerformanceMetrics(
        time_window_seconds=lookup.time_window,
        table_metrics={
            table: TableMetrics(error=number)
            if isinstance(number, str)
            else TableMetrics(new_records=number, rate_per_minute=number / minutes)
            for table, number in found.items()
        },
        collected_at=await health.now(),
    )


async def _milliseconds(work: Any) -> float:
    started = time.perf_counter()
    await work
    return (time.perf_counter() - started) * 1_000


def _pool(reads: UnitOfWork) -> ConnectionPool:
    engine = reads.session.get_bind().engine
    pool = engine.pool
    assert isinstance(pool, QueuePool)  # noqa: S101 - `build_engine` makes no other
    return ConnectionPool(
        pool_size=pool.size(),
        checked_in=pool.checkedin(),
        checked_out=pool.checkedout(),
        # It counts from minus the pool's size on.
        overflow=max(0, pool.overflow()),
        invalid=invalidated_connections(engine),
    )


def _reads_with(result: str) -> int:
    samples = (sample for metric in CACHE_REQUESTS.collect() for sample in metric.samples)
    name = "persistence_cache_requests_total"
    return round(sum(each.value for each in samples if each.name == name and each.labels["result"] == result))
