"""After warming, bots' first questions about symbols are answered from the cache."""

import json
from collections.abc import Callable
from typing import Any, cast

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import (
    AddExchange,
    AddSymbols,
    ExchangeUpdates,
    GetDecimals,
    GetIdBySymbol,
    GetSymbol,
    GetSymbolById,
    GetSymbolsByExchange,
    SymbolExists,
    SymbolUpdates,
    UpdateExchange,
    UpdateSymbol,
    WarmCache,
)
from contracts.base import Lookup
from contracts.leased_cache import LeasedCache, connect
from service.database import SessionMaker
from service.jobs.scheduler import Run, Scheduler
from service.jobs.warming import warm, warm_catalog
from service.lookup_server import LookupServer
from service.publisher import Publisher
from tests.builders import Desk, Direct, received
from tests.jobs.conftest import Start
from tests.observe import statements


@pytest.fixture
def cache(redis: Redis) -> LeasedCache:
    return LeasedCache(redis, namespace="test", timeout=2)


@pytest.fixture
def lookups(sessions: SessionMaker, cache: LeasedCache) -> LookupServer:
    return LookupServer(sessions, cache, cast("Publisher", None))


@pytest.fixture
def warmer(start: Start, cache: LeasedCache) -> Scheduler:
    async def work(run: Run) -> None:
        await warm(run, cache)

    return start(work, name="warming")


async def listed(direct: Direct, desk: Desk, number: int) -> list[Any]:
    """Symbols more on the exchange of the desk."""
    wanted = [
        {"symbol": f"S{n}/ETH:{n}", "cat_ex_id": desk.catalog.cat_ex_id, "decimals": n % 18} for n in range(number)
    ]
    added = await direct.call(AddSymbols.model_validate({"symbols": wanted}))
    return [desk.symbol, *added.symbols]


def questions(desk: Desk, symbols: list[Any]) -> list[Lookup[Any]]:
    cat_ex_id = desk.catalog.cat_ex_id
    by_name = [
        kind(symbol=symbol.symbol, cat_ex_id=cat_ex_id)
        for symbol in symbols
        for kind in (GetSymbol, GetIdBySymbol, SymbolExists)
    ]
    by_id = [kind(symbol_id=symbol.symbol_id) for symbol in symbols for kind in (GetSymbolById, GetDecimals)]
    return [GetSymbolsByExchange(cat_ex_id=cat_ex_id), *by_name, *by_id]


async def test_fills_exactly_the_keys_that_lookups_read(  # noqa: PLR0917 - fixtures
    warmer: Scheduler, lookups: LookupServer, direct: Direct, desk: Desk, redis: Redis, engine: AsyncEngine
) -> None:
    symbols = await listed(direct, desk, 5)
    asked = questions(desk, symbols)
    expected = [await lookups.answer(question, fresh=True) for question in asked]
    await warmer.look()
    keys = set(await redis.keys("*"))

    with statements(engine) as sent:
        answers = [await lookups.answer(question) for question in asked]

    assert answers == expected
    assert sent == []
    assert len(keys) == 1 + 3 * len(symbols)
    assert set(await redis.keys("*")) == keys


async def test_takes_three_statements_for_an_exchange_however_many_symbols_it_lists(
    direct: Direct, desk: Desk, cache: LeasedCache, sessions: SessionMaker, engine: AsyncEngine
) -> None:
    await listed(direct, desk, 700)

    with statements(engine) as sent:
        filled = await warm_catalog(sessions, cache, desk.catalog.cat_ex_id)

    assert filled == 1 + 3 * 701
    assert len(sent) == 3
    assert await warm_catalog(sessions, cache, desk.catalog.cat_ex_id) == 0


async def test_looks_once_at_each_exchange_that_has_active_accounts(
    warmer: Scheduler, direct: Direct, desk: Desk, sql: asyncpg.Connection
) -> None:
    second = {"uid": desk.user.uid, "cat_ex_id": desk.catalog.cat_ex_id, "ex_name": "second"}
    await direct.call(AddExchange.model_validate(second))
    await warmer.look()
    assert await sql.fetchval("SELECT rows FROM job_runs") == 4
    await sql.execute("UPDATE exchanges SET active = false")
    await sql.execute("UPDATE job_runs SET due_at = now()")

    await warmer.look()

    assert await sql.fetchval("SELECT rows FROM job_runs") == 0


async def test_leaves_what_is_cached_as_it_is(
    warmer: Scheduler, lookups: LookupServer, desk: Desk, redis: Redis
) -> None:
    await lookups.answer(GetSymbolById(symbol_id=desk.symbol.symbol_id))
    [key] = await redis.keys("*")
    before = await redis.get(key)

    await warmer.look()

    assert await redis.get(key) == before


async def test_stores_nothing_that_was_changed_meanwhile(
    direct: Direct, desk: Desk, cache: LeasedCache, sessions: SessionMaker, lookups: LookupServer
) -> None:
    """The symbol changes, and its keys are removed, between the query and the storing."""
    by_id = GetSymbolById(symbol_id=desk.symbol.symbol_id)
    fill: Callable[..., Any] = cache.fill

    async def overtaken(keys: Any, load: Any) -> int:
        async def slow(missing: Any) -> Any:
            values = await load(missing)
            change = SymbolUpdates(decimals=3)
            await direct.call(UpdateSymbol(symbol_id=desk.symbol.symbol_id, updates=change))
            await cache.invalidate(keys)
            return values

        return int(await fill(keys, slow))

    cache.fill = overtaken  # type: ignore[method-assign]

    assert await warm_catalog(sessions, cache, desk.catalog.cat_ex_id) == 0

    assert json.loads(await lookups.answer(by_id))["decimals"] == 3


async def test_fails_loudly_without_redis(sessions: SessionMaker, desk: Desk) -> None:
    away = connect("redis://127.0.0.1:1/0", timeout=0.2)

    with pytest.raises(RedisError):
        await warm_catalog(sessions, LeasedCache(away, namespace="test"), desk.catalog.cat_ex_id)

    await away.aclose()


class TestWarmCache:
    async def test_warms_one_exchange_also_without_active_accounts(
        self, warmer: Scheduler, direct: Direct, desk: Desk, redis: Redis, sql: asyncpg.Connection
    ) -> None:
        await direct.call(UpdateExchange(ex_id=desk.account.ex_id, updates=ExchangeUpdates(active=False)))
        await warmer.look()
        assert await redis.keys("*") == []

        asked = await direct.call(WarmCache(cat_ex_id=desk.catalog.cat_ex_id))
        assert await warmer.look()

        assert asked.job == "warming"
        assert len(await redis.keys("*")) == 4
        assert await sql.fetchval("SELECT count(*) FROM job_runs") == 1

    async def test_names_an_exchange_that_is_not_there(self, direct: Direct) -> None:
        [reply] = await direct.executor.execute([received(WarmCache(cat_ex_id=999))])

        assert reply.error is not None
        assert (reply.error.code, reply.error.field) == ("not_found", "cat_ex_id")
