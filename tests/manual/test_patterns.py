"""The manual's patterns, as it writes them: sessions, transactions, caching, queries and what to do about errors."""

import json
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import case, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import joinedload, selectinload

from contracts import Refusal
from service import (
    Bot,
    BotRepository,
    ExchangeRepository,
    SymbolRepository,
    Trade,
    TradeRepository,
    User,
    UserRepository,
    cache_manager,
    complex_operation_with_cleanup,
    create_complete_trading_setup,
    create_user_with_retry,
    get_async_session,
    get_async_session_maker,
    get_engine,
    get_symbols_with_fallback,
    get_trades_paginated,
    warm_symbol_cache,
)
from tests.manual.conftest import Market, a_market
from tests.observe import statements


async def addresses() -> set[str]:
    """The mail addresses of all users."""
    async with get_async_session() as session:
        return {user.mail for user in await UserRepository(session).get_all()}


@pytest.mark.manual("W1", "session by context manager", differs="X25: the commit inside is allowed, not needed")
async def test_a_session_commits_at_its_end_and_rolls_back_on_an_exception(library: None) -> None:
    async with get_async_session() as session:
        user_repo = UserRepository(session)
        bot_repo = BotRepository(session)
        user = await user_repo.create({"mail": "explicit@company.com"})
        bot = await bot_repo.add_bot({"uid": user.uid, "name": "Test Bot"})
        await session.commit()
    async with get_async_session() as session:
        await UserRepository(session).create({"mail": "automatic@company.com"})
    with pytest.raises(ZeroDivisionError):
        async with get_async_session() as session:
            await UserRepository(session).create({"mail": "never@company.com", "active": 1 / 0})

    assert bot.uid == user.uid
    assert await addresses() == {"explicit@company.com", "automatic@company.com"}


@pytest.mark.manual("W2", "session by hand")
async def test_a_session_can_be_ended_by_hand(library: None) -> None:
    session_maker = get_async_session_maker()
    for divisor in (1, 0):
        async with session_maker() as session:
            try:
                user = await UserRepository(session).create({"mail": f"{divisor}@company.com"})
                user.note = str(1 / divisor)
                await session.commit()
            except ZeroDivisionError:
                await session.rollback()

    assert await addresses() == {"1@company.com"}


@pytest.mark.manual("W3", "transaction by repository")
async def test_a_repository_can_end_the_transaction(library: None) -> None:
    async with get_async_session() as session:
        user_repo = UserRepository(session)
        for mail in ("user@company.com", "USER@company.com"):
            try:
                await user_repo.add_user({"mail": mail})
                await user_repo.commit()
            except IntegrityError:
                await user_repo.rollback()

    assert await addresses() == {"user@company.com"}


@pytest.mark.manual("W4", "one transaction of many repositories", differs="X9: the error is a sentence, not a query")
async def test_a_setup_is_made_as_a_whole_or_not_at_all(market: Market) -> None:
    account = {"cat_ex_id": market.catalog.cat_ex_id, "ex_name": "main"}

    made = await create_complete_trading_setup({"mail": "a@company.com"}, {"name": "bot"}, account)
    failed = await create_complete_trading_setup(
        {"mail": "b@company.com"}, {"name": "bot"}, {**account, "cat_ex_id": 9}
    )

    assert made["success"]
    assert made["bot"].uid == made["exchange"].uid == made["user"].uid
    assert (failed["success"], "SELECT" in failed["error"], "INSERT" in failed["error"]) == (False, False, False)
    assert await addresses() == {"user@company.com", "a@company.com"}


@pytest.mark.manual(
    "W5", "a batch of which a part fails", differs="X11: a savepoint for each, or one statement for all"
)
async def test_a_part_of_a_batch_may_fail(market: Market) -> None:
    created, failures = [], []
    async with get_async_session() as session:
        symbol_repo = SymbolRepository(session)
        for decimals in (4, 99, 6):
            symbol_data = {
                "symbol": f"S{decimals}/USDT",
                "exchange_id": market.catalog.cat_ex_id,
                "decimals": decimals,
            }
            try:
                async with session.begin_nested():
                    created.append(await symbol_repo.add_symbol(symbol_data))
            except IntegrityError as error:
                failures.append((symbol_data["symbol"], error))
    async with get_async_session() as session:
        listed = await SymbolRepository(session).get_by_exchange_id(market.catalog.cat_ex_id)

    assert [symbol.symbol for symbol in listed] == ["BTC/USDT", "S4/USDT", "S6/USDT"]
    assert [symbol for symbol, _ in failures] == ["S99/USDT"]


@pytest.mark.manual("W6", "caching by hand")
@pytest.mark.filterwarnings("ignore:Call to deprecated setex")
async def test_a_value_can_be_cached_by_hand(market: Market) -> None:
    async def summary(uid: int) -> dict[str, Any]:
        cache_key = f"mine:summary:{uid}"
        cached_data = await cache_manager.redis_client.get(cache_key)
        if cached_data:
            return {**json.loads(cached_data), "cached": True}
        async with get_async_session() as session:
            bots = await BotRepository(session).get_bots_by_user(uid)
        found = {"total_bots": len(bots)}
        await cache_manager.redis_client.setex(cache_key, 3600, json.dumps(found))
        return found

    assert await summary(market.user.uid) == {"total_bots": 1}
    assert await summary(market.user.uid) == {"total_bots": 1, "cached": True}


