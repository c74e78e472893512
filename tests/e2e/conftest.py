"""One service for a whole module, where its tests do not get in each other's way."""

import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis

from deploy.servers import Servers
from tests.conftest import REPOSITORY
from tests.fresh import execute, manage, with_path


@dataclass(frozen=True)
class SharedService:
    """A service process, the settings it was started with and what it writes."""

    http: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def rabbitmq_url(self) -> str:
        return self.environment["RABBITMQ_URL"]

    @property
    def database_url(self) -> str:
        return self.environment["DATABASE_URL"]

    @property
    def redis_url(self) -> str:
        return self.environment["REDIS_URL"]


@pytest.fixture(scope="module")
def shared(
    servers: Servers, migrated_template: str, tmp_path_factory: pytest.TempPathFactory
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
    with _process({**os.environ, **environment}, log) as process:
        yield SharedService(_address(process, log), environment, process, log)
    manage(servers, "DELETE", f"/api/vhosts/{name}")
    asyncio.run(execute(servers.database_url, f'DROP DATABASE "{name}" WITH (FORCE)'))


@contextmanager
def _process(environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "service", "serve"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        finally:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if '"serving"' in line:
                address: str = json.loads(line)["http"]
                return address
        time.sleep(0.02)
    raise AssertionError(f"the service did not start:\n{log.read_text()}")
