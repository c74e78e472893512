"""The servers of a test run: URLs of the environment, testcontainers where Docker answers, or private ones."""

import asyncio
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
from testcontainers.core.container import DockerContainer

from deploy.servers import URL_VARIABLES, Servers, running

_IMAGES = {"database": "postgres:17", "broker": "rabbitmq:4-management", "cache": "redis:8"}
_START_SECONDS = 60
_MEMORY = Path("/dev/shm")  # noqa: S108 - for a folder of our own in it
_ROOM_BYTES = 8 * 2**30


@contextmanager
def running_for_tests() -> Iterator[Servers]:
    """PostgreSQL, RabbitMQ and Redis for as long as the block lasts."""
    if not any(os.environ.get(name) for name in URL_VARIABLES) and _images_can_be_had():
        with _containers() as servers:
            yield servers
    else:
        with (
            TemporaryDirectory(prefix="persistence-tests-", dir=_where_writing_is_quick()) as folder,
            running(Path(folder), docker=False, report=_report) as servers,
        ):
            yield servers


def _where_writing_is_quick() -> Path | None:
    """Memory, where there is plenty: hundreds of databases come and go, and each waits for the disk many times.

    Servers are as durable there as tests can ask: what a killed process has written stays.
    """
    if not _MEMORY.is_dir() or not os.access(_MEMORY, os.W_OK):
        return None
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _MEMORY if min(shutil.disk_usage(_MEMORY).free, available) > _ROOM_BYTES else None


def _report(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _images_can_be_had() -> bool:
    if not _succeeds("docker", "info", seconds=10):
        return False
    return all(
        _succeeds("docker", "image", "inspect", image, seconds=10) or _succeeds("docker", "pull", image, seconds=300)
        for image in _IMAGES.values()
    )


def _succeeds(*command: str, seconds: float) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=seconds, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@contextmanager
def _containers() -> Iterator[Servers]:
    password = secrets.token_hex(16)
    database = (
        DockerContainer(_IMAGES["database"])
        .with_env("POSTGRES_USER", "persistence")
        .with_env("POSTGRES_PASSWORD", password)
        .with_env("POSTGRES_DB", "persistence")
        .with_env("LANG", "C.UTF-8")
        .with_exposed_ports(5432)
    )
    if _where_writing_is_quick() is not None:
        database.with_tmpfs_mount("/var/lib/postgresql/data")
    with ExitStack() as stack:
        stack.enter_context(database)
        broker = stack.enter_context(
            DockerContainer(_IMAGES["broker"])
            .with_env("RABBITMQ_DEFAULT_USER", "persistence")
            .with_env("RABBITMQ_DEFAULT_PASS", password)
            .with_exposed_ports(5672, 15672)
        )
        cache = stack.enter_context(DockerContainer(_IMAGES["cache"]).with_exposed_ports(6379))
        servers = Servers(
            way="testcontainers",
            database_url=f"postgresql://persistence:{password}@{_address(database, 5432)}/persistence",
            rabbitmq_url=f"amqp://persistence:{password}@{_address(broker, 5672)}/",
            redis_url=f"redis://{_address(cache, 6379)}/0",
            rabbitmq_management_url=f"http://persistence:{password}@{_address(broker, 15672)}",
        )
        _wait(lambda: asyncio.run(_connects(servers.database_url)), "PostgreSQL")
        _wait(lambda: _answers(_address(broker, 5672), b"AMQP\x00\x00\x09\x01", b"\x01"), "RabbitMQ")
        _wait(lambda: _answers(_address(broker, 15672), b"GET / HTTP/1.0\r\n\r\n", b"HTTP"), "RabbitMQ management")
        _wait(lambda: _answers(_address(cache, 6379), b"PING\r\n", b"+PONG"), "Redis")
        yield servers


def _address(container: DockerContainer, port: int) -> str:
    return f"{container.get_container_host_ip()}:{container.get_exposed_port(port)}"


def _wait(is_there: Callable[[], bool], name: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not is_there():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} did not answer within {_START_SECONDS} s")
        time.sleep(0.2)


async def _connects(url: str) -> bool:
    try:
        connection = await asyncpg.connect(url, timeout=5)
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return False
    await connection.close()
    return True


def _answers(address: str, question: bytes, answer: bytes) -> bool:
    host, port = address.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=2) as connection:
            connection.sendall(question)
            return connection.recv(8).startswith(answer)
    except OSError:
        return False