@pytest.mark.manual("W7", "warming a cache", differs="X35: three statements and two pipelines")
async def test_a_cache_is_warmed_before_anybody_asks(relied_on: None, market: Market) -> None:
    assert await warm_symbol_cache(market.catalog.cat_ex_id) == 1

    async with get_async_session() as session:
        with statements(get_engine()) as sent:
            symbol_repo = SymbolRepository(session)
            assert await symbol_repo.get_by_symbol("BTC/USDT", market.catalog.cat_ex_id)
            assert await symbol_repo.get_decimals(market.symbol.id) == 2
            assert len(await symbol_repo.get_by_exchange_id(market.catalog.cat_ex_id)) == 1
    assert sent == []


@pytest.mark.manual("W8", "monitoring a cache")
async def test_redis_tells_how_it_is(library: None) -> None:
    assert await cache_manager.redis_client.ping()
    info = await cache_manager.redis_client.info()

    assert {"connected_clients", "used_memory_human", "keyspace_hits", "uptime_in_seconds"} <= info.keys()


@pytest.mark.manual("W9", "eager loading")
async def test_relationships_are_loaded_with_their_row(market: Market) -> None:
    async with get_async_session() as session:
        stmt = select(User).options(joinedload(User.bots)).where(User.uid == market.user.uid)
        result = await session.execute(stmt)
        user = result.unique().scalar_one_or_none()

    assert user is not None
    assert [bot.bot_id for bot in user.bots] == [market.bot.bot_id]


@pytest.mark.manual("W10", "batch loading", differs="X44: each collection by a statement of its own")
async def test_many_rows_are_loaded_with_their_collections(market: Market) -> None:
    other = await a_market("other@company.com", catalog="kraken")
    async with get_async_session() as session:
        stmt = (
            select(Bot)
            .options(joinedload(Bot.user), selectinload(Bot.strategies), selectinload(Bot.bot_exchanges))
            .where(Bot.bot_id.in_([market.bot.bot_id, other.bot.bot_id]))
            .order_by(Bot.bot_id)
        )
        bots = (await session.execute(stmt)).unique().scalars().all()

    assert [(bot.user.uid, len(bot.bot_exchanges), bot.strategies) for bot in bots] == [
        (market.user.uid, 1, []),
        (other.user.uid, 1, []),
    ]


@pytest.mark.manual(
    "W11", "pagination", differs="X45: by cursor too, which stays in its place while trades are added"
)
async def test_a_long_list_comes_page_by_page(market: Market) -> None:
    async with get_async_session() as session:
        trades = [await TradeRepository(session).create(market.trade) for _ in range(5)]

    page = await get_trades_paginated(market.user.uid, page=2, page_size=2)

    assert [trade.trade_id for trade in page["trades"]] == [trades[2].trade_id, trades[1].trade_id]
    assert page["pagination"] == {"page": 2, "page_size": 2, "total": 5, "pages": 3}


@pytest.mark.manual("W12", "aggregation")
async def test_totals_come_from_one_query(market: Market) -> None:
    async with get_async_session() as session:
        for side, price in (("buy", 100), ("buy", 200), ("sell", 300)):
            await TradeRepository(session).create({**market.trade, "side": side, "size": 0.1, "price": price})
        stmt = select(
            func.count(Trade.trade_id).label("total_trades"),
            func.sum(Trade.size * Trade.price).label("total_volume"),
            func.sum(case((Trade.side == "buy", Trade.size * Trade.price), else_=0)).label("buy_volume"),
        ).where(Trade.uid == market.user.uid)
        row = (await session.execute(stmt)).one()

    assert tuple(row) == (3, Decimal(60), Decimal(30))


@pytest.mark.manual(
    "W13", "retry with backoff", differs="X15: outages are told from errors by SQLSTATE, not by their class"
)
async def test_an_outage_is_tried_again_and_an_error_is_not(library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    add_user, failures = UserRepository.add_user, [ConnectionResetError("gone"), ConnectionResetError("gone")]
    pauses: list[float] = []

    async def add(self: UserRepository, user_data: dict[str, Any]) -> User:
        if failures:
            raise failures.pop()
        return await add_user(self, user_data)

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(UserRepository, "add_user", add)
    monkeypatch.setattr("service.library.user.asyncio.sleep", sleep)

    made = await create_user_with_retry({"mail": "user@company.com"})
    taken = await create_user_with_retry({"mail": "user@company.com"})

    assert (made["success"], made["attempts"], pauses) == (True, 3, [1, 2])
    assert (taken["success"], taken["type"], pauses) == (False, "integrity_error", [1, 2])


@pytest.mark.manual("W14", "graceful degradation", differs="X19: unavailable where the manual gives an empty list")
async def test_the_cache_answers_while_the_database_is_away(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    await get_symbols_with_fallback(market.catalog.cat_ex_id)

    async def away(*_: Any) -> Any:
        raise ConnectionRefusedError

    monkeypatch.setattr(SymbolRepository, "get_by_exchange_id", away)

    assert [symbol.symbol for symbol in await get_symbols_with_fallback(market.catalog.cat_ex_id)] == ["BTC/USDT"]
    with pytest.raises(Refusal) as refusal:
        await get_symbols_with_fallback(999)
    assert refusal.value.code == "unavailable"


@pytest.mark.manual("W15", "rollback with cleanup")
async def test_a_failure_leaves_nothing_behind(market: Market) -> None:
    data = {
        "user": {"mail": "complex@company.com"},
        "exchange": {"cat_ex_id": market.catalog.cat_ex_id, "ex_name": "main"},
        "bot": {"name": "bot"},
    }
    failed = await complex_operation_with_cleanup({**data, "simulate_error": True})
    made = await complex_operation_with_cleanup(data)

    assert not failed["success"]
    assert "Simulated error for testing" in failed["error"]
    assert [kind for kind, _ in failed["attempted_entities"]] == ["user", "exchange", "bot"]
    assert made["success"]
    async with get_async_session() as session:
        assert len(await ExchangeRepository(session).get_all()) == 2
