"""Questions that arrive together are answered together, each with its own answer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import pytest

from contracts import GetBotWithDetails, GetIdBySymbol, GetSymbol, GetSymbolsByExchange, GetTradesPaginated, Refusal
from contracts.base import Lookup
from contracts.client import PersistenceClient
from contracts.errors import ErrorCode
from contracts.leased_cache import LeasedCache, Load, connect
from contracts.topology import LOOKUP_QUEUE
from service.config import Settings
from service.consumers import Consumers
from service.database import SessionMaker
from service.lookup_server import LookupServer
from service.observability import REGISTRY
from service.publisher import Publisher
from service.senders import Sender, Senders
from tests.builders import Desk

Serve = Callable[..., Awaitable[LookupServer]]


class Counting(LeasedCache):
    """Remembers how many keys were asked for together."""

    asked: list[int]
    loaded: int

    async def get(self, key: str, load: Load, *, after: str | None = None) -> bytes | None:
        self.loaded += 1
        return await super().get(key, load, after=after)

    async def cached(self, keys: Sequence[str]) -> dict[str, bytes | None]:
        self.asked.append(len(keys))
        return await super().cached(keys)


@pytest.fixture
async def cache(settings: Settings) -> AsyncIterator[Counting]:
    redis = connect(settings.redis_url.get_secret_value(), timeout=2)
    cache = Counting(redis, namespace="test")
    cache.asked = []
    cache.loaded = 0
    yield cache
    await redis.aclose()


@pytest.fixture
async def consumers(settings: Settings, publisher: Publisher) -> AsyncIterator[Consumers]:
    """Of queues that are there, as the publisher's exchanges are."""
    consumers = Consumers(settings)
    yield consumers
    await consumers.stop()


@pytest.fixture
def serve(sessions: SessionMaker, cache: Counting, consumers: Consumers, publisher: Publisher) -> Serve:
    """Starts to answer lookups."""

    async def start(senders: Senders | None = None) -> LookupServer:
        server = LookupServer(sessions, cache, publisher, senders=senders)
        consumers.subscribe(LOOKUP_QUEUE, server.take, prefetch=500)
        await consumers.start()
        return server

    return start


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[PersistenceClient]:
    async with PersistenceClient(settings.rabbitmq_url.get_secret_value(), answer_timeout=20) as client:
        yield client


async def test_those_that_are_cached_take_one_read_for_many(
    serve: Serve, cache: Counting, client: PersistenceClient, desk: Desk
) -> None:
    server = await serve()
    symbol = GetSymbol(symbol=desk.symbol.symbol, cat_ex_id=desk.catalog.cat_ex_id)
    absent = GetSymbol(symbol="NO/NE", cat_ex_id=desk.catalog.cat_ex_id)
    everything = GetSymbolsByExchange(cat_ex_id=desk.catalog.cat_ex_id)
    assert await client.lookup(symbol) == desk.symbol
    assert await client.lookup(absent) is None
    cache.asked.clear()
    before = _answered("get_symbol")

    lookups: list[Lookup[Any]] = [
        *[symbol, absent] * 100,
        everything,  # not cached yet
        GetIdBySymbol(symbol=desk.symbol.symbol, cat_ex_id=desk.catalog.cat_ex_id),  # made out of a cached answer
        GetTradesPaginated(uid=desk.user.uid),  # never cached
        GetSymbol.model_construct(symbol="", cat_ex_id=1),
    ]
    *answers, refusal = await asyncio.gather(*map(client.lookup, lookups), return_exceptions=True)

    assert answers[:200] == [desk.symbol, None] * 100
    assert answers[200:202] == [[desk.symbol], desk.symbol.symbol_id]
    assert isinstance(refusal, Refusal)
    assert refusal.field == "symbol"
    assert sum(cache.asked) >= 201
    assert len(cache.asked) < 50
    assert _answered("get_symbol") == before + 200
    await server.finish()


async def test_the_same_question_of_many_is_loaded_once(
    serve: Serve, cache: Counting, client: PersistenceClient, desk: Desk
) -> None:
    await serve()
    symbol = GetSymbol(symbol=desk.symbol.symbol, cat_ex_id=desk.catalog.cat_ex_id)
    before = _answered("get_symbol")

    answers = await asyncio.gather(*(client.lookup(symbol) for _ in range(100)))

    assert answers == [desk.symbol] * 100
    assert cache.loaded <= len(cache.asked) < 20
    assert _answered("get_symbol") == before + 100


async def test_what_a_login_may_not_ask_is_refused_though_it_is_cached(
    serve: Serve, settings: Settings, desk: Desk
) -> None:
    url = settings.rabbitmq_url.get_secret_value()
    login = urlsplit(url).username or ""
    server = await serve(Senders({login: Sender("reader", frozenset({desk.user.uid + 1}))}))
    assert b"bot_id" in await server.answer(GetBotWithDetails(bot_id=desk.bot.bot_id))

    async with PersistenceClient(url, user_id=login, answer_timeout=20) as reader:
        symbol = GetSymbol(symbol=desk.symbol.symbol, cat_ex_id=desk.catalog.cat_ex_id)
        assert await reader.lookup(symbol) == desk.symbol
        with pytest.raises(Refusal) as refusal:
            await reader.lookup(GetBotWithDetails(bot_id=desk.bot.bot_id))

    assert refusal.value.code is ErrorCode.FORBIDDEN


def _answered(lookup: str) -> float:
    labels = {"lookup": lookup, "outcome": "ok"}
    return REGISTRY.get_sample_value("persistence_lookups_total", labels) or 0.0
