"""What the tests of the manual start from: the library in a program of its own, and a market to trade on."""

import asyncio
import json
import secrets
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

import pytest
from redis.asyncio import Redis
from sqlalchemy import delete, select

from contracts import Lookup, new_key_pair
from contracts.leased_cache import LeasedCache, connect
from deploy.servers import Servers
from service import (
    Bot,
    BotLog,
    BotRepository,
    CatExchange,
    DryTrade,
    Exchange,
    ExchangeRepository,
    Feed,
    Order,
    OrderRepository,
    Strategy,
    StrategyRepository,
    Symbol,
    SymbolRepository,
    Trade,
    TradeRepository,
    User,
    UserRepository,
    cache_manager,
    dispose_engine,
    get_async_session,
    get_engine,
)
from service.base import Base
from service.config import LibrarySettings
from service.database import SessionMaker, build_session_maker
from service.lookup_server import LookupServer
from service.models import OutboxEvent, Simulation
from service.publisher import Publisher
from service.repositories import AccountRepository, TickRepository
from service.vault import Vault
from tests.builders import certify
from tests.fresh import execute, with_path
from tests.manual.record import Claims, Table

_CLAIMS: Final = pytest.StashKey[Claims]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("manual")
    group.addoption("--manual-table", action="store_true", help="print the record of conformance with the manual")
    group.addoption("--manual-json", type=Path, metavar="FILE", help="write it to a file, for programs")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(
        Table(
            is_shown=config.getoption("--manual-table", default=False),
            file=config.getoption("--manual-json", default=None),
        )
    )


# First, so that tests that are left out by -k and the like are known too.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    claims = config.stash.setdefault(_CLAIMS, Claims(Path(__file__).parent))
    for item in items:
        claims.add(item)


@pytest.fixture
def claims(request: pytest.FixtureRequest) -> Claims:
    """Which rows of the checklist the tests of this run say they show."""
    return request.config.stash[_CLAIMS]


@pytest.fixture(scope="session")
def keys() -> tuple[str, str]:
    """A pair of keys that credentials are sealed with: private and public."""
    return new_key_pair()


@pytest.fixture(scope="session")
def manual_database(servers: Servers, migrated_template: str) -> Iterator[str]:
    """The URL of a database that tests of this package take turns with."""
    name = f"manual_{secrets.token_hex(6)}"
    copy = f'CREATE DATABASE "{name}" TEMPLATE "{migrated_template}"'
    asyncio.run(execute(servers.database_url, copy))
    yield with_path(servers.database_url, name)
    asyncio.run(execute(servers.database_url, f'DROP DATABASE "{name}" WITH (FORCE)'))


@pytest.fixture
async def emptied_database(manual_database: str) -> str:
    """The URL of a database without rows whose numbers begin at 1.

    Emptying one takes a tenth of the time of making one, which counts with hundreds of short tests.
    """
    deletes = [f'DELETE FROM "{table.name}"' for table in reversed(Base.metadata.sorted_tables)]  # noqa: S608
    restart = "SELECT setval(oid::regclass, 1, false) FROM pg_class WHERE relkind = 'S'"
    await execute(manual_database, "; ".join([*deletes, restart]))
    return manual_database


