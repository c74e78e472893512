"""Corrections of what runs by the clock and of what tells how the service is."""

import asyncio
from datetime import UTC, datetime, time, timedelta
from typing import Any

import pytest

from contracts import GetUser
from contracts.leased_cache import connect
from service import (
    OrderRepository,
    UserRepository,
    check_database_health,
    collect_performance_metrics,
    get_async_session,
    get_cache_health,
    get_engine,
    monitor_connection_health,
)
from service.database import SessionMaker
from service.jobs.scheduler import Daily, Every, Job, Run, Scheduler
from service.lookup_server import LookupServer
from tests.builders import Desk
from tests.manual.conftest import Market, asked


@pytest.mark.manual("X20", "pool statistics without pool.invalid()")
async def test_the_pool_counts_what_was_thrown_away(library: None) -> None:
    async with get_engine().connect() as connection:
        before = await monitor_connection_health()
        await connection.invalidate()
    after = await monitor_connection_health()

    assert set(before) == {"pool_size", "checked_in", "checked_out", "overflow", "invalid"}
    assert (before["checked_out"], before["invalid"], after["invalid"]) == (1, 0, 1)


@pytest.mark.manual("X22", "metrics of each table are its own")
async def test_each_table_has_its_own_number(market: Market) -> None:
    async with get_async_session() as session:
        for number in range(2):
            await UserRepository(session).add_user({"mail": f"{number}@company.com"})
        for _ in range(5):
            await OrderRepository(session).create(market.order)

    metrics = await collect_performance_metrics(time_window=300)

    new = {table: found["new_records"] for table, found in metrics["table_metrics"].items()}
    assert new == {"users": 3, "bots": 1, "orders": 5, "trades": 0}
    assert metrics["table_metrics"]["orders"]["rate_per_minute"] == 1


@pytest.mark.manual("X36", "jobs run once, in small steps")
async def test_a_job_that_is_due_is_run_by_one_instance(sessions: SessionMaker) -> None:
    runs = []

    async def work(run: Run) -> None:
        runs.append(run.run_id)
        await asyncio.sleep(0.1)

    instances = [Scheduler(sessions, [Job("work", Every(timedelta(hours=1)), work)]) for _ in range(3)]
    await asyncio.gather(*(instance.look() for instance in instances))

    assert len(runs) == 1
    noon = datetime(2024, 1, 1, 12, tzinfo=UTC)
    assert timedelta(0) <= Daily(time(2)).after(noon) - datetime(2024, 1, 2, 2, tzinfo=UTC) <= timedelta(minutes=1)


@pytest.mark.manual("X49", "latency by a steady clock, hits by key class")
async def test_hits_are_those_of_the_service_alone(server: LookupServer, desk: Desk, redis_url: str) -> None:
    before = await get_cache_health()
    for _ in range(3):
        await asked(server, GetUser(uid=desk.user.uid))
    redis = connect(redis_url, timeout=2)
    for _ in range(10):
        await redis.get("somebody else's")
    await redis.aclose()
    after = await get_cache_health()
    latencies = (await check_database_health())["query_performance"]

    assert (after["cache_hits"] - before["cache_hits"], after["cache_misses"] - before["cache_misses"]) == (2, 1)
    assert all(0 < milliseconds < 5_000 for milliseconds in latencies.values())


@pytest.mark.manual("X54", "health in the manual's shapes, and beyond them")
async def test_health_tells_and_does_not_fail(library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # The library has no broker to ask for.
    monkeypatch.delenv("RABBITMQ_URL")
    healthy: dict[str, Any] = await check_database_health()
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    away: dict[str, Any] = await check_database_health()

    assert {"database", "cache", "connection_pool", "query_performance", "errors"} <= set(healthy)
    assert (healthy["database"], healthy["cache"], healthy["errors"]) == ("healthy", "healthy", [])
    assert (away["database"], away["cache"], len(away["errors"])) == ("healthy", "unhealthy", 1)
    assert (await get_cache_health())["redis_status"] == "unhealthy"
