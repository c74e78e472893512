"""The pool of connections, by default and for many statements at once."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool.base import ResetStyle

from service import get_engine
from service.database import configure_high_performance_engine, create_database_url
from tests.manual.checklist import row


@pytest.fixture
async def engines(library: None) -> AsyncIterator[tuple[AsyncEngine, AsyncEngine]]:
    """The engine of a process, and one for high loads."""
    high = await configure_high_performance_engine()
    yield get_engine(), high
    await high.dispose()


@pytest.mark.parametrize(
    ("setting", "default", "high_load"),
    [
        row("PL1", "size()", 20, 30),
        row("PL2", "_max_overflow", 10, 20),
        row("PL3", "_recycle", 3600, 1800),
        row(
            "PL5",
            "_reset_on_return",
            ResetStyle.reset_rollback,
            ResetStyle.reset_rollback,
            differs="X21: rollback, for a commit would keep what a failed handler left open",
        ),
        row("PL7", "echo", False, False),
    ],
)
async def test_is_as_large_as_the_manual_says(
    engines: tuple[AsyncEngine, AsyncEngine], setting: str, default: Any, high_load: Any
) -> None:
    pools: list[Any] = [engine.pool for engine in engines]
    found = [pool.size() if setting == "size()" else getattr(pool, setting) for pool in pools]

    assert [value or False for value in found] == [default, high_load]
    assert not any(engine.echo for engine in engines)


@pytest.mark.manual(
    "PL4", "pool_pre_ping", differs="X48: only after half a second of rest, for each ping is a round trip"
)
async def test_a_connection_that_broke_unused_is_replaced_unseen(engines: tuple[AsyncEngine, AsyncEngine]) -> None:
    for engine in engines:
        async with engine.connect() as connection:
            broken = await connection.scalar(text("SELECT pg_backend_pid()"))
        other = await asyncpg.connect(create_database_url().set(drivername="postgresql").render_as_string(False))
        await other.execute("SELECT pg_terminate_backend($1)", broken)
        await other.close()
        await asyncio.sleep(0.6)

        async with engine.connect() as connection:
            assert await connection.scalar(text("SELECT pg_backend_pid()")) != broken


@pytest.mark.manual(
    "PL6", "connect_args", differs="X50: under a name of its own, and with a timeout in the default too"
)
async def test_connections_have_a_timeout_and_no_jit(engines: tuple[AsyncEngine, AsyncEngine]) -> None:
    found = []
    for engine in engines:
        async with engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            jit = await connection.scalar(text("SHOW jit"))
            name = await connection.scalar(text("SHOW application_name"))
            found.append((driver._config.command_timeout, jit, name))

    assert found == [(5, "off", "persistence"), (60, "off", "persistence")]