@pytest.fixture
async def library(
    emptied_database: str, redis_url: str, keys: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[None]:
    """The library in a program whose environment names the servers of this test."""
    environment = {
        "DATABASE_URL": emptied_database,
        "RABBITMQ_URL": "amqp://localhost/",
        "REDIS_URL": redis_url,
        "SEALING_KEY": keys[0],
        "STORAGE_KEYS": f"first:{b64encode(secrets.token_bytes(32)).decode()}",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    yield
    await cache_manager.close()
    await dispose_engine()


@dataclass(frozen=True)
class Market:
    """What the manual's examples start from: a user with a bot and an account where a symbol is listed."""

    user: User
    catalog: CatExchange
    exchange: Exchange
    symbol: Symbol
    bot: Bot

    @property
    def ids(self) -> dict[str, int]:
        """What an order or a trade is about."""
        return {
            "bot_id": self.bot.bot_id,
            "uid": self.user.uid,
            "ex_id": self.exchange.ex_id,
            "symbol_id": self.symbol.id,
        }

    @property
    def order(self) -> dict[str, Any]:
        """The manual's order."""
        terms = {"side": "buy", "size": 0.001, "price": 45000.0, "order_type": "limit", "status": "pending"}
        return {**self.ids, **terms}

    @property
    def trade(self) -> dict[str, Any]:
        """The manual's trade, without an order."""
        terms = {"side": "buy", "size": 0.001, "price": 45050.0, "fee": 0.45, "fee_currency": "USDT"}
        return {**self.ids, **terms, "ex_trade_id": secrets.token_hex(8)}


async def a_market(mail: str = "user@company.com", symbol: str = "BTC/USDT", catalog: str = "binance") -> Market:
    """A market, set up with the library alone; one of several when given other names."""
    async with get_async_session() as session:
        user = await UserRepository(session).add_user({"mail": mail})
        exchange_repo, bot_repo = ExchangeRepository(session), BotRepository(session)
        listed, _ = await exchange_repo.install_exchange(catalog)
        exchange = await exchange_repo.create(
            {"uid": user.uid, "cat_ex_id": listed.cat_ex_id, "ex_name": "Binance Main", "account": "main_trading"}
        )
        pair = await SymbolRepository(session).add_symbol(
            {"symbol": symbol, "exchange_id": listed.cat_ex_id, "decimals": 2}
        )
        bot = await bot_repo.add_bot({"uid": user.uid, "name": "Scalping Bot V1"})
        await bot_repo.add_exchange_to_bot(bot.bot_id, {"exchange_id": exchange.ex_id, "trading_currency": "USDT"})
    return Market(user, listed, exchange, pair, bot)


@pytest.fixture
async def market(library: None) -> Market:
    """A market of this test's own."""
    return await a_market()


@dataclass(frozen=True)
class Furnished:
    """One of everything that hangs on the rows of a market."""

    market: Market
    order: Order
    trade: Trade
    dry_trade: DryTrade
    strategy: Strategy
    feed: Feed
    log: BotLog
    simulation: Simulation


@pytest.fixture
async def furnished(market: Market) -> Furnished:
    """A market with one of everything in it."""
    ids, bot_id, noon = market.ids, market.bot.bot_id, datetime(2024, 1, 1, 12, tzinfo=UTC)
    async with get_async_session() as session:
        bots, trades, strategies = BotRepository(session), TradeRepository(session), StrategyRepository(session)
        template, _ = await strategies.install_strategy({"name": "trend"}, {"period": "20"})
        strategy = await strategies.add_bot_strategy({"bot_id": bot_id, "cat_str_id": template.cat_str_id})
        feed = await bots.add_feed_to_bot(bot_id, {"symbol_id": market.symbol.id, "timeframe": "1m", "enabled": True})
        log = await bots.save_bot_log({"bot_id": bot_id, "message": "Strategy executed successfully"})
        simulation = await bots.save_simulation(
            {
                "bot_id": bot_id,
                "name": "Backtest 2024-01",
                "start_date": datetime(2024, 1, 1, tzinfo=UTC),
                "end_date": datetime(2024, 1, 31, tzinfo=UTC),
                "initial_balance": 10000.0,
                "final_balance": 11250.0,
                "total_trades": 156,
                "win_rate": 0.67,
                "sharpe_ratio": 1.43,
            }
        )
        order = await OrderRepository(session).create(market.order)
        trade = await trades.create({**market.trade, "order_id": order.order_id})
        dry_trade = await trades.save_dry_trade({**ids, "side": "buy", "size": 1, "price": 100, "roi": 5})
        accounts = AccountRepository(session)
        await accounts.upsert_balances(ids["ex_id"], [{"currency": "USDT", "free": 90, "used": 10}], noon)
        await accounts.upsert_positions(
            ids["ex_id"], [{"symbol_id": ids["symbol_id"], "volume": 1, "price": 9}], noon
        )
        await TickRepository(session).record_ticks([{"symbol_id": ids["symbol_id"], "price": 9, "timestamp": noon}])
    return Furnished(market, order, trade, dry_trade, strategy, feed, log, simulation)


@pytest.fixture
def sessions(library: None) -> SessionMaker:
    """Sessions on the database of this test, as the service has them."""
    return build_session_maker(get_engine(), Vault.of(LibrarySettings.read()))


def relied_on_cache(redis: Redis) -> LeasedCache:
    """A cache that is used, as it is beside a service that keeps it fresh."""
    ttl, count = LibrarySettings.read().cache_ttl, cache_manager.values._count
    return LeasedCache(redis, namespace="persistence", timeout=2, ttl=ttl, count=count)


@pytest.fixture
async def cache(library: None, redis_url: str) -> AsyncIterator[LeasedCache]:
    """A cache as the service has one."""
    redis = connect(redis_url, timeout=2)
    yield relied_on_cache(redis)
    await redis.aclose()


@pytest.fixture
async def relied_on(library: None, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library reads through the cache, which is certified as by a service that keeps it fresh."""
    monkeypatch.setenv("CACHE_TIMEOUT", "2")
    # What it has seen so far, while nobody certified the cache, holds for half a second.
    await cache_manager.close()
    await certify(redis_url)


@pytest.fixture
def server(sessions: SessionMaker, cache: LeasedCache) -> LookupServer:
    """Answers lookups, through the cache where they are cached."""
    # Nobody waits for an answer over the broker here.
    return LookupServer(sessions, cache, cast("Publisher", None))


async def asked(server: LookupServer, lookup: Lookup[Any]) -> Any:
    """The answer to a lookup, as it goes over the wire."""
    return json.loads(await server.answer(lookup))


async def stale_keys(sessions: SessionMaker) -> list[str]:
    """What the events that wait to be published make stale; they are taken away."""
    async with sessions.begin() as session:
        events = (await session.scalars(select(OutboxEvent).order_by(OutboxEvent.id))).all()
        await session.execute(delete(OutboxEvent))
    return [key for event in events for key in event.stale_keys]
