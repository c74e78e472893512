"""Connections that broke are replaced, and what the server still has of them is ended."""

import asyncio
import time
from typing import Any, cast

import asyncpg
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from service import connections
from service.config import LibrarySettings
from service.connections import invalidated_connections
from service.database import AutocommitSessions, SessionMaker, build_session_maker
from service.engine import build_engine
from service.errors import is_transient
from tests.e2e.wire import rows
from tests.faults.links import Link


async def test_one_that_broke_during_a_rest_is_replaced(sessions: SessionMaker, database_url: str) -> None:
    async with sessions() as session:
        broken = await session.scalar(text("SELECT pg_backend_pid()"))
    admin = await asyncpg.connect(database_url)
    await admin.execute("SELECT pg_terminate_backend($1)", broken)
    await admin.close()
    await asyncio.sleep(connections.REST_SECONDS + 0.1)

    async with sessions() as session:
        assert await session.scalar(text("SELECT pg_backend_pid()")) != broken


async def _backend(autocommit: AutocommitSessions) -> int:
    async with autocommit() as session:
        number: int = await session.scalar(text("SELECT pg_backend_pid()"))
        return number


async def test_one_that_is_kept_goes_back_to_the_pool_after_its_time_and_at_the_end(sessions: SessionMaker) -> None:
    pool = cast("AsyncEngine", sessions.kw["bind"]).sync_engine.pool
    moves: list[str] = []
    event.listen(pool, "checkout", lambda *_: moves.append("out"))
    event.listen(pool, "checkin", lambda *_: moves.append("in"))
    autocommit = AutocommitSessions(sessions, kept_for=0.2)

    assert await _backend(autocommit) == await _backend(autocommit)
    assert moves == ["out"]
    await asyncio.sleep(0.3)
    await _backend(autocommit)
    assert moves == ["out", "in", "out"]
    await autocommit.close()
    assert moves == ["out", "in", "out", "in"]


async def test_one_that_is_kept_is_not_used_again_after_a_failure(sessions: SessionMaker, database_url: str) -> None:
    autocommit = AutocommitSessions(sessions, kept_for=60)
    first = await _backend(autocommit)
    admin = await asyncpg.connect(database_url)
    await admin.execute("SELECT pg_terminate_backend($1)", first)
    await admin.close()

    with pytest.raises(DBAPIError):
        await _backend(autocommit)
    assert await _backend(autocommit) != first
    await autocommit.close()


async def test_locks_of_a_session_that_fell_silent_in_the_middle_of_a_statement_are_freed(database_url: str) -> None:
    async with Link(database_url) as link:
        engine = build_engine(LibrarySettings.model_validate({"database_url": link.url, "db_command_timeout": 1}))
        sessions = build_session_maker(engine)
        async with sessions.begin() as session:
            await session.execute(
                text("INSERT INTO leases (name, holder, term, expires_at) VALUES ('it', gen_random_uuid(), 1, now())")
            )
        async with sessions() as session:
            zombie = await session.scalar(text("SELECT pg_backend_pid()"))
            await session.execute(text("UPDATE leases SET term = 2 WHERE name = 'it'"))
            # The first half of a statement: the server waits for the second, and takes the session for active.
            connection = await (await session.connection()).get_raw_connection()
            driver: Any = connection.driver_connection
            await driver.prepare("SELECT 1")
            link.forget()
            with pytest.raises(TimeoutError):
                await session.execute(text("SELECT 2"))
        state = await rows(database_url, "SELECT state, wait_event FROM pg_stat_activity WHERE pid = $1", zombie)
        assert state == [{"state": "active", "wait_event": "ClientRead"}]

        started = time.monotonic()
        async with sessions.begin() as session:
            await session.execute(text("UPDATE leases SET term = 3 WHERE name = 'it'"))
        assert time.monotonic() - started < 2, "the lock was waited for"
        assert not await rows(database_url, "SELECT FROM pg_stat_activity WHERE pid = $1", zombie)
        assert invalidated_connections(engine.sync_engine) == 1
        await engine.dispose()


async def test_all_that_fell_silent_during_a_rest_are_replaced_at_once(database_url: str) -> None:
    async with Link(database_url) as link:
        engine = build_engine(LibrarySettings.model_validate({"database_url": link.url, "db_pool_size": 5}))
        held = [await engine.connect() for _ in range(5)]
        before = {await connection.scalar(text("SELECT pg_backend_pid()")) for connection in held}
        for connection in held:
            await connection.close()
        await asyncio.sleep(connections.REST_SECONDS + 0.1)
        link.forget()

        started = time.monotonic()
        for _ in range(5):
            async with engine.connect() as connection:
                assert await connection.scalar(text("SELECT pg_backend_pid()")) not in before
        assert time.monotonic() - started < connections._PING_SECONDS + 2
        await engine.dispose()


async def test_what_the_driver_says_of_a_broken_connection_is_an_outage(database_url: str) -> None:
    """It comes unwrapped where no statement is made: while a connection is tried or given up."""
    connection = await asyncpg.connect(database_url)
    await connection.close()
    with pytest.raises(asyncpg.InterfaceError) as closed:
        await connection.fetch("SELECT 1")

    assert is_transient(closed.value)
    # Seen after a kill of the server, from a protocol that had lost its connection.
    assert is_transient(
        asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress")
    )
