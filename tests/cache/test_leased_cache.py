"""What a reader is given, on a real Redis, and what happens when something goes wrong meanwhile."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from contracts import leased_cache
from contracts.cache_entry import Entry, is_visible
from contracts.certificate import Certificate, name_of
from contracts.key_spec import KeySpec
from contracts.leased_cache import LeasedCache, Loaded, connect
from tests.cache.conftest import OwnRedis
from tests.cache.test_certified import certificate

_REFRESHED = KeySpec("tested:refreshed:{id}", soft_ttl=0.0)
_CONTENT = KeySpec("tested:content:{id}", when_uncertain="serve_stale")
_LARGE = KeySpec("tested:large:{id}", is_large=True)

LoadOne = Callable[[], Awaitable[Loaded]]


class Source:
    """A row whose value is its version, and how often it was loaded."""

    def __init__(self) -> None:
        self.version = 1
        self.loads = 0
        self.seconds = 0.0
        self.gate: asyncio.Event | None = None
        self.fails = False

    async def __call__(self) -> Loaded:
        """What it is now; given out after a while."""
        self.loads += 1
        version = self.version
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(self.seconds)
        if self.fails:
            raise LookupError("the source is away")
        return Loaded(b"%d" % version, f"{version + 1}:{version + 1}:")


class Counted:
    """A cache, and what became of its reads."""

    def __init__(self, redis: Redis | RedisCluster, *, timeout: float = 5) -> None:
        self.counts: Counter[str] = Counter()
        self.cache = LeasedCache(redis, namespace="test", timeout=timeout, count=self._count)
        self._redis = redis

    async def close(self) -> None:
        await self.cache.close()
        await self._redis.aclose()

    def _count(self, _: str, result: str) -> None:
        self.counts[result] += 1


@pytest.fixture
def counted(redis: Redis) -> Counted:
    return Counted(redis)


@pytest.fixture
async def cache(counted: Counted) -> AsyncIterator[LeasedCache]:
    yield counted.cache
    await counted.cache.close()


@pytest.fixture
def source() -> Source:
    return Source()


async def absent() -> None:
    """There is nothing."""


class TestARead:
    async def test_loads_once_and_then_finds(self, cache: LeasedCache, counted: Counted, source: Source) -> None:
        assert [await cache.get("a", source) for _ in range(3)] == [b"1"] * 3
        assert source.loads == 1
        assert counted.counts == {"miss": 1, "hit": 2}

    async def test_lives_as_long_as_its_kind_says_and_not_all_equally_long(
        self, cache: LeasedCache, redis: Redis, source: Source
    ) -> None:
        for number in range(20):
            await cache.get(f"key:{number}", source)
        left = [await redis.pttl(name_of("test", f"key:{number}")) / 86_400_000 for number in range(20)]

        assert 0.89 < min(left) < max(left) <= 1
        assert len(set(left)) > 10

    async def test_remembers_for_a_short_time_that_there_is_nothing(
        self, cache: LeasedCache, counted: Counted, redis: Redis
    ) -> None:
        assert [await cache.get("a", absent) for _ in range(2)] == [None, None]
        assert counted.counts == {"miss": 1, "absent": 1}
        assert await redis.pttl(name_of("test", "a")) <= 30_000

    async def test_that_fails_keeps_nobody_waiting(self, cache: LeasedCache, source: Source) -> None:
        source.fails = True
        with pytest.raises(LookupError):
            await cache.get("a", source)
        await asyncio.gather(*cache._background)

        source.fails = False
        began = time.monotonic()
        assert await cache.get("a", source) == b"1"
        assert time.monotonic() - began < 1

    async def test_is_one_load_for_many_readers(self, cache: LeasedCache, counted: Counted, source: Source) -> None:
        source.seconds = 0.05

        assert await asyncio.gather(*(cache.get("a", source) for _ in range(50))) == [b"1"] * 50
        assert source.loads == 1
        assert counted.counts == {"miss": 1, "join": 49}

    async def test_waits_for_the_load_of_another_process(
        self, cache: LeasedCache, redis: Redis, source: Source
    ) -> None:
        source.seconds = 0.05
        other = LeasedCache(redis, namespace="test", timeout=5)

        assert set(await asyncio.gather(cache.get("a", source), other.get("a", source))) == {b"1"}
        assert source.loads == 1

    async def test_takes_over_from_a_process_that_died(
        self, redis: Redis, cache: LeasedCache, source: Source
    ) -> None:
        dying = LeasedCache(redis, namespace="test", timeout=5)
        stuck = source.gate = asyncio.Event()
        task = asyncio.create_task(dying.get("a", source))
        while source.loads == 0:
            await asyncio.sleep(0.001)
        reader = LeasedCache(redis, namespace="test", timeout=0.5)
        source.gate = None

        assert await reader.get("a", source) == b"1"
        source.version = 2
        stuck.set()
        # What it loaded came too late, and it is given what is there instead.
        assert await task == b"1"
        assert await cache.get("a", source) == b"1"

    async def test_that_takes_longer_than_others_wait_is_stored_by_one_and_found_by_all(
        self, redis_url: str, source: Source
    ) -> None:
        source.seconds = 0.6
        processes = [Counted(connect(redis_url, timeout=5), timeout=0.2) for _ in range(3)]

        async def read(cache: LeasedCache) -> None:
            for _ in range(3):
                assert await cache.get("a", source) == b"1"

        await asyncio.gather(*(read(each.cache) for each in processes for _ in range(2)))

        assert source.loads <= len(processes)
        counts = sum((each.counts for each in processes), Counter())
        assert counts["miss"] == 1
        assert counts["bypass"] == counts["last_resort"] == 0
        for each in processes:
            await each.close()

    async def test_under_the_lease_of_another_process_starts_over_after_an_invalidation(
        self, redis: Redis, source: Source
    ) -> None:
        processes = [Counted(redis, timeout=0.2) for _ in range(2)]
        source.gate = asyncio.Event()
        reading = [asyncio.create_task(each.cache.get("a", source)) for each in processes]
        while source.loads < 2:
            await asyncio.sleep(0.001)
        source.version = 2
        await processes[0].cache.invalidate(["a"])
        source.gate.set()

        assert await asyncio.gather(*reading) == [b"2", b"2"]
        assert sum(each.counts["shared"] for each in processes) >= 1

    async def test_that_fails_leaves_alone_what_another_process_stored_meanwhile(
        self, redis: Redis, source: Source
    ) -> None:
        failing, other = Source(), Counted(redis, timeout=0.2)
        failing.fails, failing.gate = True, asyncio.Event()
        dying = LeasedCache(redis, namespace="test", timeout=5)
        reading = asyncio.create_task(dying.get("a", failing))
        while failing.loads == 0:
            await asyncio.sleep(0.001)
        assert await other.cache.get("a", source) == b"1"
        failing.gate.set()
        with pytest.raises(LookupError):
            await reading
        await asyncio.gather(*dying._background)

        assert await other.cache.get("a", source) == b"1"
        assert other.counts == {"shared": 1, "miss": 1, "hit": 1}


class TestAnInvalidation:
    async def test_is_seen_by_the_next_read(self, cache: LeasedCache, source: Source) -> None:
        await cache.get("a", source)
        source.version = 2
        await cache.invalidate(["a"])

        assert await cache.get("a", source) == b"2"

    async def test_makes_a_load_that_began_before_it_begin_again(self, cache: LeasedCache, source: Source) -> None:
        source.gate = asyncio.Event()
        reading = asyncio.create_task(cache.get("a", source))
        while source.loads == 0:
            await asyncio.sleep(0.001)
        source.version = 2
        await cache.invalidate(["a"])
        source.gate.set()

        assert await reading == b"2"
        assert source.loads == 2

    async def test_is_not_undone_by_a_refresh_that_began_before_it(
        self, cache: LeasedCache, redis: Redis, source: Source
    ) -> None:
        key = _REFRESHED(1)
        await cache.get(key, source)
        source.gate = asyncio.Event()
        assert await cache.get(key, source) == b"1"
        while source.loads < 2:
            await asyncio.sleep(0.001)
        source.version = 2
        await cache.invalidate([key])
        source.gate.set()
        await asyncio.gather(*cache._background)

        assert not await redis.exists(name_of("test", key))

    async def test_cannot_be_sure_without_a_certificate(self, redis: Redis) -> None:
        cache = LeasedCache(redis, namespace="test", certificate=lambda: None)

        with pytest.raises(leased_cache.Away, match="certificate"):
            await cache.invalidate(["a"])

    async def test_cannot_be_of_a_whole_kind(self, cache: LeasedCache, source: Source) -> None:
        await cache.get("a", source)

        with pytest.raises(leased_cache.Away, match="all keys of a kind"):
            await cache.invalidate(["a", _LARGE.pattern])
        assert await cache.cached(["a"]) == {}


async def test_a_value_past_its_soft_expiry_is_given_at_once_and_loaded_anew(
    cache: LeasedCache, counted: Counted, source: Source
) -> None:
    key = _REFRESHED(1)
    await cache.get(key, source)
    source.version = 2

    source.gate = asyncio.Event()
    assert await asyncio.gather(*(cache.get(key, source) for _ in range(10))) == [b"1"] * 10
    assert len(cache._background) == 1
    source.gate.set()
    await asyncio.gather(*cache._background)

    assert source.loads == 2
    assert counted.counts["refreshed"] == 1
    assert await cache.get(key, source) == b"2"


class TestACommitToken:
    async def test_makes_a_value_that_does_not_show_the_commit_a_stale_one(
        self, cache: LeasedCache, source: Source
    ) -> None:
        await cache.get("a", source)
        source.version = 2

        assert await cache.get("a", source) == b"1"
        assert await cache.get("a", source, after="2") == b"2"
        assert await cache.get("a", source, after="2") == b"2"
        assert source.loads == 2

    async def test_is_all_that_is_known_of_a_value_without_a_snapshot(self, cache: LeasedCache) -> None:
        loads = 0

        async def load() -> bytes:
            nonlocal loads
            loads += 1
            return b"x"

        tokens = [None, "5", "5", "5", None, "6", "6", "5"]
        assert [await cache.get("a", load, after=token) for token in tokens] == [b"x"] * len(tokens)
        assert loads == 4

    @pytest.mark.parametrize(
        ("transaction", "snapshot", "is_shown"),
        [
            (728, "729:729:", True),
            (729, "729:729:", False),
            (730, "729:733:729,731", True),
            (731, "729:733:729,731", False),
            (733, "729:733:729,731", False),
            (1, "", False),
            (728, "=728", True),
            (727, "=728", False),
            (72, "=728", False),
        ],
    )
    def test_is_compared_as_postgresql_does(self, transaction: int, snapshot: str, *, is_shown: bool) -> None:
        assert is_visible(transaction, snapshot) is is_shown


class TestManyAtOnce:
    async def test_are_found_or_loaded_together(self, cache: LeasedCache, source: Source) -> None:
        asked: list[Sequence[str]] = []

        async def load(keys: Sequence[str]) -> dict[str, bytes]:
            asked.append(keys)
            return {key: key.encode() for key in keys if key != "none"}

        await cache.get("b", source)
        wanted = ["a", "b", "none", "a"]

        first, second = await cache.get_many(wanted, load), await cache.get_many(wanted, load)

        assert first == second == {"a": b"a", "b": b"1", "none": None}
        assert asked == [["a", "none"]]
        assert await cache.cached(["a", "none", "other"]) == {"a": b"a", "none": None}

    async def test_are_taken_from_their_source_without_redis(self) -> None:
        away = connect("redis://127.0.0.1:1/0")
        cache = LeasedCache(away, namespace="test")

        async def load(keys: Sequence[str]) -> dict[str, bytes]:
            return {key: key.encode() for key in keys}

        assert await cache.get_many(["a", "b"], load) == {"a": b"a", "b": b"b"}
        assert await cache.cached(["a"]) == {}
        await away.aclose()


class TestALargeValue:
    async def test_is_decoded_once_and_kept_while_it_is_the_same(self, cache: LeasedCache, source: Source) -> None:
        key = _LARGE(1)
        first = await cache.get_decoded(key, source, bytearray_of)
        assert await cache.get_decoded(key, source, bytearray_of) is first

        source.version = 2
        await cache.invalidate([key])

        assert await cache.get_decoded(key, source, bytearray_of) == b"2"
        assert await cache.get(key, source) == b"2"
        assert source.loads == 2

    async def test_is_not_fetched_again(self, cache: LeasedCache, redis: Redis) -> None:
        async def load() -> bytes:
            return b"x" * 1_000_000

        key = _LARGE(2)
        await cache.get(key, load)
        await cache.get(key, load)
        before = (await redis.info("stats"))["total_net_output_bytes"]

        assert len(await cache.get(key, load) or b"") == 1_000_000
        assert (await redis.info("stats"))["total_net_output_bytes"] - before < 100_000


def bytearray_of(value: bytes | None) -> bytearray:
    """Something that is not the same twice."""
    return bytearray(value or b"")


class TestWithoutACertificate:
    async def test_a_catalog_may_be_content_with_a_young_value(self, redis: Redis, source: Source) -> None:
        valid: list[Certificate | None] = [certificate(1)]
        counts: Counter[str] = Counter()

        def count(_: str, result: str) -> None:
            counts[result] += 1

        cache = LeasedCache(redis, namespace="test", certificate=lambda: valid[-1], timeout=5, count=count)
        content, plain = _CONTENT(1), "plain"
        for key in (content, plain):
            await cache.get(key, source)
        source.version = 2
        valid.append(None)

        assert await cache.get(content, source) == b"1"
        assert await cache.get(plain, source) == b"2"
        assert counts["stale"] == counts["bypass"] == 1

    async def test_nobody_reads_an_older_value_later(self, redis: Redis, source: Source) -> None:
        """The event has not come when the certificate is valid again."""
        valid: list[Certificate | None] = [certificate(1)]
        cache = LeasedCache(redis, namespace="test", certificate=lambda: valid[-1], timeout=5)
        other = LeasedCache(redis, namespace="test", certificate=lambda: certificate(1), timeout=5)
        await cache.get("a", source)
        source.version = 2
        valid.append(None)
        assert await cache.get("a", source) == b"2"
        assert await other.get("a", source) == b"2"
        valid.append(certificate(1))

        assert await cache.get("a", source) == b"2"

    async def test_nor_if_more_was_given_out_than_can_be_remembered(
        self, redis: Redis, source: Source, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(leased_cache, "_OWED_AT_MOST", 2)
        before = certificate(1)
        valid: list[Certificate | None] = [before]
        cache = LeasedCache(redis, namespace="test", certificate=lambda: valid[-1], timeout=5)
        await cache.get("a", source)
        source.version = 2
        valid.append(None)
        for key in ("a", "b", "c", "d"):
            assert await cache.get(key, source) == b"2"
        await redis.set(name_of("test", "a", before), await stored(LeasedCache(redis, namespace="other"), redis))
        valid.append(before)

        assert await cache.get("a", source) == b"2"
        await redis.unlink(name_of("test", "a", before))  # its event is applied
        valid.append(before.model_copy(update={"as_of": datetime.now(UTC)}))
        loads = source.loads
        assert [await cache.get("a", source) for _ in range(2)] == [b"2", b"2"]
        assert source.loads == loads + 1

    async def test_it_is_counted_if_something_is_forgotten_in_a_cache_that_asks_for_none(
        self, counted: Counted, source: Source, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(leased_cache, "_OWED_AT_MOST", 2)
        away = connect("redis://127.0.0.1:1/0")
        counted = Counted(away)
        for key in ("a", "b", "c"):
            await counted.cache.get(key, source)

        assert counted.counts["forgotten"] == 1
        await counted.close()


async def stored(cache: LeasedCache, redis: Redis) -> bytes:
    """What the cache holds for a value of 1."""
    await cache.get("old", Source())
    held: Any = await redis.get(name_of("other", "old"))
    return bytes(held)


class TestARedis:
    async def test_whose_client_raises_what_it_does_not_mean_to_is_gone_around(
        self, redis: Redis, cache: LeasedCache, source: Source, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def break_down(*_: object, **__: object) -> None:
            raise AttributeError("'NoneType' object has no attribute 'writelines'")

        monkeypatch.setattr(redis, "execute_command", break_down)

        assert await cache.get("a", source) == b"1"
        with pytest.raises(leased_cache.Away):
            await cache.invalidate(["a"])

    async def test_that_is_killed_is_gone_around(self, own_redis: OwnRedis, source: Source) -> None:
        redis = connect(own_redis.url)
        cache = LeasedCache(redis, namespace="test")
        await cache.get("a", source)
        own_redis.kill()
        source.version = 2

        began = time.monotonic()
        assert await cache.get("a", source) == b"2"
        assert time.monotonic() - began < 2
        with pytest.raises(leased_cache.Away):
            await cache.invalidate(["a"])
        await redis.aclose()

    async def test_that_stopped_is_gone_around_and_what_it_holds_is_not_read_afterwards(
        self, own_redis: OwnRedis, source: Source
    ) -> None:
        """Its value is older than what was given out meanwhile, and no event has come yet."""
        redis = connect(own_redis.url)
        cache = LeasedCache(redis, namespace="test")
        assert await cache.get("a", source) == b"1"
        source.version = 2

        with own_redis.stopped():
            took = []
            for _ in range(30):
                began = time.monotonic()
                assert await cache.get("a", source) == b"2"
                took.append(time.monotonic() - began)

        # Five find out; the others do not wait.
        assert sorted(took)[20] < 0.05
        async with asyncio.timeout(10):
            while "a" in cache._owed:
                assert await cache.get("a", source) == b"2"
                await asyncio.sleep(0.1)
        assert await cache.get("a", source) == b"2"
        await redis.aclose()

    async def test_that_is_silent_to_a_client_without_time_outs_is_gone_around_in_time(
        self, own_redis: OwnRedis, source: Source
    ) -> None:
        redis = Redis.from_url(own_redis.url, socket_timeout=None, retry=Retry(NoBackoff(), 0))
        cache = LeasedCache(redis, namespace="test")
        await cache.get("a", source)

        with own_redis.stopped():
            began = time.monotonic()
            async with asyncio.timeout(5):
                assert await cache.get("a", source) == b"1"
            assert time.monotonic() - began < 2
            reading = asyncio.create_task(cache.get("b", source))
            await asyncio.sleep(0.02)
            reading.cancel()

            assert source.loads == 2
            assert [type(each) for each in await asyncio.gather(reading, return_exceptions=True)] == [
                asyncio.CancelledError
            ]
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert cache._store._until == {}
        await redis.aclose()

    async def test_that_lost_its_scripts_gets_them_again(
        self, cache: LeasedCache, redis: Redis, counted: Counted, source: Source
    ) -> None:
        await cache.get("a", source)
        await redis.script_flush()
        await redis.flushdb()

        assert await cache.get("a", source) == b"1"
        assert counted.counts == {"miss": 2}

    async def test_may_be_a_cluster(self, cluster: RedisCluster, source: Source) -> None:
        counted = Counted(cluster)
        cache = counted.cache
        keys = [f"key:{number}" for number in range(30)]

        async def load(missing: Sequence[str]) -> dict[str, bytes]:
            return dict.fromkeys(missing, b"many")

        assert await cache.get(keys[0], source) == b"1"
        assert await cache.get_many(keys, load) == {key: b"1" if key == keys[0] else b"many" for key in keys}
        assert set(await cache.cached(keys)) == set(keys)
        assert await cache.get(_LARGE(1), source) == await cache.get(_LARGE(1), source) == b"1"
        await cache.invalidate(keys)
        assert await cache.cached(keys) == {}
        assert await cache.fill(keys, load) == len(keys)
        assert counted.counts["bypass"] == 0


async def test_an_event_loop_that_is_blocked_for_longer_than_a_lease_stores_nothing(
    cache: LeasedCache, redis: Redis, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leased_cache, "_LEASE_MS", 30)
    blocked = 0

    async def load() -> Loaded:
        nonlocal blocked
        loaded = await source()
        if source.loads == 1:
            time.sleep(0.2)  # noqa: ASYNC251 - this is what is tried
            blocked += 1
            source.version = 2  # committed and announced meanwhile: there was nothing to remove
        return loaded

    assert await cache.get("a", load) == b"2"
    assert blocked == 1
    assert source.loads == 2
    held: bytes | None = await redis.get(name_of("test", "a"))  # type: ignore[assignment]
    assert held is not None
    assert Entry(held).value == b"2"


@pytest.mark.parametrize("way", ["get", "get_many", "get_decoded", "refresh", "after"])
async def test_a_reader_that_is_cancelled_at_any_moment_leaves_nothing_wrong_behind(
    redis: Redis, source: Source, way: str
) -> None:
    """After each number of steps of the event loop in turn, until it gets to its end."""
    key = {"get_decoded": _LARGE(1), "refresh": _REFRESHED(1)}.get(way, "a")
    pool = connect("redis://", timeout=5).connection_pool
    pool.connection_kwargs = redis.connection_pool.connection_kwargs
    pool.max_connections = 2
    few = Redis.from_pool(pool)
    cache = LeasedCache(few, namespace="test", timeout=5)

    async def load_many(keys: Sequence[str]) -> dict[str, Loaded]:
        return {each: await source() for each in keys}

    async def read() -> bytes | bytearray | None:
        if way == "get_many":
            return (await cache.get_many([key], load_many))[key]
        if way == "get_decoded":
            return await cache.get_decoded(key, source, bytearray_of)
        return await cache.get(key, source, after=str(source.version) if way == "after" else None)

    for steps in range(200):
        task = asyncio.create_task(read())
        for _ in range(steps):
            await asyncio.sleep(0)
        is_done = task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert cache._flights == {}
        source.version += 1
        await cache.invalidate([key])
        async with asyncio.timeout(20):
            assert await read() == b"%d" % source.version
        await asyncio.gather(*cache._background, return_exceptions=True)
        if is_done:
            break
        await cache.invalidate([key])
    else:
        pytest.fail("it never came to its end")
    assert steps > 3
    await cache.close()
    await few.aclose()
