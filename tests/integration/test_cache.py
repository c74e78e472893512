"""Caches are told what to drop, by key or by whose it is."""

import asyncio

import asyncpg
import pytest
from redis.asyncio import Redis

from contracts import AddSymbol, ErrorCode, InvalidateCache, cache_keys
from contracts.amqp import Link
from contracts.certificate import name_of
from contracts.invalidator import CacheInvalidator
from contracts.leased_cache import connect
from service import topology
from service.config import Settings
from service.database import SessionMaker
from service.executor import Executor
from service.publisher import Publisher
from service.relay import Relay
from tests.builders import Desk, Direct
from tests.observe import events, refusal


async def stale_keys(sessions: SessionMaker) -> set[str]:
    """What the events that wait say is stale."""
    return {key for change in await events(sessions, "cache.invalidated") for key in change["after"]["keys"]}


async def test_names_the_keys_that_were_named(direct: Direct, sessions: SessionMaker) -> None:
    keys = ["symbol:BTC/USDT:1", "user:exchanges:7", "symbol:BTC/USDT:1"]

    done = await direct.call(InvalidateCache(keys=keys))

    assert done.keys == 2
    [change] = await events(sessions, "cache.invalidated")
    assert change["after"] == {"cat_ex_id": None, "uid": None, "keys": keys[:2]}
    assert change["stale_keys"] == set(keys)


async def test_names_all_keys_of_an_exchange_and_its_symbols(
    direct: Direct, desk: Desk, sessions: SessionMaker
) -> None:
    cat_ex_id = desk.catalog.cat_ex_id
    second = await direct.call(AddSymbol(symbol="ADA/ETH", cat_ex_id=cat_ex_id))

    await direct.call(InvalidateCache(cat_ex_id=cat_ex_id))

    assert await stale_keys(sessions) == {
        cache_keys.exchange_catalog(),
        cache_keys.symbols_of_exchange(cat_ex_id),
        cache_keys.all_symbols(),
        *(cache_keys.symbol(symbol.symbol, cat_ex_id) for symbol in (desk.symbol, second)),
        *(cache_keys.symbol_by_id(symbol.symbol_id) for symbol in (desk.symbol, second)),
        *(cache_keys.symbol_decimals(symbol.symbol_id) for symbol in (desk.symbol, second)),
    }


async def test_names_all_keys_of_a_user(direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
    await direct.call(InvalidateCache(uid=desk.user.uid))

    assert await stale_keys(sessions) >= {
        cache_keys.user(desk.user.uid),
        cache_keys.user_id(desk.user.mail),
        cache_keys.trading_summary(desk.user.uid),
        cache_keys.exchanges_of_user(desk.user.uid),
        cache_keys.bots_of_user(desk.user.uid),
        cache_keys.exchange_params(desk.account.ex_id),
        cache_keys.bot_details(desk.bot.bot_id),
        cache_keys.trading_currency(desk.bot.bot_id, desk.account.ex_id),
    }


async def test_splits_very_many_keys_among_changes(
    direct: Direct, desk: Desk, sessions: SessionMaker, sql: asyncpg.Connection
) -> None:
    await sql.execute(
        "INSERT INTO symbols (symbol, cat_ex_id) SELECT 'S' || n, $1 FROM generate_series(1, 700) n",
        desk.catalog.cat_ex_id,
    )

    done = await direct.call(InvalidateCache(cat_ex_id=desk.catalog.cat_ex_id))

    sizes = [len(change["after"]["keys"]) for change in await events(sessions, "cache.invalidated")]
    assert sizes == [1_000, 1_000, done.keys - 2_000]


@pytest.mark.parametrize("field", ["cat_ex_id", "uid"])
async def test_is_refused_for_whom_nobody_knows(executor: Executor, field: str) -> None:
    error = await refusal(executor, InvalidateCache.model_validate({field: 999}))

    assert (error.code, error.field) == (ErrorCode.NOT_FOUND, field)


@pytest.mark.parametrize("said", [{}, {"uid": 1, "cat_ex_id": 1}, {"keys": ["a"], "uid": 1}])
def test_says_one_thing(said: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="one of keys, cat_ex_id and uid"):
        InvalidateCache.model_validate(said)


async def test_reaches_every_subscriber_whatever_it_listens_to(
    direct: Direct, sessions: SessionMaker, settings: Settings
) -> None:
    url = settings.rabbitmq_url.get_secret_value()
    link = Link(url, name="test", setup=topology.declare)
    await link.channel()
    await link.close()
    publisher = Publisher(settings)
    redis: Redis = connect(settings.redis_url.get_secret_value(), timeout=2)
    stale, other = (name_of("web", key) for key in ("bot:details:1", "bot:details:2"))
    await redis.mset({stale: b"old", other: b"good"})

    subscriber = CacheInvalidator(url, redis, queue="web.cache", namespace="web", bindings=("symbol.#", "symbols.#"))
    async with subscriber:
        await direct.call(InvalidateCache(keys=["bot:details:1"]))
        await Relay(sessions, publisher, settings).publish_once()
        for _ in range(500):
            if not await redis.exists(stale):
                break
            await asyncio.sleep(0.01)

    assert await redis.mget(stale, other) == [None, b"good"]
    await publisher.close()
    await redis.aclose()
