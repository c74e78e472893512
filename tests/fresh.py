"""Databases, virtual hosts and changes that are made for one purpose and gone afterwards."""

import asyncio
import json
import secrets
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker

from deploy.servers import Servers
from service.config import Settings
from service.database import SessionMaker
from service.vault import Vault, with_vault


@asynccontextmanager
async def fresh_database(servers: Servers, *, template: str | None = None) -> AsyncIterator[str]:
    """The URL of a new database, empty or a copy of ``template``."""
    name = f"test_{secrets.token_hex(6)}"
    copy = f' TEMPLATE "{template}"' if template else ""
    await execute(servers.database_url, f'CREATE DATABASE "{name}"{copy}')
    try:
        yield with_path(servers.database_url, name)
    finally:
        await execute(servers.database_url, f'DROP DATABASE "{name}" WITH (FORCE)')


@asynccontextmanager
async def fresh_vhost(servers: Servers) -> AsyncIterator[str]:
    """The URL of a new virtual host with nothing in it."""
    name = f"test-{secrets.token_hex(6)}"
    await asyncio.to_thread(manage, servers, "PUT", f"/api/vhosts/{name}")
    try:
        yield with_path(servers.rabbitmq_url, name)
    finally:
        await asyncio.to_thread(manage, servers, "DELETE", f"/api/vhosts/{name}")


@asynccontextmanager
async def a_plain_login(database_url: str) -> AsyncIterator[str]:
    """The URL of the same database for a role that may read and write its tables and nothing else."""
    role, password = f"plain_{secrets.token_hex(4)}", secrets.token_hex(8)
    await execute(database_url, f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
    await execute(database_url, f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
    await execute(database_url, f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}")
    try:
        yield make_url(database_url).set(username=role, password=password).render_as_string(hide_password=False)
    finally:
        await execute(database_url, f"DROP OWNED BY {role}")
        await execute(database_url, f"DROP ROLE {role}")


class _TakenBack(AsyncSession):
    """In a transaction that is taken back nothing commits by itself: each statement that should has a savepoint."""

    _commits_each = False

    async def connection(self, **kwargs: Any) -> AsyncConnection:  # type: ignore[override]
        options = dict(kwargs.pop("execution_options", {}))
        self._commits_each = options.pop("isolation_level", None) == "AUTOCOMMIT"
        return await super().connection(execution_options=options, **kwargs)

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        if not self._commits_each:
            return await super().execute(*args, **kwargs)
        try:
            result = await super().execute(*args, **kwargs)
        except BaseException:
            await self.rollback()
            raise
        await self.commit()
        return result


@asynccontextmanager
async def taken_back(engine: AsyncEngine, vault: Vault) -> AsyncIterator[SessionMaker]:
    """Sessions whose commits are taken back at the end: what comes next finds the database as it was."""
    async with engine.connect() as connection:
        transaction = await connection.begin()
        yield async_sessionmaker(
            connection,
            class_=_TakenBack,
            join_transaction_mode="create_savepoint",
            expire_on_commit=False,
            info=with_vault(vault),
        )
        await transaction.rollback()


def environment(settings: Settings) -> dict[str, str]:
    """The settings as environment variables of a service on a free port."""
    return {
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "RABBITMQ_URL": settings.rabbitmq_url.get_secret_value(),
        "REDIS_URL": settings.redis_url.get_secret_value(),
        "HTTP_PORT": "0",
        "LOG_FORMAT": "json",
    }


def with_path(url: str, path: str) -> str:
    """The same server, another database or virtual host."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{quote(path, safe='')}"))


async def execute(database_url: str, statement: str) -> None:
    """Run one statement outside of a transaction."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def manage(servers: Servers, method: str, path: str, body: object = None) -> None:
    """Ask the broker's management interface, which every way of finding servers comes with."""
    if servers.rabbitmq_management_url is None:
        raise RuntimeError("set RABBITMQ_MANAGEMENT_URL (http://user:password@host:15672): tests make virtual hosts")
    parts = urlsplit(servers.rabbitmq_management_url)
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    base = f"{parts.scheme}://{parts.hostname}:{parts.port}"
    passwords.add_password(None, base, parts.username or "", parts.password or "")
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords))
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(base + path, method=method, headers=headers)  # noqa: S310 - http, made above
    request.data = None if body is None else json.dumps(body).encode()
    with opener.open(request, timeout=10) as answer:
        answer.read()
