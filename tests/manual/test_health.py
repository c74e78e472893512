"""How database and cache are, as the manual asks."""

import pytest

from service.database import get_async_session
from service.library.health import (
    check_database_health,
    collect_performance_metrics,
    get_cache_health,
    monitor_connection_health,
)

POOL = {"pool_size", "checked_in", "checked_out", "overflow", "invalid"}


@pytest.mark.manual("H1", "check_database_health")
async def test_check_database_health(library: None) -> None:
    health = await check_database_health()

    assert (health["database"], health["cache"], health["errors"]) == ("healthy", "healthy", [])
    assert set(health["connection_pool"]) == POOL
    assert set(health["query_performance"]) == {"db_latency_ms", "cache_latency_ms"}
    assert (health["outbox_lag_seconds"], health["dead_letters"]) == (0.0, 0)


@pytest.mark.manual("H2", "collect_performance_metrics", differs="X22: a statement for each table")
async def test_collect_performance_metrics(market: object) -> None:
    metrics = await collect_performance_metrics(120)

    assert metrics["time_window_seconds"] == 120
    assert metrics["table_metrics"] == {
        "users": {"new_records": 1, "rate_per_minute": 0.5},
        "bots": {"new_records": 1, "rate_per_minute": 0.5},
        "orders": {"new_records": 0, "rate_per_minute": 0.0},
        "trades": {"new_records": 0, "rate_per_minute": 0.0},
    }
    assert metrics["collected_at"].endswith("+00:00")


@pytest.mark.manual("H3", "pool statistics and cache health")
async def test_pool_statistics_and_cache_health(library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")

    health, cache = await check_database_health(), await get_cache_health()

    assert (health["database"], health["cache"]) == ("healthy", "unhealthy")
    assert [error.partition(":")[0] for error in health["errors"]] == ["Cache"]
    assert (set(cache), cache["redis_status"]) == ({"redis_status", "error"}, "unhealthy")


@pytest.mark.manual("F10", "monitor_connection_health", differs="X20: invalid is counted by an event of the pool")
async def test_monitor_connection_health(library: None) -> None:
    async with get_async_session() as session:
        connection = await session.connection()
        used = await monitor_connection_health()
        await connection.invalidate()
        await session.rollback()

    after = await monitor_connection_health()
    assert set(used) == POOL
    assert (used["checked_out"], used["overflow"], used["invalid"]) == (1, 0, 0)
    assert (after["checked_out"], after["invalid"]) == (0, 1)


@pytest.mark.manual("F15", "get_cache_health", differs="X49: hits and misses are those of this process")
async def test_get_cache_health(library: None) -> None:
    health = await get_cache_health()

    assert set(health) == {
        "redis_status",
        "connected_clients",
        "used_memory",
        "cache_hits",
        "cache_misses",
        "uptime",
    }
    assert health["redis_status"] == "healthy"
