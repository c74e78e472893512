"""The pool of connections, by default and for many statements at once."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool.base import ResetStyle

from service import get_engine
from service.database import configure_high_performance_engine
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
        row("PL4", "_pre_ping", True, True),
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
