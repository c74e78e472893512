"""The functions of the manual, called as its examples do."""

import asyncio
import contextlib
import hashlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

import pytest
import uvloop
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import InterfaceError
from sqlalchemy.orm import Mapped, mapped_column, selectinload
from sqlalchemy.pool.base import ResetStyle
from structlog.testing import capture_logs

from contracts import ErrorCode, Refusal, new_key_pair, seal, unseal
from service import (
    Bot,
    BotRepository,
    Exchange,
    ExchangeRepository,
    Order,
    OrderRepository,
    Symbol,
    SymbolRepository,
    Trade,
    TradeRepository,
    User,
    UserRepository,
    UVLoopManager,
    bulk_create_symbols,
    cache_manager,
    complex_operation_with_cleanup,
    configure_high_performance_engine,
    create_complete_trading_setup,
    create_database_url,
    create_user_with_retry,
    dispose_engine,
    get_async_session,
    get_async_session_maker,
    get_bots_with_details_batch,
    get_cache_health,
    get_engine,
    get_symbols_with_fallback,
    get_trades_paginated,
    get_user_trading_stats,
    get_user_trading_summary,
    get_user_with_bots_optimized,
    get_users_for_api,
    init_db,
    monitor_connection_health,
    process_trades_background,
    run_with_uvloop,
    setup_uvloop,
    sync_exchange_data,
    use_postgresql_features,
    warm_symbol_cache,
)
from service.base import Base
from service.library import user as user_functions
from service.types import Double, double_precision, double_precision_nullable, money, serial_primary_key
from tests.manual.conftest import Market
from tests.observe import statements

HASHED = hashlib.sha256(b"password").hexdigest()


async def count(model: type[Base]) -> int:
    """How many rows a table has."""
    async with get_async_session() as session:
        return (await session.execute(select(func.count()).select_from(model))).scalar_one()


@pytest.mark.manual("F1", "run_with_uvloop")
def test_run_with_uvloop_runs_main_to_its_end(library: None) -> None:
    @run_with_uvloop
    async def main() -> list[User]:
        assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
        async with get_async_session() as session:
            user_repo = UserRepository(session)
            users = await user_repo.get_all()
        with pytest.raises(RuntimeError, match="__wrapped__"):
            main()
        await dispose_engine()
        return users

    assert main() == []


@pytest.mark.manual(
    "F2", "setup_uvloop", differs="X47: a running loop stays what it is, and without one it is for the next run"
)
def test_setup_uvloop_is_for_the_next_loop() -> None:
    async def manual_uvloop_setup() -> tuple[bool, bool]:
        return setup_uvloop(), isinstance(asyncio.get_running_loop(), uvloop.Loop)

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        assert runner.run(manual_uvloop_setup()) == (False, False)
    assert uvloop.run(manual_uvloop_setup()) == (True, True)
    if sys.version_info >= (3, 14):
        with pytest.raises(RuntimeError, match="run_with_uvloop"):
            setup_uvloop()
        return
    policy = asyncio.get_event_loop_policy()
    try:
        assert setup_uvloop()
        assert asyncio.run(manual_uvloop_setup()) == (True, True)
    finally:
        asyncio.set_event_loop_policy(policy)


@pytest.mark.manual("F3", "UVLoopManager", differs="X47: it cannot change a running loop, and says so in the log")
async def test_uvloop_manager_says_when_it_is_too_late(library: None) -> None:
    async def context_manager_uvloop() -> int:
        async with UVLoopManager(), get_async_session() as session:
            return int((await session.execute(text("SELECT 1"))).scalar_one())

    with capture_logs() as logs:
        assert await context_manager_uvloop() == 1

    on_uvloop = isinstance(asyncio.get_running_loop(), uvloop.Loop)
    assert [entry["event"] for entry in logs] == ([] if on_uvloop else ["not_on_uvloop"])


