"""What the manual's repositories cache, under which keys, and what becomes of it."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from contracts import cache_keys
from contracts.certificate import name_of
from service import (
    ExchangeRepository,
    Symbol,
    SymbolRepository,
    TradeRepository,
    UserRepository,
    cache_manager,
    dispose_engine,
    get_async_session,
    get_async_session_maker,
    get_engine,
    get_user_trading_summary,
)
from service.database import build_session_maker
from tests.manual.checklist import row
from tests.manual.conftest import Market
from tests.observe import statements

NAMESPACE = "persistence"


@pytest.fixture
async def shop(market: Market, relied_on: None) -> Market:
    """A market in a program whose cache is used."""
    return market


async def stored(key: str) -> Any:
    """The JSON that Redis holds for a logical key; raises if it is no JSON."""
    held: Any = await cache_manager.redis_client.get(name_of(NAMESPACE, key))
    if held is None:
        return None
    text = bytes(held).decode(errors="replace")
    # In front of the value stands what tells it apart from others of this key.
    start = next(place for place in range(len(text)) if _is_json(text[place:]))
    return json.loads(text[start:])


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Cached:
    """Something that is cached: how it is asked for, under which key it lies, and what changes it."""

    ask: Callable[[Any, Market], Awaitable[Any]]
    key: Callable[[Market], str]
    change: Callable[[Any, Market], Awaitable[Any]]
    shown: Callable[[Any], Any]
    before: Any
    after: Any


CACHED = [
    row(
        "K1",
        Cached(
            ask=lambda session, shop: SymbolRepository(session).get_by_symbol("BTC/USDT", shop.catalog.cat_ex_id),
            key=lambda shop: f"symbol:BTC/USDT:{shop.catalog.cat_ex_id}",
            change=lambda session, shop: SymbolRepository(session).update_symbol(shop.symbol.id, {"decimals": 5}),
            shown=lambda symbol: symbol.decimals,
            before=2,
            after=5,
        ),
    ),
    row(
        "K2",
        Cached(
            ask=lambda session, shop: SymbolRepository(session).get_by_exchange_id(shop.catalog.cat_ex_id),
            key=lambda shop: f"symbols:exchange:{shop.catalog.cat_ex_id}",
            change=lambda session, shop: SymbolRepository(session).add_symbol(
                {"symbol": "ETH/USDT", "exchange_id": shop.catalog.cat_ex_id}
            ),
            shown=lambda symbols: [symbol.symbol for symbol in symbols],
            before=["BTC/USDT"],
            after=["BTC/USDT", "ETH/USDT"],
        ),
    ),
    row(
        "K3",
        Cached(
            ask=lambda session, shop: SymbolRepository(session).get_decimals(shop.symbol.id),
            key=lambda shop: f"symbol:decimals:{shop.symbol.id}",
            change=lambda session, shop: SymbolRepository(session).update_symbol(shop.symbol.id, {"decimals": 5}),
            shown=lambda decimals: decimals,
            before=2,
            after=5,
        ),
    ),
    row(
        "K5",
        Cached(
            ask=lambda session, shop: ExchangeRepository(session).get_exchanges_by_user(shop.user.uid),
            key=lambda shop: f"user:exchanges:{shop.user.uid}",
            change=lambda session, shop: ExchangeRepository(session).update(shop.exchange.ex_id, {"active": False}),
            shown=lambda exchanges: [exchange.active for exchange in exchanges],
            before=[True],
            after=[False],
        ),
    ),
    row(
        "K6",
        Cached(
            ask=lambda session, shop: ExchangeRepository(session).get_exchange_params(shop.exchange.ex_id),
            key=lambda shop: f"exchange:params:{shop.exchange.ex_id}",
            change=lambda session, shop: ExchangeRepository(session).set_exchange_params(
                {"rate_limit": "20"}, cat_ex_id=shop.catalog.cat_ex_id
            ),
            shown=lambda params: params,
            before={},
            after={"rate_limit": "20"},
        ),
        differs="X31: the settings of the catalog, and over them the account's own",
    ),
    row(
        "K7",
        Cached(
            ask=lambda session, shop: ExchangeRepository(session).get_exchange_catalog(),
            key=lambda shop: "exchange:catalog",
            change=lambda session, shop: ExchangeRepository(session).install_exchange("kraken"),
            shown=lambda catalog: [exchange.name for exchange in catalog],
            before=["binance"],
            after=["binance", "kraken"],
        ),
    ),
]


@pytest.mark.parametrize("cached", CACHED)
async def test_is_read_once_and_again_when_it_has_changed(shop: Market, cached: Cached) -> None:
    async with get_async_session() as session:
        first = await cached.ask(session, shop)
    with statements(get_engine()) as sent:
        async with get_async_session() as session:
            second = await cached.ask(session, shop)
    held = await stored(cached.key(shop))
    async with get_async_session() as session:
        await cached.change(session, shop)
        inside = await cached.ask(session, shop)
        dropped_early = await stored(cached.key(shop)) is None
    dropped = await stored(cached.key(shop)) is None
    async with get_async_session() as session:
        third = await cached.ask(session, shop)

    assert cached.shown(first) == cached.shown(second) == cached.before
    assert sent == []
    assert held is not None
    # A transaction sees its own changes, and others see them when they are committed.
    assert cached.shown(inside) == cached.after
    assert (dropped_early, dropped) == (False, True)
    assert cached.shown(third) == cached.after


@pytest.mark.manual(
    "K4",
    "get_id_by_symbol and symbol_exists, cached",
    differs="X33: by the symbol's own key, also if absent",
)
async def test_id_and_existence_lie_under_the_symbol(shop: Market) -> None:
    catalog = shop.catalog.cat_ex_id
    async with get_async_session() as session:
        symbol_repo = SymbolRepository(session)
        assert await symbol_repo.get_id_by_symbol("BTC/USDT", catalog) == shop.symbol.id
        assert not await symbol_repo.symbol_exists("ETH/USDT", catalog)
    with statements(get_engine()) as sent:
        async with get_async_session() as session:
            symbol_repo = SymbolRepository(session)
            assert await symbol_repo.symbol_exists("BTC/USDT", catalog)
            assert await symbol_repo.get_id_by_symbol("ETH/USDT", catalog) is None
    async with get_async_session() as session:
        added = await SymbolRepository(session).add_symbol({"symbol": "ETH/USDT", "exchange_id": catalog})
    async with get_async_session() as session:
        assert await SymbolRepository(session).get_id_by_symbol("ETH/USDT", catalog) == added.id

    assert sent == []


@pytest.mark.manual("K8", "user:trading_summary:{uid}", differs="X46: totals are of all trades")
async def test_a_trading_summary_is_kept_for_an_hour_at_most(shop: Market) -> None:
    key = f"user:trading_summary:{shop.user.uid}"

    summary = await get_user_trading_summary(shop.user.uid)
    held = await stored(key)
    left = await cache_manager.redis_client.ttl(name_of(NAMESPACE, key))
    async with get_async_session() as session:
        await TradeRepository(session).create(shop.trade)
        await UserRepository(session).modify_user(shop.user.uid, {"name": "Ada"})
    renewed = await get_user_trading_summary(shop.user.uid)

    assert summary is not None
    assert renewed is not None
    assert held["generated_at"].startswith(summary["generated_at"][:19])
    assert 3_000 < left <= 3_600
    assert (summary["total_trades"], renewed["total_trades"]) == (0, 1)


@pytest.mark.manual("K9", "cache_manager", differs="X17, X18: awaited, and JSON of views is kept")
async def test_the_cache_manager_caches_methods_and_forgets(shop: Market) -> None:
    calls: list[str] = []

    class MySymbols(SymbolRepository):
        @cache_manager.cache_on_symbol_methods
        async def get_by_symbol(self, symbol: str, cat_ex_id: int) -> Symbol | None:
            calls.append(symbol)
            return await super().get_by_symbol(symbol, cat_ex_id)

    class MyExchanges(ExchangeRepository):
        @cache_manager.cache_on_exchange_methods
        async def names(self, uid: int) -> list[str]:
            calls.append("names")
            return [exchange.ex_name for exchange in await self.get_exchanges_by_user(uid)]

    async def ask() -> Symbol | None:
        async with get_async_session() as session:
            await MyExchanges(session).names(shop.user.uid)
            return await MySymbols(session).get_by_symbol("BTC/USDT", shop.catalog.cat_ex_id)

    first, second = await ask(), await ask()
    await cache_manager.invalidate_symbol_caches(shop.catalog.cat_ex_id)
    gone = [await stored(key) for key in ("symbol:BTC/USDT:1", "symbol:by_id:1", "symbols:exchange:1")]
    third = await ask()
    await cache_manager.redis_client.set("mine", "1", ex=60)
    await cache_manager.invalidate_exchange_caches(shop.user.uid)

    assert first is not None
    assert second is not None
    assert third is not None
    assert first.to_dict() == second.to_dict() == third.to_dict()
    assert calls == ["names", "BTC/USDT", "BTC/USDT"]
    assert gone == [None] * 3
    assert await cache_manager.redis_client.ping()
    assert (await cache_manager.redis_client.info())["redis_version"]
    assert await cache_manager.redis_client.get("mine") == b"1"
    assert await stored(cache_keys.exchanges_of_user(shop.user.uid)) is None
    with pytest.raises(TypeError, match="not asynchronous"):
        cache_manager.cache_on_symbol_methods(cast("Any", len))


@pytest.mark.manual(
    "K10",
    "TTL, invalidation, fallback, decorators",
    differs="X6, X8, X17: what is stale is removed after the commit, and by the service where this cannot reach",
)
async def test_a_cache_lives_a_day_and_is_not_needed(shop: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, key = shop.catalog.cat_ex_id, f"symbol:BTC/USDT:{shop.catalog.cat_ex_id}"

    async def ask() -> Symbol:
        async with get_async_session() as session:
            symbol = await SymbolRepository(session).get_by_symbol("BTC/USDT", catalog)
        assert symbol is not None
        return symbol

    await ask()
    left = await cache_manager.redis_client.ttl(name_of(NAMESPACE, key))
    # What is rolled back makes nothing stale.
    async with get_async_session() as session:
        await SymbolRepository(session).update_symbol(shop.symbol.id, {"decimals": 7})
        await session.rollback()
    kept = await stored(key)
    # A session that holds the older row does not bring it back.
    async with get_async_session() as old:
        held = await old.get(Symbol, shop.symbol.id)
        async with get_async_session() as session:
            await SymbolRepository(session).update_symbol(shop.symbol.id, {"decimals": 5})
        renewed = await SymbolRepository(old).get_by_symbol("BTC/USDT", catalog)
    # A session of the service reads the database.
    async with build_session_maker(get_engine())() as session:
        row = await SymbolRepository(session).get_by_symbol("BTC/USDT", catalog)
        assert row in session
    await cache_manager.close()
    monkeypatch.setenv("REDIS_URL", "redis://localhost:1/0")
    await dispose_engine()
    without = await ask()
    async with get_async_session() as session:
        await SymbolRepository(session).update_symbol(shop.symbol.id, {"decimals": 6})
    changed = await ask()

    assert 86_400 * 0.89 < left <= 86_400
    assert kept["decimals"] == 2
    assert held is not None
    assert renewed is not None
    assert (held.decimals, renewed.decimals) == (2, 5)
    assert (without.decimals, changed.decimals) == (5, 6)


async def test_what_is_stale_is_removed_however_it_was_committed(shop: Market) -> None:
    catalog, key = shop.catalog.cat_ex_id, f"symbol:BTC/USDT:{shop.catalog.cat_ex_id}"
    session_maker = get_async_session_maker()

    async def ask() -> int | None:
        async with session_maker() as session:
            symbol = await SymbolRepository(session).get_by_symbol("BTC/USDT", catalog)
        return None if symbol is None else symbol.decimals

    async def by_begin(decimals: int) -> None:
        async with session_maker.begin() as session:
            await SymbolRepository(session).update_symbol(shop.symbol.id, {"decimals": decimals})

    async def by_blocks(decimals: int) -> None:
        async with session_maker() as session:
            async with session.begin():
                await SymbolRepository(session).update_symbol(shop.symbol.id, {"decimals": decimals})
            found = await SymbolRepository(session).get_decimals(shop.symbol.id)
            await session.rollback()
            async with session.begin():
                await ExchangeRepository(session).update(shop.exchange.ex_id, {"account": str(decimals)})
        assert found == decimals

    async def by_commit(decimals: int) -> None:
        async with session_maker() as session:
            symbol_repo = SymbolRepository(session)
            await symbol_repo.update_symbol(shop.symbol.id, {"decimals": decimals})
            await symbol_repo.commit()
            assert await stored(key) is None

    decimals = 2
    for change in (by_begin, by_blocks, by_commit):
        assert await ask() == decimals
        assert await stored(key) is not None
        decimals += 1
        await change(decimals)
        assert await ask() == decimals


async def test_an_object_out_of_the_cache_belongs_to_no_session(shop: Market) -> None:
    async with get_async_session() as session:
        symbol = await SymbolRepository(session).get_by_symbol("BTC/USDT", shop.catalog.cat_ex_id)
        assert symbol is not None
        assert symbol not in session

    assert symbol.to_dict() == {**shop.symbol.to_dict(), "updated_at": None}
    with pytest.raises(Exception, match=r"raise|detached|not bound"):
        _ = symbol.cat_exchange


async def test_nothing_of_a_row_is_cached_that_no_view_shows(shop: Market, redis_url: str) -> None:
    async with get_async_session() as session:
        await ExchangeRepository(session).get_exchanges_by_user(shop.user.uid)
        await ExchangeRepository(session).get_active_exchanges()

    async with Redis.from_url(redis_url) as redis:
        values: list[Any] = [await redis.get(name) for name in await redis.keys(name_of(NAMESPACE, "*"))]
    assert len(values) == 2
    assert not any(secret in value for value in values for secret in (b"api_key", b"api_secret", b"passphrase"))
