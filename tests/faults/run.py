"""A run: customers at work in a world that is disturbed, and at its end the evidence."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import aio_pika
import asyncpg
from pamqp.commands import Queue
from redis.asyncio import Redis

from contracts import SymbolView, cache_keys
from contracts.cache_entry import LEASE, Entry
from contracts.certificate import Certificate, name_of, name_of_certificate
from contracts.heartbeat import HEARTBEAT_SECONDS
from contracts.topology import HEARTBEATS, LOOKUP_QUEUE, QUEUES, UNROUTED_QUEUE, Lane
from tests.faults.checker import Evidence, Fault
from tests.faults.ledger import read
from tests.faults.nemesis import FAULTS
from tests.faults.subscribers import Subscribers
from tests.faults.world import World

_CACHE_QUEUE: Final = "persistence.cache"
_RECOVERY_SECONDS: Final = 60.0
_SETTLE_SECONDS: Final = 40.0

Tell = Callable[[str], None]


class Run:
    """Customers, subscribers, faults, and what is left of it."""

    def __init__(self, world: World, *, seed: int, tell: Tell = lambda _: None) -> None:
        self.world = world
        self.chance = random.Random(seed)
        self.faults: list[Fault] = []
        self.subscribers = Subscribers(world.rabbitmq_url, seed=seed)
        self._tell = tell
        self._first_symbols: dict[int, int] = {}

    async def begin(self, *, with_slow_commits: bool = False) -> None:
        await self._until(self._outbox_is_empty)
        self._first_symbols = await self._symbols()
        await self.subscribers.begin()
        await self.world.begin(with_slow_commits=with_slow_commits)

    async def suffer(self, name: str, deed: Callable[[], Awaitable[None]] | None = None) -> None:
        """Have a fault happen, and wait until work goes on."""
        began = time.monotonic_ns()
        await (FAULTS[name](self.world, self.chance) if deed is None else deed())
        ended = time.monotonic_ns()
        recovered = await self._recovery()
        self.faults.append(Fault(name, began, ended, recovered))
        how = "no work within a minute" if recovered is None else f"work after {recovered:.2f} s"
        self._tell(f"{name}: lasted {(ended - began) / 1e9:.1f} s, {how}")

    async def _recovery(self) -> float | None:
        """Seconds until a row is stored that was not there; None if there is none for long."""
        started = time.monotonic()
        before: int | None = None
        while time.monotonic() - started < _RECOVERY_SECONDS:
            try:
                rows = await self.world.rows()
            except (OSError, TimeoutError, asyncpg.PostgresError):
                rows = None
            if rows is not None and before is not None and rows > before:
                return time.monotonic() - started
            before = rows if rows is not None and before is None else before
            await asyncio.sleep(0.05)
        return None

    async def end(self) -> Evidence:
        """Let everybody finish, and collect what there is."""
        for link in (self.world.to_broker, self.world.to_database, self.world.to_cache, self.world.from_bots):
            link.heal()
        self.subscribers.stay()
        await self.world.customers.stop(seconds=60)
        settled = await self._until(self._is_settled)
        await self._until(self._each_queue_has_one_consumer)
        consumers = await self._consumers()
        cached = await self._cached()
        exit_code = await self.world.service.stop()
        # What was delivered and not settled shows when its consumer has gone.
        queues = await self._queues()
        queues[_CACHE_QUEUE] -= await self._heartbeats_in(_CACHE_QUEUE, queues[_CACHE_QUEUE])
        evidence = await self._collect(cached, queues)
        await self.subscribers.end()
        evidence.settled, evidence.exit_code, evidence.consumers = settled, exit_code, consumers
        return evidence

    async def _until(self, holds: Callable[[], Awaitable[bool]], *, seconds: float = _SETTLE_SECONDS) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if await holds():
                    return True
            except (OSError, TimeoutError, asyncpg.PostgresError, aio_pika.exceptions.AMQPError):
                pass
            await asyncio.sleep(0.1)
        return False

    async def _outbox_is_empty(self) -> bool:
        return await self.world.rows("outbox") == 0

    async def _is_settled(self) -> bool:
        """Nothing waits anywhere, and all that was announced was heard; looked at twice, for what is in between.

        What the service's own cache was sent and has not applied waits nowhere: its certificate tells.
        """
        [began] = await self._rows("SELECT clock_timestamp() AS at")
        if any((await self._queues()).values()) or not await self._outbox_is_empty():
            return False
        symbols, cached = await self._symbols(), await self._cached()
        if any(symbols[symbol] != version for symbol, version in cached.items()):
            return False
        heard = [len(self.subscribers.heard(who)) for who in ("steady", "flaky", "late")]
        await asyncio.sleep(2 * HEARTBEAT_SECONDS)
        async with Redis.from_url(self.world.servers.redis_url) as redis:
            certificate = await redis.get(name_of_certificate("persistence"))
        if certificate is None or Certificate.model_validate_json(certificate).as_of < began["at"]:
            return False
        again = [len(self.subscribers.heard(who)) for who in ("steady", "flaky", "late")]
        return heard == again and not any((await self._queues()).values()) and await self._outbox_is_empty()

    async def _queues(self) -> dict[str, int]:
        """How many messages wait in each queue; nobody listens for the readers any more."""
        names = [*(queue.name for queue in QUEUES), "steady", "flaky", _CACHE_QUEUE]
        return {name: said.message_count or 0 for name, said in (await self._looked_at(names)).items()}

    async def _consumers(self) -> dict[str, int]:
        """How many the service has at each queue that it takes from."""
        names = [*(lane.queue for lane in Lane), UNROUTED_QUEUE, LOOKUP_QUEUE]
        return {name: said.consumer_count or 0 for name, said in (await self._looked_at(names)).items()}

    async def _looked_at(self, names: Sequence[str]) -> dict[str, Queue.DeclareOk]:
        """What the broker says of queues."""
        async with await aio_pika.connect(self.world.rabbitmq_url, timeout=5) as connection:
            channel = await connection.channel()
            return {name: (await channel.declare_queue(name, passive=True)).declaration_result for name in names}

    async def _heartbeats_in(self, name: str, number: int) -> int:
        """How many of a queue's messages are beats: one may come while the service ends, and speaks of no change."""
        messages: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
        async with await aio_pika.connect(self.world.rabbitmq_url, timeout=5) as connection:
            queue = await (await connection.channel()).get_queue(name)
            await queue.consume(messages.put)
            async with asyncio.timeout(10):
                left = [await messages.get() for _ in range(number)]
        return sum(message.exchange == HEARTBEATS.name for message in left)

    async def _each_queue_has_one_consumer(self) -> bool:
        return set((await self._consumers()).values()) == {1}

    async def _symbols(self) -> dict[int, int]:
        rows = await self._rows("SELECT symbol_id, row_version FROM symbols")
        return {row["symbol_id"]: row["row_version"] for row in rows}

    async def _rows(self, query: str) -> list[dict[str, Any]]:
        connection = await asyncpg.connect(self.world.database_url, timeout=5)
        try:
            return [dict(row) for row in await connection.fetch(query)]
        finally:
            await connection.close()

    async def _cached(self) -> dict[int, int]:
        """The versions that the service's own cache holds."""
        versions = {}
        async with Redis.from_url(self.world.servers.redis_url) as redis:
            if (certificate := await redis.get(name_of_certificate("persistence"))) is None:
                return {}
            epochs = Certificate.model_validate_json(certificate)
            for desk in self.world.desks:
                name = name_of("persistence", cache_keys.symbol(desk.symbol, desk.cat_ex_id), epochs)
                held: bytes | None = await redis.get(name)  # type: ignore[assignment]
                if held is not None and held[0] != LEASE and (value := Entry(held).value) is not None:
                    view = SymbolView.model_validate_json(value)
                    versions[view.symbol_id] = view.row_version
        return versions

    async def _collect(self, cached: dict[int, int], queues: dict[str, int]) -> Evidence:
        world = self.world
        sessions = await self._rows(
            "SELECT state, count(*) AS number FROM pg_stat_activity WHERE application_name = 'persistence' "
            "AND datname = current_database() GROUP BY state"
        )
        letters = await self._rows("SELECT * FROM dead_letters")
        return Evidence(
            ledger=list(read(world.folder / "ledger")),
            trades=await self._rows("SELECT * FROM trades"),
            logs=await self._rows("SELECT * FROM bot_logs"),
            symbols=await self._symbols(),
            first_symbols=self._first_symbols,
            inbox={str(UUID(str(row["message_id"]))) for row in await self._rows("SELECT message_id FROM inbox")},
            letters=letters,
            heard={who: self.subscribers.heard(who) for who in ("steady", "flaky", "late")},
            cached=cached,
            left_in_queues=queues,
            left_in_outbox=await world.rows("outbox"),
            sessions={str(row["state"]): row["number"] for row in sessions},
            artefacts={
                "log of the service": (world.folder / "service.log").read_bytes(),
                "dead letters": repr(letters).encode(),
                "events": repr(self.subscribers.heard("steady")).encode(),
                "inbox": repr(await self._rows("SELECT * FROM inbox")).encode(),
            },
            faults=self.faults,
        )


def folder_of(parent: Path, name: str) -> Path:
    """A folder for a run."""
    return parent / name.replace(" ", "-")