@pytest.mark.manual("F4", "get_engine")
async def test_get_engine_is_one_for_the_process(library: None) -> None:
    engine = get_engine()

    assert engine is get_engine()
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.manual("F5", "get_async_session_maker")
async def test_get_async_session_maker_makes_sessions_to_be_committed_by_hand(library: None) -> None:
    session_maker = get_async_session_maker()
    for commits in (False, True):
        async with session_maker() as session:
            await UserRepository(session).add_user({"mail": "user@example.com"})
            await (session.commit() if commits else session.rollback())

    assert await count(User) == 1


@pytest.mark.manual("F6", "get_async_session", differs="X25: it commits at its end; an explicit commit is fine too")
async def test_get_async_session_commits_or_rolls_back(library: None) -> None:
    async with get_async_session() as session:
        user = await UserRepository(session).create({"mail": "user@example.com"})
        bot = await BotRepository(session).add_bot({"uid": user.uid, "name": "Test Bot"})
        await session.commit()
        bot.to_dict()
    async with get_async_session() as session:
        await BotRepository(session).add_bot({"uid": user.uid, "name": "Another"})

    async def fail() -> None:
        async with get_async_session() as session:
            await BotRepository(session).add_bot({"uid": user.uid, "name": "Lost"})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with get_async_session() as session:
        assert [bot.name for bot in await BotRepository(session).get_bots_by_user(user.uid)] == [
            "Test Bot",
            "Another",
        ]


@pytest.mark.manual("F7", "init_db")
async def test_init_db_makes_all_tables_once(
    library: None, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database)

    await init_db()
    await init_db()

    assert await count(Trade) == 0


@pytest.mark.manual("F8", "create_database_url", differs="X50: DATABASE_URL, or DB_* with whatever password")
def test_create_database_url_is_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "RABBITMQ_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    parts = {"USER": "ada", "PASSWORD": "p@ss/word#1", "HOST": "db.example.org", "PORT": "5433", "NAME": "fullon"}
    for name, value in parts.items():
        monkeypatch.setenv(f"DB_{name}", value)

    url = create_database_url()

    assert url.drivername == "postgresql+asyncpg"
    assert (url.username, url.password, url.host, url.port, url.database) == (
        "ada",
        "p@ss/word#1",
        "db.example.org",
        5433,
        "fullon",
    )


@pytest.mark.manual(
    "F9", "configure_high_performance_engine", differs="X21: connections are given back after a rollback"
)
async def test_configure_high_performance_engine_makes_a_larger_pool(library: None) -> None:
    engine = await configure_high_performance_engine()
    try:
        async with engine.connect() as connection:
            assert await connection.scalar(text("SHOW jit")) == "off"
        pool = cast("Any", engine.pool)
        assert (pool.size(), pool._max_overflow, pool._recycle) == (30, 20, 1800)
        assert pool._reset_on_return is ResetStyle.reset_rollback
        assert engine is not get_engine()
    finally:
        await engine.dispose()


async def test_monitor_connection_health_counts_connections(library: None) -> None:
    async with get_async_session() as session:
        await session.execute(text("SELECT 1"))
        inside = await monitor_connection_health()
    async with get_engine().connect() as connection:
        await connection.invalidate()
    after = await monitor_connection_health()

    assert inside == {"pool_size": 20, "checked_in": 0, "checked_out": 1, "overflow": 0, "invalid": 0}
    assert (after["checked_out"], after["invalid"]) == (0, 1)


@pytest.mark.manual("F11", "create_complete_trading_setup")
async def test_create_complete_trading_setup_is_all_or_nothing(market: Market) -> None:
    user_data = {"mail": "new@example.com", "password": HASHED, "role": "USER"}
    bot_data = {"name": "Bot"}
    exchange_data = {"cat_ex_id": market.catalog.cat_ex_id, "ex_name": "main"}

    done = await create_complete_trading_setup(user_data, bot_data, exchange_data)
    again = await create_complete_trading_setup(user_data, bot_data, exchange_data)
    no_catalog = await create_complete_trading_setup(
        {"mail": "third@example.com"}, bot_data, {**exchange_data, "cat_ex_id": 99}
    )

    assert done["success"]
    assert done["bot"].uid == done["exchange"].uid == done["user"].uid
    async with get_async_session() as session:
        currency = await BotRepository(session).get_trading_currency(done["bot"].bot_id, done["exchange"].ex_id)
    assert currency == "USDT"
    assert again == {"error": "mail: is taken by another user", "success": False}
    assert no_catalog == {"error": "cat_ex_id: there is no such exchange", "success": False}
    assert await count(User) == 2
    assert "uid" not in bot_data


