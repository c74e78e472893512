"""Whatever fails, nobody reads from a cache what is older than five seconds; then readers go around it."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aio_pika
import asyncpg
import pytest
from redis.asyncio import Redis

from contracts import SymbolUpdates, SymbolView, UpdateSymbol, cache_keys
from contracts.amqp import Link
from contracts.certificate_watch import CertificateWatch
from contracts.invalidator import CacheInvalidator
from contracts.leased_cache import LeasedCache, connect
from deploy.servers import redis as private_redis
from deploy.servers.processes import Processes
from service import topology
from service.config import Settings
from service.database import SessionMaker
from service.executor import Executor
from service.publisher import Publisher
from service.relay import Relay
from tests.builders import Desk, Direct
from tests.e2e.wire import eventually

BOUND = 5.0


@pytest.fixture
def servers_of_its_own() -> Processes:
    return Processes()


@pytest.fixture
def own_redis(servers_of_its_own: Processes, tmp_path: Path) -> Iterator[str]:
    """A Redis that may be killed, and that keeps its dump when it is."""
    _, url = private_redis.start(tmp_path, servers_of_its_own, lambda _: None)
    yield url
    servers_of_its_own.end()


@dataclass
class World:
    """A relay, a subscriber that keeps a cache fresh, and somebody in another process who reads it."""

    settings: Settings
    sessions: SessionMaker
    desk: Desk
    writer: Direct
    sql: asyncpg.Connection
    redis: Redis
    watch: CertificateWatch
    cache: LeasedCache
    invalidator: CacheInvalidator | None = None
    why: list[str] = field(default_factory=list)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    committed: list[tuple[float, int]] = field(default_factory=list)
    """When a version was there for certain."""
    reads: list[tuple[float, int]] = field(default_factory=list)
    """When each read began, and the version it gave."""
    loads: int = 0

    async def load(self) -> bytes:
        self.loads += 1
        row = await self.sql.fetchval(
            "SELECT row_version FROM symbols WHERE symbol_id = $1", self.desk.symbol.symbol_id
        )
        return str(row).encode()

    async def change(self) -> int:
        """Change the symbol; gives its version."""
        updates = SymbolUpdates(decimals=len(self.committed) % 18 + 1)
        changed: SymbolView = await self.writer.call(
            UpdateSymbol(symbol_id=self.desk.symbol.symbol_id, updates=updates)
        )
        self.committed.append((time.monotonic(), changed.row_version))
        return changed.row_version

    async def read(self) -> int:
        began = time.monotonic()
        key = cache_keys.symbol_by_id(self.desk.symbol.symbol_id)
        value = await self.cache.get(key, self.load)
        assert value is not None
        self.reads.append((began, int(value)))
        return int(value)

    async def read_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await self.read()
            await asyncio.sleep(0.01)

    async def goes_around(self) -> bool:
        """Whether a read goes to the source, although it was just read."""
        before = self.loads
        await self.read()
        await self.read()
        return self.loads == before + 2

    async def is_cached(self) -> bool:
        await self.read()
        before = self.loads
        return await self.read() == self.committed[-1][1] and self.loads == before

    @property
    def staleness(self) -> float:
        """How many seconds after its successor a version was given, at most."""
        oldest = 0.0
        for began, version in self.reads:
            newer = [at for at, later in self.committed if later > version and at < began]
            oldest = max(oldest, began - min(newer, default=began))
        return oldest

    async def stop(self, name: str) -> None:
        """End a part as it is, whatever it has in hand."""
        self.tasks[name].cancel()
        await asyncio.gather(self.tasks.pop(name), return_exceptions=True)
        if name == "invalidator" and self.invalidator is not None:
            await self.invalidator.close()

    def start_relay(self) -> None:
        publisher = Publisher(self.settings)
        self.tasks["relay"] = asyncio.create_task(Relay(self.sessions, publisher, self.settings).run())

    def start_invalidator(self) -> None:
        url = self.settings.rabbitmq_url.get_secret_value()
        self.invalidator = CacheInvalidator(
            url,
            self.redis,
            queue="web.cache",
            namespace="web",
            bindings=["symbol.#", "symbols.#"],
            on_new_epoch=self.why.append,
        )
        self.tasks["invalidator"] = asyncio.create_task(self.invalidator.run())


@pytest.fixture
async def world(
    settings: Settings, own_redis: str, sessions: SessionMaker, desk: Desk, sql: asyncpg.Connection
) -> AsyncIterator[World]:
    link = Link(settings.rabbitmq_url.get_secret_value(), name="test", setup=topology.declare)
    await link.channel()
    await link.close()
    reader = connect(own_redis)
    watch = CertificateWatch(reader, namespace="web")
    cache = LeasedCache(reader, namespace="web", certificate=watch.current)
    redis = connect(own_redis, timeout=0.5)
    world = World(settings, sessions, desk, Direct(Executor(sessions)), sql, redis, watch, cache)
    world.tasks["watch"] = asyncio.create_task(watch.run())
    world.start_relay()
    world.start_invalidator()
    await world.change()
    await eventually(world.is_cached, seconds=20)
    yield world
    for name in list(world.tasks):
        await world.stop(name)
    with suppress(Exception):
        await redis.aclose()
        await reader.aclose()


async def test_is_nothing_to_speak_of_while_all_is_well(world: World) -> None:
    for _ in range(10):
        await world.change()
        await world.read_for(0.2)

    await eventually(world.is_cached)
    assert world.staleness < 2
    assert world.why == ["start"]


@pytest.mark.parametrize("part", ["relay", "invalidator"])
async def test_is_bounded_when_a_part_stops(world: World, part: str) -> None:
    await world.stop(part)
    await world.change()

    await world.read_for(BOUND + 0.5)

    assert 0 < world.staleness < BOUND
    assert await world.goes_around()
    world.start_relay() if part == "relay" else world.start_invalidator()
    await eventually(world.is_cached, seconds=20)
    assert world.why == ["start"]  # nothing was missed, so nothing is left behind


async def test_is_bounded_when_redis_comes_back_with_what_it_had_saved(
    world: World, servers_of_its_own: Processes
) -> None:
    """What was removed since is there again, and the certificate perhaps too."""
    await world.redis.save()
    old = await world.read()
    await world.change()
    await eventually(world.is_cached)
    process = (await world.redis.info("server"))["process_id"]

    os.kill(process, signal.SIGKILL)
    await asyncio.sleep(0.2)
    await asyncio.to_thread(servers_of_its_own.restart_the_dead)
    restarted = time.monotonic()
    await world.read_for(3)

    assert [version for began, version in world.reads if began > restarted and version == old] == []
    await eventually(world.is_cached, seconds=20)
    assert world.why == ["start", "run_id"]


async def test_is_bounded_when_redis_stands_still_while_things_change(world: World) -> None:
    process = (await world.redis.info("server"))["process_id"]
    os.kill(process, signal.SIGSTOP)
    try:
        for _ in range(3):
            await world.change()
            await world.read_for(0.3)
    finally:
        os.kill(process, signal.SIGCONT)

    await world.read_for(3)

    assert world.staleness < BOUND
    versions = [version for _, version in world.reads]
    assert versions == sorted(versions)
    await eventually(world.is_cached, seconds=20)


async def test_is_bounded_when_events_are_purged(world: World) -> None:
    before = world.watch.current()
    await world.stop("invalidator")
    await world.change()
    await asyncio.sleep(0.5)
    async with await aio_pika.connect(world.settings.rabbitmq_url.get_secret_value()) as connection:
        queue = await (await connection.channel()).get_queue("web.cache", ensure=False)
        await queue.purge()
    world.start_invalidator()

    await world.read_for(3)

    await eventually(world.is_cached, seconds=20)
    after = world.watch.current()
    assert before is not None
    assert after is not None
    assert after.epoch > before.epoch
    assert world.why == ["start", "gap"]
    assert world.staleness < BOUND
