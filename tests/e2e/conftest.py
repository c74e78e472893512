"""One service for a whole module, where its tests do not get in each other's way."""

import asyncio
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis

from contracts.client import PersistenceClient
from deploy.servers import Servers
from service import jobs
from service.config import LibrarySettings
from tests.fresh import execute, manage, with_path
from tests.nursery import Child, Nursery


@dataclass(frozen=True)
class SharedService:
    """A service process, the settings it was started with and what it writes."""

    http: str
    environment: dict[str, str]
    process: Child
    nursery: Nursery
    log: Path

    async def persistence(self, *arguments: str, **changed: str) -> tuple[int, str, str]:
        """Exit code, output and complaints of a command on the same servers."""
        environment = {**os.environ, **self.environment, **changed}
        return await self.nursery.run(*arguments, environment=environment)

    @property
    def rabbitmq_url(self) -> str:
        return self.environment["RABBITMQ_URL"]

    @property
    def database_url(self) -> str:
        return self.environment["DATABASE_URL"]

    @property
    def redis_url(self) -> str:
        return self.environment["REDIS_URL"]


@pytest.fixture(scope="session")
def migrated_template(servers: Servers, migrated_template: str) -> Iterator[str]:
    """With the partitions of the time ahead, which each new service would spend its first second on."""
    name = f"partitioned_{secrets.token_hex(4)}"

    async def make() -> None:
        await execute(servers.database_url, f'CREATE DATABASE "{name}" TEMPLATE "{migrated_template}"')
        settings = LibrarySettings.model_validate(
            {"database_url": with_path(servers.database_url, name), "redis_url": servers.redis_url}
        )
        async with jobs.scheduler(settings) as scheduler:
            await scheduler.run_now("partitions", {})

    asyncio.run(make())
    yield name
    asyncio.run(execute(servers.database_url, f'DROP DATABASE "{name}" WITH (FORCE)'))


@pytest.fixture(scope="module")
def shared(
    servers: Servers, migrated_template: str, tmp_path_factory: pytest.TempPathFactory, nursery: Nursery
) -> Iterator[SharedService]:
    """A running service with a fresh database and virtual host, for all tests of a module."""
    name = f"module-{secrets.token_hex(6)}"
    create = f'CREATE DATABASE "{name}" TEMPLATE "{migrated_template}"'
    asyncio.run(execute(servers.database_url, create))
    manage(servers, "PUT", f"/api/vhosts/{name}")
    with Redis.from_url(servers.redis_url) as redis:
        redis.flushdb()
    environment = {
        "DATABASE_URL": with_path(servers.database_url, name),
        "RABBITMQ_URL": with_path(servers.rabbitmq_url, name),
        "REDIS_URL": servers.redis_url,
        "HTTP_PORT": "0",
        "LOG_FORMAT": "json",
    }
    log = tmp_path_factory.mktemp("service") / "log"
    log.touch()
    process = nursery.fork("serve", environment={**os.environ, **environment}, output=log)
    try:
        yield SharedService(_address(process, log), environment, process, nursery, log)
    finally:
        process.terminate()
        try:
            process.wait_for(15)
        finally:
            process.kill()
    manage(servers, "DELETE", f"/api/vhosts/{name}")
    asyncio.run(execute(servers.database_url, f'DROP DATABASE "{name}" WITH (FORCE)'))


@pytest.fixture
async def bot(shared: SharedService) -> AsyncIterator[PersistenceClient]:
    """A client of the service of the module."""
    async with PersistenceClient(shared.rabbitmq_url, app_id="bot", answer_timeout=10) as client:
        yield client


def _address(process: Child, log: Path) -> str:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.returncode is None:
        for line in log.read_text().splitlines():
            if '"serving"' in line:
                address: str = json.loads(line)["http"]
                return address
        time.sleep(0.02)
    raise AssertionError(f"the service did not start:\n{log.read_text()}")