@pytest.mark.manual(
    "F12", "bulk_create_symbols", differs="X11: one statement, so that a symbol that is refused spoils no other"
)
async def test_bulk_create_symbols_creates_what_it_can(market: Market) -> None:
    catalog = market.catalog.cat_ex_id
    symbols_data: list[dict[str, Any]] = [
        *({"symbol": f"S{number}/USDT", "exchange_id": catalog, "decimals": 4} for number in range(25)),
        {"symbol": "BTC/USDT", "exchange_id": catalog, "decimals": 2},
        {"symbol": "BTC/USDT", "exchange_id": catalog, "decimals": 5},
        {"symbol": "eth/usdt", "exchange_id": catalog},
        {"symbol": "ETH/USDT", "exchange_id": 99},
        {"exchange_id": catalog},
    ]

    done = await bulk_create_symbols(symbols_data)

    assert (done["created"], done["existing"], done["failed"]) == (25, 1, 4)
    assert sorted(failure["error"].partition(":")[0] for failure in done["failures"]) == [
        "cat_ex_id",
        "symbol",
        "symbol",
        "symbol",
    ]
    assert all(failure["data"] in symbols_data for failure in done["failures"])
    assert await count(Symbol) == 26


@pytest.mark.manual(
    "F13", "get_user_trading_summary", differs="X46: the total is over all trades, with the newest hundred beside it"
)
async def test_get_user_trading_summary_is_kept_for_an_hour(market: Market, relied_on: None) -> None:
    async with get_async_session() as session:
        await TradeRepository(session).save_trades([{**market.trade, "price": 100, "size": 1} for _ in range(101)])

    summary = await get_user_trading_summary(market.user.uid)
    async with get_async_session() as session:
        await TradeRepository(session).create(market.trade)
    kept = await get_user_trading_summary(market.user.uid)

    assert summary is not None
    assert summary["user"]["mail"] == "user@company.com"
    assert "password" not in summary["user"]
    assert (summary["total_bots"], summary["active_bots"]) == (1, 0)
    assert (summary["recent_trades_count"], summary["recent_volume"]) == (100, Decimal(10_000))
    assert (summary["total_trades"], summary["total_volume"]) == (101, Decimal(10_100))
    assert datetime.fromisoformat(summary["generated_at"]).tzinfo is not None
    assert kept == summary
    assert await get_user_trading_summary(99) is None


@pytest.mark.manual(
    "F14",
    "warm_symbol_cache",
    differs="X35: few statements and round trips for any number of symbols",
)
async def test_warm_symbol_cache_caches_every_symbol_of_a_catalog(market: Market, relied_on: None) -> None:
    catalog = market.catalog.cat_ex_id
    await bulk_create_symbols([{"symbol": f"S{number}/USDT", "exchange_id": catalog} for number in range(600)])

    with statements(get_engine()) as warming:
        assert await warm_symbol_cache(catalog) == 601
    with statements(get_engine()) as reading:
        async with get_async_session() as session:
            symbol_repo = SymbolRepository(session)
            symbols = await symbol_repo.get_by_exchange_id(catalog)
            for symbol in symbols[:3]:
                found = await symbol_repo.get_by_symbol(symbol.symbol, catalog)
                assert found is not None
                assert found.to_dict() == symbol.to_dict()
                assert await symbol_repo.get_decimals(symbol.id) == symbol.decimals

    assert len([statement for statement in warming if "symbols" in statement]) == 2
    assert len(symbols) == 601
    assert reading == []


