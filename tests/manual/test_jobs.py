"""The manual's jobs."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select

from contracts.certificate_watch import UncertifiedError
from service.config import Settings
from service.database import get_async_session
from service.jobs import jobs
from service.jobs.scheduler import Daily, Every
from service.library import process_trades_background
from service.library.job import cache_warming_job, daily_cleanup_job
from service.models import BotLog, Trade
from service.repositories import OrderRepository
from tests.manual.conftest import Market


@pytest.mark.manual("J1", "cache_warming_job", differs="X35: each catalog once, and only what is not cached")
async def test_cache_warming_job(market: Market, relied_on: None) -> None:
    assert await cache_warming_job() == 4
    assert await cache_warming_job() == 0


async def test_cache_warming_job_fails_where_nobody_certifies_the_cache(market: Market) -> None:
    with pytest.raises(UncertifiedError, match="nobody certifies the cache persistence"):
        await cache_warming_job()


@pytest.mark.manual("J2", "daily_cleanup_job", differs="X36: whole partitions, else few rows at a time")
async def test_daily_cleanup_job(market: Market) -> None:
    async with get_async_session() as session:
        for days in (1, 200):
            moment = datetime.now(UTC) - timedelta(days=days)
            session.add(BotLog(bot_id=market.bot.bot_id, message="x", timestamp=moment))

    removed = await daily_cleanup_job()

    assert {table: rows for table, rows in removed.items() if rows} == {"bot_logs": 1}
    async with get_async_session() as session:
        assert await session.scalar(select(func.count()).select_from(BotLog)) == 1


@pytest.mark.manual("J3", "process_trades_background, as a job", differs="X12: each order is leased to one worker")
async def test_process_trades_background(market: Market) -> None:
    async with get_async_session() as session:
        order = await OrderRepository(session).create(market.order)

    task = asyncio.create_task(process_trades_background(lambda _: True, lambda _: 45_000, interval=0.05))
    async with asyncio.timeout(10):
        while True:
            async with get_async_session() as session:
                trades = (await session.scalars(select(Trade))).all()
            if trades:
                break
            await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert [trade.order_id for trade in trades] == [order.order_id]


@pytest.mark.manual("J4", "scheduler", differs="X36: a supervised task with leases, in UTC; no APScheduler")
async def test_scheduler(library: None) -> None:
    settings = Settings.read()

    schedules = {job.name: job.schedule for job in jobs(settings, None, None)}  # type: ignore[arg-type]

    assert schedules["warming"] == Every(timedelta(minutes=5))
    assert schedules["cleanup"] == Daily(settings.cleanup_at)
    assert settings.cleanup_at.isoformat() == "02:00:00"
