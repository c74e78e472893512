"""Sessions, and the transaction they stand for."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Final

from redis.asyncio import Redis
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from service.cache import CachingSession
from service.config import LibrarySettings
from service.engine import build_engine, database_url, get_engine
from service.vault import Vault, with_vault

SessionMaker = async_sessionmaker[AsyncSession]

_REDIS: Final = "redis"


def create_database_url() -> URL:
    """Where the database of this environment is: ``DATABASE_URL``, or the ``DB_*`` it is given in."""
    return database_url(LibrarySettings.read())


async def current_snapshot(session: AsyncSession) -> str:
    """Which commits the session sees, and all that it reads from now on in this transaction."""
    snapshot: str = (await session.execute(text("SELECT CAST(pg_current_snapshot() AS text)"))).scalar_one()
    return snapshot


def build_session_maker(engine: AsyncEngine, vault: Vault | None = None, redis: Redis | None = None) -> SessionMaker:
    """Sessions whose objects stay readable after the commit; nothing is loaded behind one's back.

    Without a ``vault`` everything but credentials can be stored; ``redis`` is for who asks how it is.
    """
    return async_sessionmaker(engine, expire_on_commit=False, info={**with_vault(vault), **with_redis(redis)})


class AutocommitSessions:
    """Sessions whose every statement is a transaction by itself: no round trips to begin and to commit it.

    To take a connection out of the pool, set it up and give it back takes a multiple of what a statement takes, so
    whoever has many to make keeps one for the next: ``kept_for`` seconds since it was taken, and no longer, because
    the pool tries connections that have rested and replaces old ones.
    """

    def __init__(self, sessions: SessionMaker, *, kept_for: float = 0.0) -> None:
        self._sessions = sessions
        self._kept_for = kept_for
        self._kept: list[tuple[float, AsyncSession]] = []

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[AsyncSession]:
        """A session of one's own, to be used for plain statements only."""
        taken_at, session = await self._take()
        try:
            yield session
        except BaseException:
            await asyncio.shield(session.close())
            raise
        if time.monotonic() - taken_at < self._kept_for:
            self._kept.append((taken_at, session))
        else:
            await session.close()

    async def _take(self) -> tuple[float, AsyncSession]:
        too_old = time.monotonic() - self._kept_for
        old = [session for taken_at, session in self._kept if taken_at <= too_old]
        self._kept = [kept for kept in self._kept if kept[0] > too_old]
        for session in old:
            await session.close()
        if self._kept:
            return self._kept.pop()
        session = self._sessions()
        try:
            await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        except BaseException:
            await asyncio.shield(session.close())
            raise
        return time.monotonic(), session

    async def close(self) -> None:
        """Give back the connections that are kept."""
        while self._kept:
            await self._kept.pop()[1].close()


def redis_of(session: AsyncSession) -> Redis:
    """The Redis that was given to whoever made the session; raises LookupError if none was."""
    redis: Redis | None = session.info.get(_REDIS)
    if redis is None:
        raise LookupError("there is no Redis here")
    return redis


def with_redis(redis: Redis | None) -> dict[str, object]:
    """The ``info`` of sessions that shall know this Redis."""
    return {} if redis is None else {_REDIS: redis}


@lru_cache(maxsize=1)
def get_async_session_maker() -> SessionMaker:
    """Makes sessions on `get_engine`, whose repositories read through the cache where the manual says so."""
    vault = Vault.of(LibrarySettings.read())
    return async_sessionmaker(get_engine(), class_=CachingSession, expire_on_commit=False, info=with_vault(vault))


@asynccontextmanager
async def get_async_session() -> AsyncIterator[AsyncSession]:
    """One transaction: committed at the end, rolled back on an exception. An explicit commit inside is fine."""
    async with get_async_session_maker()() as session:
        try:
            yield session
        except BaseException:
            await session.rollback()
            raise
        await session.commit()


async def dispose_engine() -> None:
    """Close the connections of this process; the next session makes an engine anew, in whatever loop runs then."""
    if get_engine.cache_info().currsize:
        await get_engine().dispose()
    get_async_session_maker.cache_clear()
    get_engine.cache_clear()


async def init_db() -> None:
    """Bring the database to the tables that this version needs; what is there already stays."""
    from service import schema  # noqa: PLC0415 - Alembic, for the few who need it

    await schema.migrate(LibrarySettings.read())


async def configure_high_performance_engine() -> AsyncEngine:
    """Another engine, for many statements at once: 30 connections and 20 more under load, 60 seconds a statement.

    The caller disposes of it. Size plus overflow, times processes, has to stay below ``max_connections``.
    """
    many = {"db_pool_size": 30, "db_pool_max_overflow": 20, "db_pool_recycle": 1_800, "db_command_timeout": 60.0}
    return build_engine(LibrarySettings.read().model_copy(update=many))
