"""A connection that broke while nobody used it is replaced before anybody notices."""

import asyncio

import asyncpg
from sqlalchemy import text

from service import database
from service.database import SessionMaker


async def test_one_that_broke_during_a_rest_is_replaced(sessions: SessionMaker, database_url: str) -> None:
    async with sessions() as session:
        broken = await session.scalar(text("SELECT pg_backend_pid()"))
    admin = await asyncpg.connect(database_url)
    await admin.execute("SELECT pg_terminate_backend($1)", broken)
    await admin.close()
    await asyncio.sleep(database._IDLE_SECONDS + 0.1)

    async with sessions() as session:
        assert await session.scalar(text("SELECT pg_backend_pid()")) != broken
