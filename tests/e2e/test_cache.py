"""What a change event made stale is never read again: the service's own cache, and those of others."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from contracts import (
    AddSymbol,
    ErrorCode,
    GetDecimals,
    GetSymbol,
    GetSymbolsByExchange,
    Refusal,
    SymbolExists,
    SymbolUpdates,
    UpdateSymbol,
    cache_keys,
)
from contracts.cache_entry import Entry
from contracts.certificate import Certificate, name_of, name_of_certificate
from contracts.client import PersistenceClient
from contracts.invalidator import CacheInvalidator
from contracts.leased_cache import LeasedCache, connect
from tests.builders import Desk, a_desk
from tests.e2e.conftest import SharedService
from tests.e2e.run import all_is_announced
from tests.e2e.wire import certified, eventually, http

NAMESPACE = "persistence"


@pytest.fixture
async def client(shared: SharedService) -> AsyncIterator[PersistenceClient]:
    async with PersistenceClient(shared.rabbitmq_url, answer_timeout=10) as client:
        yield client


@pytest.fixture
async def redis(shared: SharedService) -> AsyncIterator[Redis]:
    redis = connect(shared.redis_url, timeout=2)
    yield redis
    await redis.aclose()


@pytest.fixture
async def desk(shared: SharedService, client: PersistenceClient) -> Desk:
    desk = await a_desk(client)
    await all_is_announced(shared.database_url)
    await certified(shared.redis_url)
    return desk


def by_name(desk: Desk) -> GetSymbol:
    return GetSymbol(symbol=desk.symbol.symbol, cat_ex_id=desk.catalog.cat_ex_id)


def key(desk: Desk) -> str:
    return cache_keys.symbol(desk.symbol.symbol, desk.catalog.cat_ex_id)


def change(desk: Desk, **updates: Any) -> UpdateSymbol:
    return UpdateSymbol(symbol_id=desk.symbol.symbol_id, updates=SymbolUpdates(**updates))


class TestALookup:
    async def test_is_answered_from_the_cache_the_second_time(
        self, shared: SharedService, client: PersistenceClient, redis: Redis, desk: Desk
    ) -> None:
        first = await client.lookup(by_name(desk))
        entry = await cached(redis, key(desk))
        assert entry is not None
        assert json.loads(entry.value or b"null")["symbol_id"] == desk.symbol.symbol_id
        before = await reads(shared, "hit")

        second = await client.lookup(by_name(desk))

        assert first == second == desk.symbol
        assert await reads(shared, "hit") == before + 1

    async def test_gives_the_new_value_within_a_second_of_a_change(
        self, client: PersistenceClient, desk: Desk
    ) -> None:
        questions: list[Any] = [
            by_name(desk),
            GetSymbolsByExchange(cat_ex_id=desk.catalog.cat_ex_id),
            GetDecimals(symbol_id=desk.symbol.symbol_id),
        ]
        for decimals in range(1, 6):
            for question in questions:
                await client.lookup(question)
            changed = await client.call(change(desk, decimals=decimals))
            for question, expected in zip(questions, (changed, [changed], decimals), strict=True):
                await becomes(client, question, expected)

    async def test_never_goes_back_to_an_older_value(self, client: PersistenceClient, desk: Desk) -> None:
        """Many readers, while the symbol changes all the time."""
        seen: list[list[int]] = [[] for _ in range(8)]
        done = asyncio.Event()

        async def read(versions: list[int]) -> None:
            while not done.is_set():
                found = await client.lookup(by_name(desk))
                assert found is not None
                versions.append(found.row_version)

        readers = [asyncio.create_task(read(versions)) for versions in seen]
        for step in range(60):
            await client.call(change(desk, decimals=step % 18))
        await becomes_version(client, desk, 61 if desk.symbol.decimals else 60)
        done.set()
        await asyncio.gather(*readers)

        assert all(versions == sorted(versions) for versions in seen)
        assert min(map(len, seen)) > 10

    async def test_of_an_absent_symbol_is_cached_until_it_is_added(
        self, shared: SharedService, client: PersistenceClient, redis: Redis, desk: Desk
    ) -> None:
        absent = GetSymbol(symbol="ADA/ETH", cat_ex_id=desk.catalog.cat_ex_id)
        exists = SymbolExists(symbol=absent.symbol, cat_ex_id=absent.cat_ex_id)
        assert await client.lookup(absent) is None
        assert await is_absent(redis, cache_keys.symbol(absent.symbol, absent.cat_ex_id))
        before = await reads(shared, "absent")
        assert await client.lookup(exists) is False
        assert await reads(shared, "absent") == before + 1

        added = await client.call(AddSymbol(symbol=absent.symbol, cat_ex_id=absent.cat_ex_id))

        await becomes(client, absent, added)
        await becomes(client, exists, expected=True)
        await becomes(client, GetSymbolsByExchange(cat_ex_id=absent.cat_ex_id), [added, desk.symbol])

    async def test_follows_a_symbol_to_its_new_name(
        self, client: PersistenceClient, redis: Redis, desk: Desk
    ) -> None:
        old, new = by_name(desk), GetSymbol(symbol="XRP2/ETH", cat_ex_id=desk.catalog.cat_ex_id)
        assert await client.lookup(old) == desk.symbol
        assert await client.lookup(new) is None
        assert await is_absent(redis, cache_keys.symbol(new.symbol, new.cat_ex_id))

        renamed = await client.call(change(desk, symbol=new.symbol))

        await becomes(client, old, expected=None)
        await becomes(client, new, renamed)


class TestACommand:
    """Its reply is sent when nobody reads through the cache what was before it."""

    async def test_is_seen_by_every_read_that_begins_after_its_answer(
        self, client: PersistenceClient, desk: Desk
    ) -> None:
        """Linearizable: each key is a register, of which all clients see one order of reads and writes."""
        done = asyncio.Event()
        reads: list[tuple[float, float, int]] = []
        answered: list[tuple[float, int]] = [(0.0, 1)]

        async def read() -> None:
            while not done.is_set():
                began = time.monotonic()
                found = await client.lookup(by_name(desk))
                assert found is not None
                reads.append((began, time.monotonic(), found.row_version))

        readers = [asyncio.create_task(read()) for _ in range(6)]
        for step in range(100):
            changed, meta = await client.call_with_meta(change(desk, decimals=step % 18))
            if meta.cache is None:  # on a machine that is busy Redis may be late
                answered.append((time.monotonic(), changed.row_version))
        done.set()
        await asyncio.gather(*readers)

        def greatest(moments: list[tuple[float, int]], before: float) -> int:
            return max((version for at, version in moments if at < before), default=0)

        returned = [(ended, version) for _, ended, version in reads]
        assert [r for r in reads if r[2] < greatest(answered, r[0])] == []
        assert [r for r in reads if r[2] < greatest(returned, r[0])] == []
        assert len(answered) > 50
        assert len({version for *_, version in reads}) > 30

    async def test_is_shown_by_a_lookup_with_its_token(self, client: PersistenceClient, desk: Desk) -> None:
        for step in range(5):
            changed, meta = await client.call_with_meta(change(desk, decimals=step))
            assert await client.lookup(by_name(desk), after=meta.commit_token) == changed

    async def test_is_not_found_by_a_token_that_is_none(self, client: PersistenceClient, desk: Desk) -> None:
        with pytest.raises(Refusal) as refusal:
            await client.lookup(by_name(desk), after="yesterday")

        assert (refusal.value.code, refusal.value.field) == (ErrorCode.VALIDATION, "after")


class TestAnInvalidator:
    async def test_removes_exactly_the_stale_keys_of_its_namespace(
        self, shared: SharedService, client: PersistenceClient, redis: Redis, desk: Desk
    ) -> None:
        catalog = desk.catalog.cat_ex_id
        stale = {
            key(desk),
            cache_keys.symbol("RENAMED", catalog),
            cache_keys.symbols_of_exchange(catalog),
            cache_keys.symbol_by_id(desk.symbol.symbol_id),
            cache_keys.all_symbols(),
        }
        fresh = {
            cache_keys.symbol("ADA/ETH", catalog),
            cache_keys.symbol(desk.symbol.symbol, catalog + 1),
            cache_keys.symbols_of_exchange(catalog + 1),
            cache_keys.symbol_decimals(desk.symbol.symbol_id),  # the name changed, and the decimals did not
            cache_keys.symbol_decimals(desk.symbol.symbol_id + 1),
            cache_keys.bot_details(desk.bot.bot_id),
        }
        told: asyncio.Queue[Any] = asyncio.Queue()
        async with CacheInvalidator(
            shared.rabbitmq_url,
            redis,
            queue="web.cache",
            namespace="web",
            bindings=("symbol.#", "symbols.#"),
            on_event=told.put,
        ):
            for namespace in ("web", "other"):
                for name in stale | fresh:
                    await redis.set(name_of(namespace, name), b"here")
            renamed = await client.call(change(desk, symbol="RENAMED"))
            async with asyncio.timeout(5):
                event = await told.get()

        assert [(each.before, each.after) for each in event.changes] == [(desk.symbol, renamed)]
        assert set(event.stale_keys) == stale
        assert await present(redis, "web", stale | fresh) == fresh
        assert await present(redis, "other", stale | fresh) == stale | fresh

    async def test_finds_what_was_announced_while_it_was_away(
        self, shared: SharedService, client: PersistenceClient, redis: Redis, desk: Desk
    ) -> None:
        def invalidator() -> CacheInvalidator:
            return CacheInvalidator(shared.rabbitmq_url, redis, queue="late.cache", namespace="late")

        name = name_of("late", key(desk))
        async with invalidator():
            pass
        await redis.set(name, b"old")
        await client.call(change(desk, decimals=2))
        await all_is_announced(shared.database_url)
        assert await redis.exists(name)

        async with invalidator():
            await eventually(lambda: is_gone(redis, name))


class TestAReaderThatIsOvertaken:
    """It loads the old value, the event arrives, and only then it stores: what it loaded must not stay."""

    async def test_leaves_nothing_old_behind(
        self, shared: SharedService, client: PersistenceClient, redis: Redis, desk: Desk
    ) -> None:
        cache = LeasedCache(redis, namespace="race", timeout=2)
        loads: list[bytes] = []
        loaded, go_on = asyncio.Event(), asyncio.Event()

        async def load() -> bytes:
            found = await client.lookup(by_name(desk), fresh=True)
            assert found is not None
            loads.append(str(found.row_version).encode())
            if len(loads) == 1:
                loaded.set()
                await go_on.wait()
            return loads[-1]

        told: asyncio.Queue[Any] = asyncio.Queue()
        async with CacheInvalidator(
            shared.rabbitmq_url, redis, queue="race.cache", namespace="race", on_event=told.put
        ):
            overtaken = asyncio.create_task(cache.get(key(desk), load))
            await loaded.wait()
            await client.call(change(desk, decimals=1))
            async with asyncio.timeout(5):
                await told.get()
            assert await is_gone(redis, name_of("race", key(desk)))
            go_on.set()

            assert await overtaken == b"2"
            assert await cache.get(key(desk), load) == b"2"

        assert loads == [b"1", b"2"]

    async def test_who_went_around_the_cache_reads_nothing_older_from_it_later(
        self, shared: SharedService, redis: Redis, desk: Desk
    ) -> None:
        cache = LeasedCache(redis, namespace="race", timeout=2)

        async def load(value: bytes) -> bytes:
            return value

        assert await cache.get(key(desk), lambda: load(b"old")) == b"old"
        assert await cache.around(key(desk), lambda: load(b"new")) == b"new"

        assert await cache.get(key(desk), lambda: load(b"new")) == b"new"

    async def test_is_not_waited_for_by_another_reader_after_the_change(
        self, shared: SharedService, client: PersistenceClient, redis: Redis, desk: Desk
    ) -> None:
        cache = LeasedCache(redis, namespace="race", timeout=2)
        loaded, go_on = asyncio.Event(), asyncio.Event()

        async def old() -> bytes:
            loaded.set()
            await go_on.wait()
            return b"old"

        async def new() -> bytes:
            return b"new"

        overtaken = asyncio.create_task(cache.get(key(desk), old))
        await loaded.wait()
        await cache.invalidate([key(desk)])

        assert await asyncio.wait_for(cache.get(key(desk), new), 10) == b"new"
        go_on.set()
        await overtaken
        assert await cache.get(key(desk), old) == b"new"


async def cached(redis: Redis, logical: str) -> Entry | None:
    """What the service keeps under a key."""
    certificate = await redis.get(name_of_certificate(NAMESPACE))
    assert certificate is not None
    name = name_of(NAMESPACE, logical, Certificate.model_validate_json(certificate))
    held: bytes | None = await redis.get(name)  # type: ignore[assignment]
    return None if held is None else Entry(held)


async def is_absent(redis: Redis, logical: str) -> bool:
    """Whether the service keeps under a key that there is nothing."""
    entry = await cached(redis, logical)
    return entry is not None and entry.is_absent


async def present(redis: Redis, namespace: str, names: set[str]) -> set[str]:
    return {name for name in names if await redis.exists(name_of(namespace, name))}


async def is_gone(redis: Redis, name: str) -> bool:
    return not await redis.exists(name)


async def becomes(client: PersistenceClient, question: Any, expected: Any) -> None:
    """The answer is the expected one within a second, and stays so."""

    async def is_so() -> bool:
        return bool(await client.lookup(question) == expected)

    started = time.monotonic()
    await eventually(is_so, seconds=1, pause=0.005)
    assert time.monotonic() - started < 1
    assert await is_so()


async def becomes_version(client: PersistenceClient, desk: Desk, version: int) -> None:
    async def is_so() -> bool:
        found = await client.lookup(by_name(desk))
        return found is not None and found.row_version >= version

    await eventually(is_so, seconds=2)


async def reads(shared: SharedService, result: str) -> float:
    """How many reads through the service's cache had this result so far."""
    _, page = await http(f"{shared.http}/metrics")
    found = re.findall(rf'persistence_cache_requests_total{{.*result="{result}"}} (.+)', page)
    return sum(map(float, found))
