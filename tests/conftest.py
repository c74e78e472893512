"""Real servers for every test: a database and a virtual host of its own, gone when it ends."""

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deploy.servers import Servers
from service import schema
from tests.fresh import execute, fresh_database, with_path
from tests.servers import running_for_tests

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """PostgreSQL, RabbitMQ and Redis, shared by the tests of one run."""
    with running_for_tests(tmp_path_factory.mktemp("servers")) as running:
        sys.stderr.write(f"\ntests use {running.way}\n")
        yield running


@pytest.fixture(scope="session")
def migrated_template(servers: Servers) -> Iterator[str]:
    """The name of a database with all tables, to be copied."""
    name = f"template_{secrets.token_hex(4)}"

    async def make() -> None:
        await execute(servers.database_url, f'CREATE DATABASE "{name}"')
        await schema.migrate(_settings(servers, database_url=with_path(servers.database_url, name)))

    asyncio.run(make())
    yield name
    asyncio.run(execute(servers.database_url, f'DROP DATABASE "{name}" WITH (FORCE)'))


@pytest.fixture
async def empty_database(servers: Servers) -> AsyncIterator[str]:
    """The URL of a database without any table."""
    async with fresh_database(servers) as url:
        yield url


@pytest.fixture
async def database_url(servers: Servers, migrated_template: str) -> AsyncIterator[str]:
    """The URL of a database with all tables and no rows."""
    async with fresh_database(servers, template=migrated_template) as url:
        yield url
