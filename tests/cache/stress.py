"""Many readers of few keys that change all the time, through a cache on a real Redis.

A row is loaded in a few milliseconds. Events arrive up to 50 ms after the commit, in any order, one of five twice,
and what they ask for is a removal. Other ways to cache get the same load, to see that it finds what it looks for.
"""

import asyncio
import random
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from redis.asyncio import Redis

from contracts.key_spec import KeySpec
from contracts.leased_cache import LeasedCache, Loaded, connect
from tests.cache.history import History, Read

_READERS: Final = 24
_PROCESSES: Final = 3
"""Caches that know nothing of each other."""
_CHANGES_PER_SECOND: Final = 90
_EVENT_SECONDS: Final = 0.05
_LOAD_SECONDS: Final = 0.003
_TIMEOUT: Final = 5.0
"""For Redis: a busy machine is no reason to go around it here."""

# All of them are refreshed by every hit, so that this is seen too.
_SPECS: Final = (
    KeySpec("stressed:{id}"),
    KeySpec("stressed:refreshed:{id}", soft_ttl=0.0),
    KeySpec("stressed:large:{id}", is_large=True),
    KeySpec("stressed:short:{id}", ttl=0.05),
)
_KEYS: Final = tuple(spec(1) for spec in _SPECS)


class Rows:
    """A database of a number per key."""

    def __init__(self, history: History) -> None:
        self.versions: dict[str, int] = dict.fromkeys(_KEYS, 1)
        self.loads = 0
        for key in _KEYS:
            history.keys[key].committed.note(time.perf_counter(), 1)

    async def load(self, key: str) -> int:
        """The version that can be seen at a moment in between."""
        self.loads += 1
        await asyncio.sleep(random.uniform(0, _LOAD_SECONDS))
        version = self.versions[key]
        await asyncio.sleep(random.uniform(0, _LOAD_SECONDS))
        return version


class Cached(Protocol):
    """A way to cache."""

    @abstractmethod
    async def read(self, key: str, after: int) -> int:
        """The version of a key; not older than ``after``, if the way to cache knows how."""

    @abstractmethod
    async def remove(self, key: str) -> None:
        """What an event asks for."""

    async def close(self) -> None:
        """Disconnect."""


class Leased(Cached):
    """The one of this project."""

    name: Final = "leased"

    def __init__(self, url: str, rows: Rows) -> None:
        self.counts: Counter[str] = Counter()
        self._rows = rows
        self._redis = connect(url, timeout=_TIMEOUT)
        self._cache = LeasedCache(self._redis, namespace="stress", timeout=_TIMEOUT, count=self._count)

    def _count(self, _: str, result: str) -> None:
        self.counts[result] += 1

    async def read(self, key: str, after: int) -> int:
        """In one of the ways there are."""

        async def load() -> Loaded:
            version = await self._rows.load(key)
            return Loaded(str(version).encode(), f"{version + 1}:{version + 1}:")

        async def load_many(keys: Sequence[str]) -> Mapping[str, Loaded]:
            return {key: await load() for key in keys}

        if after:
            value = await self._cache.get(key, load, after=str(after))
        elif random.random() < 0.1:
            value = (await self._cache.get_many([key], load_many))[key]
        else:
            value = await self._cache.get(key, load)
        return int(value or 0)

    async def remove(self, key: str) -> None:
        await self._cache.invalidate([key])

    async def close(self) -> None:
        await self._cache.close()
        await self._redis.aclose()


class Aside(Cached):
    """The usual way: get, else load and set; delete on an event."""

    name: Final = "get, load, set and delete"

    def __init__(self, url: str, rows: Rows) -> None:
        self.counts: Counter[str] = Counter()
        self._rows = rows
        self._redis = connect(url, timeout=_TIMEOUT)

    async def read(self, key: str, after: int) -> int:
        held: bytes | None = await self._redis.get(key)  # type: ignore[assignment]
        if held is not None:
            return int(held)
        version = await self._rows.load(key)
        await self._redis.set(key, version, px=60_000)
        return version

    async def remove(self, key: str) -> None:
        await self._redis.unlink(key)

    async def close(self) -> None:
        await self._redis.aclose()


class Decorated(Cached):
    """What the library cashews makes of a function that loads, with its lock against many loads at once."""

    name: Final = "cashews 7.6, @cache(lock=True)"

    def __init__(self, url: str, rows: Rows) -> None:
        from cashews import Cache  # noqa: PLC0415 - only where it is compared with

        self.counts: Counter[str] = Counter()
        self._cache = Cache()
        self._cache.setup(url, client_side=False, suppress=False, socket_timeout=_TIMEOUT)
        self._load = self._cache(ttl=60, key="{key}", lock=True)(rows.load)

    async def read(self, key: str, after: int) -> int:
        version: int = await self._load(key)
        return version

    async def remove(self, key: str) -> None:
        await self._cache.delete(key)

    async def close(self) -> None:
        await self._cache.close()


Way = type[Leased] | type[Aside] | type[Decorated]


class Outcome(NamedTuple):
    """What a way to cache did under the load."""

    name: str
    reads: int
    loads: int
    writes: int
    violations: Counter[str]
    counts: Counter[str]


async def stress(url: str, way: Way, *, seconds: float, shared: bool = False) -> Outcome:
    """Read and write for so long. ``shared``: writers remove the key themselves before they are answered."""
    async with Redis.from_url(url) as redis:
        await redis.flushdb()
    history = History()
    rows = Rows(history)
    caches: list[Leased | Aside | Decorated] = [way(url, rows) for _ in range(_PROCESSES)]
    invalidator = way(url, rows)
    until = time.perf_counter() + seconds
    writes = 0

    async def apply(key: str, version: int) -> None:
        await asyncio.sleep(random.uniform(0, _EVENT_SECONDS))
        await invalidator.remove(key)
        history.keys[key].applied.note(time.perf_counter(), version)

    async def write() -> None:
        nonlocal writes
        events = []
        while time.perf_counter() < until:
            await asyncio.sleep(random.expovariate(_CHANGES_PER_SECOND))
            key = random.choice(_KEYS)
            history.keys[key].committed.note(time.perf_counter(), rows.versions[key] + 1)
            version = rows.versions[key] = rows.versions[key] + 1
            writes += 1
            copies = 2 if random.random() < 0.2 else 1
            events += [asyncio.create_task(apply(key, version)) for _ in range(copies)]
            if shared:
                await invalidator.remove(key)
                history.keys[key].answered.note(time.perf_counter(), version)
        await asyncio.gather(*events)

    async def read(cache: Leased | Aside | Decorated) -> None:
        while time.perf_counter() < until:
            key = random.choice(_KEYS)
            after = rows.versions[key] if way is Leased and random.random() < 0.05 else 0
            began = time.perf_counter()
            version = await cache.read(key, after)
            history.keys[key].reads.append(Read(began, time.perf_counter(), version, after))

    try:
        await asyncio.gather(write(), *(read(caches[number % _PROCESSES]) for number in range(_READERS)))
    finally:
        await asyncio.gather(*(cache.close() for cache in (*caches, invalidator)))
    return Outcome(
        way.name,
        history.reads,
        rows.loads,
        writes,
        Counter(violation.guarantee for violation in history.violations()),
        sum((cache.counts for cache in caches), Counter()),
    )