async def test_get_cache_health_tells_hits_and_outages(
    market: Market, relied_on: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await get_cache_health()
    for _ in range(3):
        async with get_async_session() as session:
            await SymbolRepository(session).get_decimals(market.symbol.id)
    after = await get_cache_health()
    monkeypatch.setenv("REDIS_URL", "redis://localhost:1/0")
    away = await get_cache_health()

    assert set(after) == {
        "redis_status",
        "connected_clients",
        "used_memory",
        "cache_hits",
        "cache_misses",
        "uptime",
    }
    assert after["redis_status"] == "healthy"
    assert after["cache_hits"] - before["cache_hits"] == 2
    assert after["cache_misses"] - before["cache_misses"] == 1
    assert away["redis_status"] == "unhealthy"
    assert away.keys() == {"redis_status", "error"}


@pytest.mark.manual("F16", "get_user_with_bots_optimized")
async def test_get_user_with_bots_optimized_is_one_query(market: Market) -> None:
    async with get_async_session() as session:
        await BotRepository(session).add_bot({"uid": market.user.uid, "name": "Second"})

    with statements(get_engine()) as sent:
        user = await get_user_with_bots_optimized(market.user.uid)

    assert user is not None
    assert [bot.name for bot in user.bots] == ["Scalping Bot V1", "Second"]
    assert len(sent) == 1
    assert await get_user_with_bots_optimized(99) is None


@pytest.mark.manual(
    "F17", "get_bots_with_details_batch", differs="X44: a statement per relationship, without the cartesian product"
)
async def test_get_bots_with_details_batch_loads_all_at_once(market: Market) -> None:
    async with get_async_session() as session:
        others = [
            await BotRepository(session).add_bot({"uid": market.user.uid, "name": f"Bot {number}"})
            for number in range(3)
        ]
    counts = []
    for ids in ([market.bot.bot_id], [others[0].bot_id, market.bot.bot_id, 99, others[2].bot_id]):
        with statements(get_engine()) as sent:
            bots = await get_bots_with_details_batch(ids)
        counts.append(len(sent))

    assert [bot.name for bot in bots] == ["Bot 0", "Scalping Bot V1", "Bot 2"]
    assert {bot.user.mail for bot in bots} == {"user@company.com"}
    assert [link.trading_currency for link in bots[1].bot_exchanges] == ["USDT"]
    assert bots[1].strategies == []
    assert counts[0] == counts[1] <= 4


@pytest.mark.manual("F18", "get_trades_paginated", differs="X45: with a cursor beside the pages, for long lists")
async def test_get_trades_paginated_pages_newest_first(market: Market) -> None:
    start = datetime(2024, 1, 1, tzinfo=UTC)
    async with get_async_session() as session:
        await TradeRepository(session).save_trades(
            [
                {**market.trade, "ex_trade_id": str(number), "timestamp": start + timedelta(minutes=number)}
                for number in range(5)
            ]
        )

    first = await get_trades_paginated(market.user.uid, page=1, page_size=2)
    second = await get_trades_paginated(market.user.uid, page=2, page_size=2)
    behind = await get_trades_paginated(market.user.uid, page_size=2, cursor=first["next_cursor"])

    assert [trade.ex_trade_id for trade in first["trades"]] == ["4", "3"]
    assert first["pagination"] == {"page": 1, "page_size": 2, "total": 5, "pages": 3}
    assert [trade.ex_trade_id for trade in second["trades"]] == ["2", "1"]
    assert behind["trades"][0].trade_id == second["trades"][0].trade_id
    for page, size in ((0, 100), (1, 0), (1, 1001)):
        with pytest.raises(Refusal) as refusal:
            await get_trades_paginated(market.user.uid, page, size)
        assert refusal.value.code is ErrorCode.VALIDATION


@pytest.mark.manual(
    "F19", "get_user_trading_stats", differs="X46: exact amounts, and the volume-weighted price beside the plain mean"
)
async def test_get_user_trading_stats_is_one_query(market: Market) -> None:
    async with get_async_session() as session:
        await TradeRepository(session).save_trades(
            [
                {**market.trade, "ex_trade_id": "1", "size": 1, "price": 100},
                {**market.trade, "ex_trade_id": "2", "size": 3, "price": 200, "side": "sell"},
            ]
        )

    with statements(get_engine()) as sent:
        stats = await get_user_trading_stats(market.user.uid)

    assert stats == {
        "total_trades": 2,
        "total_volume": 700,
        "average_price": 150,
        "vwap": 175,
        "buy_volume": 100,
        "sell_volume": 600,
        "net_volume": -500,
    }
    assert all(isinstance(stats[name], Decimal) for name in stats if name != "total_trades")
    assert len(sent) == 1
    assert set((await get_user_trading_stats(99)).values()) == {0}


@pytest.mark.manual("F20", "get_users_for_api", differs="X3: without password and second factor")
async def test_get_users_for_api_gives_dictionaries(library: None) -> None:
    async with get_async_session() as session:
        user_repo = UserRepository(session)
        manager = await user_repo.add_user({"mail": "manager@example.com", "password": HASHED, "role": "ADMIN"})
        await user_repo.add_user({"mail": "managed@example.com", "manager": manager.uid, "active": False})

    managed = await get_users_for_api(manager_id=manager.uid)
    active = await get_users_for_api()

    assert [user["mail"] for user in managed] == ["managed@example.com"]
    assert [user["mail"] for user in active] == ["manager@example.com"]
    assert active[0]["role"] == "ADMIN"
    assert not {"password", "f2a"} & active[0].keys()


@pytest.mark.manual(
    "F21", "custom PostgreSQL types", differs="X1: a double is for statistics; amounts have money() beside it"
)
async def test_custom_types_make_columns(library: None) -> None:
    class CustomModel(Base):
        __tablename__ = "custom_table"

        id: Mapped[int] = serial_primary_key()
        price: Mapped[float] = double_precision()
        volume: Mapped[float] = double_precision()
        optional_value: Mapped[float | None] = double_precision_nullable()
        cost: Mapped[Decimal] = money()
        ratio: Mapped[float] = mapped_column(Double)

    table = cast("Any", CustomModel.__table__)
    try:
        async with get_engine().connect() as connection:
            await connection.run_sync(table.create)
            async with get_async_session_maker()(bind=connection) as session:
                row = CustomModel(price=0.1, volume=2.5, cost=Decimal("0.10"), ratio=0.5)
                session.add(row)
                await session.flush()
                session.expire_all()
                await session.refresh(row)
                assert (row.id, row.price, row.optional_value) == (1, 0.1, None)
                assert str(row.cost) == "0.10"
            await connection.rollback()
    finally:
        Base.metadata.remove(table)


@pytest.mark.manual("F22", "use_postgresql_features", differs="X23: a row becomes a dictionary by its mapping")
async def test_use_postgresql_features_is_median_and_deviation(market: Market) -> None:
    now = datetime.now(UTC)
    prices = ((1, 100, now), (2, 200, now), (3, 600, now), (4, 9999, now - timedelta(days=31)))
    async with get_async_session() as session:
        await TradeRepository(session).save_trades(
            [
                {**market.trade, "ex_trade_id": str(number), "price": price, "timestamp": when}
                for number, price, when in prices
            ]
        )

    [stats] = await use_postgresql_features()

    assert stats["symbol_id"] == market.symbol.id
    assert stats["median_price"] == 200
    assert stats["price_volatility"] == pytest.approx(264.575131)


@pytest.mark.manual(
    "F23",
    "create_user_with_retry",
    differs="X10, X15, X16: a commit that got lost is found again",
)
async def test_create_user_with_retry_creates_one_user(library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def no_wait(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("service.library.user.asyncio.sleep", no_wait)
    create = user_functions._create_user
    lost = [InterfaceError("COMMIT", None, ConnectionError()), ConnectionRefusedError()]

    async def losing(user_data: dict[str, Any], *, is_retry: bool) -> User:
        """Cannot connect, or commits and lets nobody know, for as long as something is to be lost."""
        error = lost.pop(0) if lost else None
        if isinstance(error, ConnectionRefusedError):
            raise error
        user = await create(user_data, is_retry=is_retry)
        if error is not None:
            raise error
        return user

    user_data = {"mail": "user@example.com", "password": HASHED, "name": "Ada"}
    monkeypatch.setattr(user_functions, "_create_user", losing)

    created = await create_user_with_retry(user_data)
    taken = await create_user_with_retry({**user_data, "name": "Eve"})
    lost.append(ConnectionRefusedError())
    taken_meanwhile = await create_user_with_retry({**user_data, "name": "Eve"})
    plain = await create_user_with_retry({"mail": "other@example.com", "password": "secret"})
    monkeypatch.setenv("DATABASE_URL", "postgresql://localhost:1/nothing")
    await dispose_engine()
    away = await create_user_with_retry({"mail": "third@example.com"}, max_retries=2)

    assert (created["success"], created["attempts"], created["user"]["mail"]) == (True, 3, "user@example.com")
    assert "password" not in created["user"]
    assert waits == [1, 2, 1, 1]
    error = {"success": False, "error": "mail: is taken by another user", "type": "integrity_error", "attempts": 1}
    assert taken == error
    assert taken_meanwhile == {**error, "attempts": 2}
    assert (plain["success"], plain["type"]) == (False, "unknown_error")
    assert "secret" not in str(plain)
    assert (away["success"], away["type"], away["attempts"]) == (False, "connection_error", 2)


@pytest.mark.manual(
    "F24", "get_symbols_with_fallback", differs="X19: what is known last, or unavailable; never a made-up empty list"
)
async def test_get_symbols_with_fallback_survives_the_database(
    market: Market, relied_on: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = market.catalog.cat_ex_id
    symbols = await get_symbols_with_fallback(catalog)
    nothing = await get_symbols_with_fallback(99)
    monkeypatch.setenv("DATABASE_URL", "postgresql://localhost:1/nothing")
    await dispose_engine()
    await cache_manager.values.invalidate([f"symbols:exchange:{cat_ex_id}" for cat_ex_id in (catalog, 99)])

    with capture_logs() as logs:
        known = await get_symbols_with_fallback(catalog)

    assert [symbol.id for symbol in symbols] == [market.symbol.id]
    assert nothing == []
    assert [(symbol.id, symbol.symbol, symbol.decimals) for symbol in known] == [(market.symbol.id, "BTC/USDT", 2)]
    assert "database_away" in [entry["event"] for entry in logs]
    assert await get_symbols_with_fallback(99) == []
    with pytest.raises(Refusal) as refusal:
        await get_symbols_with_fallback(100)
    assert refusal.value.code is ErrorCode.UNAVAILABLE


@pytest.mark.manual("F25", "complex_operation_with_cleanup")
async def test_complex_operation_with_cleanup_leaves_nothing_behind(market: Market) -> None:
    data: dict[str, Any] = {
        "user": {"mail": "new@example.com"},
        "exchange": {"cat_ex_id": market.catalog.cat_ex_id, "ex_name": "main"},
        "bot": {"name": "Bot"},
    }

    failed = await complex_operation_with_cleanup({**data, "simulate_error": True})
    done = await complex_operation_with_cleanup(data)

    assert (failed["success"], failed["error"]) == (False, "ValueError: Simulated error for testing")
    assert [kind for kind, _ in failed["attempted_entities"]] == ["user", "exchange", "bot"]
    assert done["success"]
    assert done["entities"][0] == ("user", done["user_id"])
    assert (await count(User), await count(Exchange), await count(Bot)) == (2, 2, 2)


@pytest.mark.manual(
    "F26", "process_trades_background", differs="X12: orders are claimed, and filled one transaction each"
)
async def test_process_trades_background_fills_each_order_once(market: Market) -> None:
    async with get_async_session() as session:
        order_repo = OrderRepository(session)
        orders = [await order_repo.create(market.order) for _ in range(6)]
    seen: list[int] = []

    async def should_fill_order(order: Order) -> bool:
        seen.append(order.order_id)
        if order.order_id == orders[1].order_id:
            raise ZeroDivisionError
        if order.order_id == orders[2].order_id:
            # It took so long to decide that another worker was given the order.
            async with get_async_session() as session:
                await session.execute(
                    update(Order).where(Order.order_id == order.order_id).values(leased_by="another")
                )
        return order.order_id != orders[0].order_id

    async def get_market_price(symbol_id: int) -> float:
        return 45050.5

    def calculate_fee(order: Order) -> Decimal:
        return order.size / 1000

    async def work() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(
                process_trades_background(should_fill_order, get_market_price, calculate_fee, interval=30), 30
            )

    workers = [asyncio.create_task(work()) for _ in range(2)]
    async with asyncio.timeout(20):
        while await count(Trade) < 3 or len(seen) < 6:
            await asyncio.sleep(0.05)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)

    async with get_async_session() as session:
        stored = {order.order_id: order for order in await OrderRepository(session).get_all()}
        trades = await TradeRepository(session).get_all()
    assert sorted(seen) == [order.order_id for order in orders]
    assert [stored[order.order_id].status for order in orders] == ["pending"] * 3 + ["filled"] * 3
    assert sorted(cast("int", trade.order_id) for trade in trades) == [order.order_id for order in orders[3:]]
    assert {(trade.price, trade.fee, trade.fee_currency) for trade in trades} == {
        (Decimal("45050.5"), Decimal("0.000001"), "USDT")
    }


@pytest.mark.manual(
    "F27", "sync_exchange_data", differs="X11: one statement for all symbols, the exchange being asked before"
)
async def test_sync_exchange_data_creates_and_updates(market: Market) -> None:
    asked = []

    async def fetch_exchange_symbols(exchange: Exchange) -> list[dict[str, Any]]:
        asked.append(exchange.ex_name)
        assert get_engine().pool.checkedout() == 0  # type: ignore[attr-defined]
        return [
            {"symbol": "BTC/USDT", "decimals": 3},
            {"symbol": "ETH/USDT", "exchange_id": 99, "tick_size": 0.01},
            {"symbol": "ADA/USDT", "decimals": 99},
            {"ticker": "NONAME"},
        ]

    results = await sync_exchange_data(market.exchange.ex_id, fetch_exchange_symbols)
    again = await sync_exchange_data(market.exchange.ex_id, fetch_exchange_symbols)

    assert (results["created"], results["updated"]) == (1, 1)
    assert [error["symbol"] for error in results["errors"]] == ["ADA/USDT", "unknown"]
    assert (again["created"], again["updated"], again["unchanged"]) == (0, 0, 2)
    async with get_async_session() as session:
        symbol = await SymbolRepository(session).get_by_symbol("ETH/USDT", market.catalog.cat_ex_id)
    assert symbol is not None
    assert symbol.tick_size == Decimal("0.01")
    assert await sync_exchange_data(99, fetch_exchange_symbols) == {"error": "Exchange not found"}
    assert asked == ["Binance Main"] * 2


@pytest.mark.manual(
    "F28",
    "standard_operation, cached_query, optimized_query",
    differs="X17, X44: the decorator awaits, and a limit joins nothing",
)
async def test_common_patterns_work(market: Market, relied_on: None) -> None:
    async def standard_operation(data: dict[str, Any]) -> dict[str, Any]:
        async with get_async_session() as session:
            repo = SymbolRepository(session)
            try:
                result = await repo.add_symbol(data)
                await session.commit()
            except Exception as error:  # noqa: BLE001 - as the manual has it
                await session.rollback()
                return {"success": False, "error": str(error)}
            return {"success": True, "data": result.to_dict()}

    calls = []

    class MySymbols(SymbolRepository):
        @cache_manager.cache_on_symbol_methods
        async def cached_query(self, param: str) -> list[Symbol]:
            calls.append(param)
            return await self.search_symbols(param)

    async def optimized_query() -> list[Bot]:
        async with get_async_session() as session:
            stmt = select(Bot).options(selectinload(Bot.bot_exchanges)).where(Bot.uid == market.user.uid).limit(100)
            return list(await session.scalars(stmt))

    added = await standard_operation({"symbol": "ETH/USDT", "exchange_id": market.catalog.cat_ex_id})
    refused = await standard_operation({"symbol": "ETH/USDT", "exchange_id": 99})
    async with get_async_session() as session:
        found = [await MySymbols(session).cached_query(param) for param in ("BTC", "BTC", "ETH")]

    assert (added["success"], added["data"]["symbol"]) == (True, "ETH/USDT")
    assert refused == {"success": False, "error": "cat_ex_id: there is no catalog exchange 99"}
    assert [[symbol.symbol for symbol in symbols] for symbols in found] == [["BTC/USDT"], ["BTC/USDT"], ["ETH/USDT"]]
    assert calls == ["BTC", "ETH"]
    assert len((await optimized_query())[0].bot_exchanges) == 1


@pytest.mark.manual("F29", "what the caller brings", differs="X2, X4: known hashes, and encrypt is seal()")
async def test_callers_bring_hashes_and_sealed_keys(market: Market, keys: tuple[str, str]) -> None:
    mine, own = new_key_pair()
    uid = market.user.uid

    def encrypt(secret: str, field: str) -> str:
        return seal(secret, keys[1], uid=uid, field=field)

    async with get_async_session() as session:
        user_repo, exchange_repo = UserRepository(session), ExchangeRepository(session)
        user = await user_repo.add_user({"mail": "hashed@example.com", "password": HASHED})
        exchange = await exchange_repo.create(
            {
                "uid": uid,
                "cat_ex_id": market.catalog.cat_ex_id,
                "ex_name": "sealed",
                "api_key": encrypt("the key", "api_key"),
                "api_secret": encrypt("the secret", "api_secret"),
            }
        )
        found = await exchange_repo.get_exchange_credentials(exchange.ex_id, own)
        for refused in ({"password": "plain text"}, {"password": "5f4dcc3b"}):
            with pytest.raises(Refusal, match="hashed"):
                await user_repo.add_user({"mail": "plain@example.com", **refused})
        with pytest.raises(Refusal, match="api_key"):
            await exchange_repo.update(exchange.ex_id, {"api_key": "plain text"})

    assert user.password == HASHED
    assert found is not None
    assert found.api_key is not None
    assert unseal(found.api_key, mine, uid=uid, field="api_key") == "the key"


@pytest.mark.manual("F30", "endpoints of a web framework", differs="X3: secrets do not leave")
async def test_endpoints_of_a_web_framework_work(library: None) -> None:
    class HttpError(Exception):
        pass

    async def get_db_session() -> AsyncIterator[Any]:
        async with get_async_session() as session:
            yield session

    async def get_user_repo(session: Any) -> UserRepository:
        return UserRepository(session)

    async def create_user(user_data: dict[str, Any], user_repo: UserRepository) -> dict[str, Any]:
        try:
            user = await user_repo.add_user(user_data)
            await user_repo.commit()
        except Exception as error:
            await user_repo.rollback()
            raise HttpError(400, str(error)) from error
        return {"success": True, "user": user.to_dict()}

    async def get_user_bots(user_id: int, session: Any) -> dict[str, Any]:
        bots = await BotRepository(session).get_bots_by_user(user_id)
        return {"user_id": user_id, "bots": [bot.to_dict() for bot in bots]}

    async def verify_user_token(token: str, session: Any) -> User:
        user = await UserRepository(session).get_by_email(token)
        if not user or not user.active:
            raise HttpError(401, "Invalid user")
        return user

    async def injected(endpoint: Callable[[Any], Awaitable[Any]]) -> Any:
        """What a framework does: runs the dependency around the endpoint."""
        async with contextlib.asynccontextmanager(get_db_session)() as session:
            return await endpoint(session)

    async def post(session: Any) -> dict[str, Any]:
        return await create_user({"mail": "api@example.com", "password": HASHED}, await get_user_repo(session))

    created = await injected(post)
    uid = created["user"]["uid"]
    with pytest.raises(HttpError):
        await injected(post)
    bots = await injected(lambda session: get_user_bots(uid, session))
    user = await injected(lambda session: verify_user_token("API@example.com", session))
    with pytest.raises(HttpError):
        await injected(lambda session: verify_user_token("nobody@example.com", session))

    assert created["success"]
    assert "password" not in created["user"]
    assert bots == {"user_id": uid, "bots": []}
    assert user.to_dict() == created["user"]
