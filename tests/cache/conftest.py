"""Redis servers of a test's own, to be stopped, killed and clustered."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import RedisClusterException, RedisError

from contracts.leased_cache import connect
from deploy.servers import redis as redis_server
from deploy.servers.processes import Processes, free_ports

_NODES = 3
_SLOTS = 16_384


@dataclass(frozen=True)
class OwnRedis:
    """A server that a test may do to what it likes."""

    url: str
    pid: int
    executable: Path

    def kill(self) -> None:
        """End it without a goodbye."""
        os.kill(self.pid, signal.SIGKILL)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Have it take connections and answer nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of an empty Redis."""
    redis = connect(redis_url, timeout=5)
    yield redis
    await redis.aclose()


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[OwnRedis]:
    """A server of this test alone."""
    processes = Processes()
    try:
        _, url = await asyncio.to_thread(redis_server.start, tmp_path, processes, lambda _: None)
        async with Redis.from_url(url) as redis:
            about = await redis.info("server")
        yield OwnRedis(url, about["process_id"], Path(about["executable"]))
    finally:
        with suppress(ProcessLookupError):
            processes.end()


@pytest.fixture
async def cluster(own_redis: OwnRedis, tmp_path: Path) -> AsyncIterator[RedisCluster]:
    """A client of a cluster of three nodes."""
    nodes: list[asyncio.subprocess.Process] = []
    ports = free_ports(2 * _NODES)
    for port, bus in zip(ports[:_NODES], ports[_NODES:], strict=True):
        folder = tmp_path / str(port)
        folder.mkdir()
        said = {
            "--port": port,
            "--bind": "127.0.0.1",
            "--dir": folder,
            "--save": "",
            "--cluster-enabled": "yes",
            "--cluster-port": bus,
            "--enable-debug-command": "local",
        }
        words = [str(word) for option in said.items() for word in option]
        nodes.append(await asyncio.create_subprocess_exec(own_redis.executable, *words, stdout=subprocess.DEVNULL))
    try:
        async with asyncio.timeout(30):
            await _join(ports[:_NODES], ports[_NODES:])
            redis = RedisCluster(host="127.0.0.1", port=ports[0])
            while not await _is_whole(redis):
                await asyncio.sleep(0.05)
        yield redis
        await redis.aclose()
    finally:
        for node in nodes:
            node.kill()
            await node.wait()


async def _join(ports: list[int], buses: list[int]) -> None:
    for number, port in enumerate(ports):
        async with Redis(host="127.0.0.1", port=port) as node:
            while not await answers(node):
                await asyncio.sleep(0.05)
            first, last = _SLOTS * number // len(ports), _SLOTS * (number + 1) // len(ports) - 1
            tell: Any = node.execute_command
            await tell("CLUSTER", "ADDSLOTSRANGE", first, last)
            await tell("CLUSTER", "MEET", "127.0.0.1", ports[0], buses[0])


async def answers(redis: Redis | RedisCluster) -> bool:
    """Whether all of it does."""
    with suppress(RedisError, OSError):
        return bool(await redis.ping())
    return False


async def _is_whole(redis: RedisCluster) -> bool:
    with suppress(RedisError, RedisClusterException, OSError):
        await redis.initialize()
        return all([await redis.set(f"probe:{number}", b"") for number in range(20)])
    return False
