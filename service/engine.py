"""The engine: connections to PostgreSQL, and what is asked of the server itself."""

from functools import lru_cache
from typing import Final

from sqlalchemy import URL, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from service import connections
from service.config import LibrarySettings

_DURABLE: Final = ("fsync", "full_page_writes", "synchronous_commit")


def database_url(settings: LibrarySettings) -> URL:
    """Where the database is, with the asyncpg driver."""
    return make_url(settings.database_url.get_secret_value()).set(drivername="postgresql+asyncpg")


def build_engine(settings: LibrarySettings, *, application_name: str = "persistence") -> AsyncEngine:
    """A pooled engine whose every wait has an end.

    The caller disposes of it.
    """
    engine = create_async_engine(
        database_url(settings),
        pool_size=settings.db_pool_size,
        max_overflow=settings.db_pool_max_overflow,
        pool_recycle=settings.db_pool_recycle,
        pool_timeout=settings.db_pool_timeout,
        # The same few again and again: they have their statements prepared and planned.
        pool_use_lifo=True,
        # Parameters of a failing statement would put users' data into logs.
        hide_parameters=True,
        connect_args={
            "timeout": settings.db_connect_timeout,
            "command_timeout": settings.db_command_timeout,
            "server_settings": {
                "application_name": application_name,
                "jit": "off",
                "timezone": "UTC",
                "statement_timeout": str(round(settings.db_command_timeout * 2_000)),
                "idle_in_transaction_session_timeout": "10000",
                "lock_timeout": "4000",
                "tcp_keepalives_idle": "5",
                "tcp_keepalives_interval": "2",
                "tcp_keepalives_count": "3",
                "tcp_user_timeout": "10000",
                "client_connection_check_interval": "2000",
            },
        },
    )
    connections.watch(engine, ping_after_rest=settings.db_pool_pre_ping)
    return engine


@lru_cache(maxsize=1)
def get_engine() -> AsyncEngine:
    """The engine of this process, made from the environment at the first call."""
    return build_engine(LibrarySettings.read())


async def what_a_power_cut_would_take(engine: AsyncEngine) -> list[str]:
    """Settings of the server with which it may lose what it said was committed; none with those it comes with."""
    async with engine.connect() as connection:
        values = {name: await connection.scalar(text(f"SHOW {name}")) for name in _DURABLE}
    return [f"{name} = {value}" for name, value in values.items() if value == "off"]


async def encoding_of(engine: AsyncEngine) -> str:
    """How the database stores text; one that is not UTF8 takes some good messages for bad ones."""
    async with engine.connect() as connection:
        return str(await connection.scalar(text("SHOW server_encoding")))
