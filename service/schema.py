"""The version of the database's tables: which one it is at, which one this code needs, and how to get there."""

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from service.config import LibrarySettings
from service.engine import database_url

# One number for all instances that might migrate the same database at the same time.
_ADVISORY_LOCK = 7_205_759_403_792_794


class UnknownRevisionError(Exception):
    """There is no such version of the tables."""


def _folder() -> Path:
    """The migrations: inside the package when installed from a wheel, beside it in a checkout."""
    installed = Path(__file__).parent / "migrations"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "migrations"


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_folder()))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


@cache
def head() -> str | None:
    """The version this code needs."""
    return ScriptDirectory.from_config(_config()).get_current_head()


async def current(engine: AsyncEngine) -> str | None:
    """The version the database is at, or None for an empty one."""
    async with engine.connect() as connection:
        return await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())


async def migrate(settings: LibrarySettings, revision: str = "head") -> tuple[str | None, str | None]:
    """Bring the database to ``revision`` (or to ``base``, nothing), and give the versions before and after.

    Two that try at the same time do it one after the other; the second finds nothing to do. Without time limits:
    a migration of a big table takes what it takes.
    """
    engine = create_async_engine(
        database_url(settings), poolclass=NullPool, connect_args={"timeout": settings.db_connect_timeout}
    )
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _ADVISORY_LOCK})
            await connection.commit()
            try:
                before = await connection.run_sync(_revision)
                await connection.run_sync(_run, revision)
                await connection.commit()
                return before, await connection.run_sync(_revision)
            finally:
                await connection.rollback()
                await connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _ADVISORY_LOCK})
                await connection.commit()
    finally:
        await engine.dispose()


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _run(connection: Connection, revision: str) -> None:
    config = _config(connection)
    oldest_first = [
        "base",
        *reversed([script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]),
    ]
    wanted = oldest_first[-1] if revision == "head" else revision
    if wanted not in oldest_first:
        raise UnknownRevisionError(f"there is no revision {revision}: take base or {' '.join(oldest_first[1:])}")
    goes_back = oldest_first.index(wanted) < oldest_first.index(_revision(connection) or "base")
    (command.downgrade if goes_back else command.upgrade)(config, wanted)


def is_optional(name: str | None) -> bool:
    """What migrations make only where PostgreSQL can, and the models therefore do not name."""
    return name == "ix_users_search"
