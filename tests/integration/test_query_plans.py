"""No list is answered by reading a big table from end to end."""

import json
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import (
    GetActiveExchanges,
    GetActiveUsers,
    GetAllSymbols,
    GetBalances,
    GetBaseStrParams,
    GetBotExchanges,
    GetBotFeeds,
    GetBotFullList,
    GetBotList,
    GetBotLogs,
    GetBotParams,
    GetBotsByUser,
    GetBotsStrategies,
    GetBotStrategies,
    GetBotsWithDetails,
    GetBotWithDetails,
    GetCatStrategies,
    GetDryMargin,
    GetDryTrades,
    GetExchangeCatalog,
    GetExchangeHistory,
    GetExchangesByUser,
    GetLastActions,
    GetLastDryTrade,
    GetLastOrder,
    GetLastTrade,
    GetLiveTrades,
    GetOpenOrders,
    GetOrders,
    GetPendingOrders,
    GetPositions,
    GetStrParams,
    GetSymbolPriceStats,
    GetSymbolsByExchange,
    GetTicks,
    GetTradesByUser,
    GetTradesPaginated,
    GetTradeStats,
    GetUserList,
    GetUserStrategies,
    GetUserTradingStats,
    GetUserTradingSummary,
    GetUserWithBots,
    LoadSimulationsCatalog,
    Lookup,
    SearchSymbols,
    SearchUsers,
)
from contracts.errors import Refusal
from service.database import SessionMaker
from service.unit_of_work import UnitOfWork
from tests.integration.test_statement_counts import LISTS
from tests.observe import answer

ROWS: Final = 100_000
USERS: Final = 200
OWNERS_OF_BOTS: Final = 10_000
# Not the accounts, of which `get_active_exchanges` gives all, nor the symbols, of which there are some thousands.
BIG: Final = {
    *("orders", "trades", "dry_trades", "exchange_history", "balances", "positions", "ticks_p_default"),
    *(
        "users",
        "bots",
        "bot_exchanges",
        "feeds",
        "strategies",
        "strategy_params",
        "simulations",
        "bot_logs_p_default",
    ),
}

# A hundred thousand rows of each kind, of two hundred users with a bot and an account each, over three years.
# In the tables' own order of time, as they come.
_FILL: Final = f"""
DO $$ BEGIN
    -- They refer to each other as they should, and to look after each takes most of the time.
    SET session_replication_role = replica;
EXCEPTION WHEN insufficient_privilege THEN
    NULL;
END $$;
INSERT INTO cat_exchanges (name) VALUES ('one');
INSERT INTO symbols (symbol, cat_ex_id) SELECT 'S' || n || '/B', 1 FROM generate_series(1, 500) n;
INSERT INTO users (mail) SELECT n || '@example.org' FROM generate_series(1, {USERS}) n;
INSERT INTO bots (uid, name, dry_run, active) SELECT n, 'bot', true, n % 20 = 0 FROM generate_series(1, {USERS}) n;
INSERT INTO exchanges (uid, cat_ex_id, ex_name) SELECT n, 1, 'main' FROM generate_series(1, {USERS}) n;
CREATE TEMPORARY TABLE drawn AS
    SELECT n, 1 + n % {USERS} AS uid, 1 + (n * 7) % 500 AS symbol_id, now() - ({ROWS} - n) * interval '950 s' AS at
    FROM generate_series(1, {ROWS}) n;
INSERT INTO orders (bot_id, uid, ex_id, cat_ex_id, symbol_id, side, order_type, size, price, status, timestamp)
    SELECT uid, uid, uid, 1, symbol_id, 'buy', 'limit', 1, 1, CASE n % 97 WHEN 0 THEN 'pending' ELSE 'filled' END, at
    FROM drawn ORDER BY n;
INSERT INTO trades (bot_id, uid, ex_id, cat_ex_id, symbol_id, side, size, price, cost, ex_trade_id, timestamp)
    SELECT uid, uid, uid, 1, symbol_id, 'buy', 1, 1, 1, n, at FROM drawn ORDER BY n;
INSERT INTO dry_trades (bot_id, uid, ex_id, cat_ex_id, symbol_id, side, size, price, cost, roi, timestamp)
    SELECT uid, uid, uid, 1, symbol_id, 'buy', 1, 1, 1, 1, at FROM drawn ORDER BY n;
INSERT INTO exchange_history (ex_id, uid, currency, balance, timestamp)
    SELECT uid, uid, 'C' || symbol_id, 1, at FROM drawn ORDER BY n;
INSERT INTO balances (ex_id, currency, free, used, total, timestamp)
    SELECT uid, 'C' || n, 1, 0, 1, at FROM drawn;
INSERT INTO positions (ex_id, symbol_id, uid, cat_ex_id, side, volume, timestamp)
    SELECT uid, symbol_id, uid, 1, 'long', 1, max(at) FROM drawn GROUP BY uid, symbol_id;
INSERT INTO ticks (symbol_id, price, timestamp) SELECT symbol_id, 1, at FROM drawn ORDER BY n;
INSERT INTO users (mail, name, lastname, manager, active)
    SELECT 'more' || n || '@example.org', md5(n::text), md5((-n)::text), uid, n % 50 <> 0 FROM drawn ORDER BY n;
INSERT INTO exchanges (uid, cat_ex_id, ex_name, active)
    SELECT n, 1, 'main', false FROM generate_series({USERS} + 1, {OWNERS_OF_BOTS}) n;
INSERT INTO bots (uid, name, active)
    SELECT 1 + n % {OWNERS_OF_BOTS}, 'bot ' || n, n % 50 = 0 FROM drawn ORDER BY n;
INSERT INTO bot_exchanges (bot_id, ex_id, uid)
    SELECT {USERS} + n, 1 + n % {OWNERS_OF_BOTS}, 1 + n % {OWNERS_OF_BOTS} FROM drawn ORDER BY n;
INSERT INTO feeds (bot_id, symbol_id, cat_ex_id, timeframe, "order")
    SELECT {USERS} + n, symbol_id, 1, '1m', 1 FROM drawn ORDER BY n;
INSERT INTO cat_strategies (name) SELECT 'strategy ' || n FROM generate_series(1, 500) n;
INSERT INTO strategies (bot_id, cat_str_id, pre_load_bars, feeds_count, pairs)
    SELECT {USERS} + n, symbol_id, 200, 2, false FROM drawn ORDER BY n;
INSERT INTO strategy_params (str_id, name, value) SELECT n, 'a', '1' FROM drawn ORDER BY n;
INSERT INTO simulations (bot_id, name, start_date, end_date, initial_balance, final_balance, total_trades, timestamp)
    SELECT uid, n, at, at, 1, 1, 1, at FROM drawn ORDER BY n;
INSERT INTO bot_logs (bot_id, message, level, timestamp)
    SELECT uid, 'x', CASE n % 100 WHEN 0 THEN 'ERROR' ELSE 'INFO' END, at FROM drawn ORDER BY n;
"""  # noqa: S608 - of two numbers

OWNERS: Final = [{"bot_id": 7}, {"uid": 7}, {"ex_id": 7}]
SINCE: Final = "2026-01-01T00:00:00Z"


def lookups(recent: str) -> list[Lookup[Any]]:
    """Every list and sum, narrowed down in every way that has an index of its own."""
    bot_id = USERS + 7
    return [
        GetUserList(),
        GetUserList(manager_id=7),
        GetUserList(page=900),
        GetActiveUsers(),
        SearchUsers(query="more99999@"),
        GetUserWithBots(uid=7),
        GetBotsByUser(uid=7),
        *(GetBotList(**which) for which in ({}, {"uid": 7}, {"active": True}, {"uid": 7, "active": True})),
        GetBotFullList(),
        GetBotsWithDetails(bot_ids=[bot_id, bot_id + 1]),
        GetBotWithDetails(bot_id=bot_id),
        GetBotParams(bot_id=bot_id),
        GetBotExchanges(bot_id=bot_id),
        GetBotFeeds(bot_id=bot_id),
        GetBotStrategies(bot_id=bot_id),
        GetBaseStrParams(bot_id=bot_id),
        GetStrParams(bot_id=bot_id),
        GetUserStrategies(uid=7),
        GetBotsStrategies(name="strategy 43"),
        GetCatStrategies(),
        GetLastActions(bot_id=7),
        GetBotLogs(bot_id=7),
        GetBotLogs(bot_id=7, level="INFO"),
        GetBotLogs(bot_id=7, start_date=SINCE, end_date=recent),
        LoadSimulationsCatalog(bot_id=7),
        GetExchangesByUser(uid=7),
        GetExchangeCatalog(),
        GetActiveExchanges(),
        GetSymbolsByExchange(cat_ex_id=1),
        GetAllSymbols(exchange_name="one"),
        SearchSymbols(query="S43"),
        *(GetOpenOrders(**owner) for owner in OWNERS),
        *(GetOrders(**owner) for owner in (*OWNERS, {"symbol_id": 7})),
        GetOrders(bot_id=7, status="filled"),
        GetPendingOrders(),
        GetLastOrder(bot_id=7),
        GetLiveTrades(uid=7),
        GetLiveTrades(uid=7, start_date=SINCE, end_date=recent),
        GetLiveTrades(uid=7, symbol_id=43),
        GetLiveTrades(uid=7, bot_id=7, ex_id=7),
        GetTradesByUser(uid=7),
        GetTradesPaginated(uid=7, page=3),
        GetLastTrade(ex_id=7),
        GetDryTrades(bot_id=7),
        GetDryTrades(bot_id=7, symbol_id=43, ex_id=7),
        GetLastDryTrade(bot_id=7, symbol_id=43, ex_id=7),
        GetDryMargin(bot_id=7),
        GetUserTradingStats(uid=7),
        GetUserTradingSummary(uid=7),
        GetTradeStats(bot_id=7),
        GetTradeStats(bot_id=7, dry=True),
        GetSymbolPriceStats(start_date=recent),
        GetSymbolPriceStats(start_date=recent, symbol_id=8),
        GetBalances(ex_id=7),
        GetPositions(ex_id=7),
        GetExchangeHistory(ex_id=7),
        GetExchangeHistory(ex_id=7, currency="C43"),
        GetTicks(symbol_id=8),
        GetTicks(symbol_id=8, start_date=recent),
    ]


def test_every_list_has_a_case() -> None:
    assert {kind.wire_name for kind in LISTS} <= {lookup.wire_name for lookup in lookups(SINCE)}


@pytest.fixture
async def recent(database_url: str) -> str:
    """A moment after which few of the rows were made; they are there now."""
    connection = await asyncpg.connect(database_url)
    await connection.execute(_FILL)
    await connection.execute("VACUUM ANALYZE")
    await connection.close()
    return (datetime.now(UTC) - timedelta(days=30)).isoformat()


def scanned(node: dict[str, Any]) -> Iterator[str]:
    """The tables that a plan reads from end to end."""
    if node["Node Type"] == "Seq Scan":
        yield node["Relation Name"]
    for part in node.get("Plans", []):
        yield from scanned(part)


class Plans:
    """The plans of the statements that an engine is given."""

    def __init__(self, engine: AsyncEngine, database_url: str) -> None:
        self._database_url = database_url
        self._sent: list[tuple[str, Any]] = []
        event.listen(engine.sync_engine, "before_cursor_execute", self._note)

    def _note(self, _: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        if statement.startswith(("SELECT", "WITH", "UPDATE", "DELETE")):
            self._sent.append((statement, parameters))

    def forget(self) -> None:
        """Look at no statement sent until now."""
        self._sent.clear()

    async def read_through(self) -> set[str]:
        """The big tables that the statements since the last call read from end to end; there were some."""
        assert self._sent
        sent, self._sent = self._sent, []
        connection = await asyncpg.connect(self._database_url)
        tables: set[str] = set()
        for statement, parameters in sent:
            explained = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *parameters)
            tables |= set(scanned(json.loads(explained)[0]["Plan"]))
        await connection.close()
        return tables & BIG


@pytest.mark.timeout(300)  # for making more than a million rows
async def test_neither_lists_nor_commands_read_a_big_table_from_end_to_end(
    recent: str, sessions: SessionMaker, engine: AsyncEngine, database_url: str
) -> None:
    plans = Plans(engine, database_url)
    async with sessions() as session:
        has_trigrams = await session.scalar(text("SELECT true FROM pg_extension WHERE extname = 'pg_trgm'"))
    plans.forget()

    for lookup in lookups(recent):
        page = await answer(sessions, lookup)
        expected = set() if has_trigrams or not isinstance(lookup, SearchUsers) else {"users"}
        assert await plans.read_through() == expected, lookup
        assert page, lookup
        if (cursor := getattr(page, "next_cursor", None)) is not None:
            await answer(sessions, type(lookup)(**{**lookup.model_dump(exclude={"page"}), "cursor": cursor}))
            assert await plans.read_through() == set(), lookup
    for name, act in ACTS.items():
        async with sessions() as session:
            await act(UnitOfWork(session))
            await session.rollback()
        assert await plans.read_through() == set(), name
    async with sessions() as session:
        with pytest.raises(Refusal, match="orders and trades and dry trades and positions"):
            await UnitOfWork(session).symbols.delete_symbol(8)
    assert await plans.read_through() == set()

    # Without the indexes it would be noticed.
    connection = await asyncpg.connect(database_url)
    await connection.execute("DROP INDEX ix_trades_newest_of_user, ix_trades_newest_of_user_by_symbol")
    await connection.close()
    await answer(sessions, GetTradesByUser(uid=7))
    assert await plans.read_through() == {"trades"}


_BALANCE: Final = {"currency": "C9", "free": 1, "used": 0}
_POSITION: Final = {"symbol_id": 8, "volume": 1}
_TICK: Final = {"symbol_id": 8, "price": 1, "timestamp": datetime(2026, 1, 1, tzinfo=UTC)}


def _known_trade(n: int) -> dict[str, Any]:
    """A trade as `_FILL` made it."""
    return {
        "bot_id": 1 + n % USERS,
        "uid": 1 + n % USERS,
        "ex_id": 1 + n % USERS,
        "symbol_id": 1 + (n * 7) % 500,
        "side": "buy",
        "size": 1,
        "price": 1,
        "ex_trade_id": str(n),
    }


ACTS: Final[dict[str, Callable[[UnitOfWork], Awaitable[Any]]]] = {
    "all orders": lambda work: work.orders.get_all_orders(),
    "active bots": lambda work: work.bots.get_active_bots_summary(),
    "trades without a roi": lambda work: work.trades.get_trades(7, uncalculated=True),
    "claim": lambda work: work.orders.claim_pending_orders("worker", limit=100),
    "cancel": lambda work: work.orders.cancel_open_orders(98),
    "fill": lambda work: work.orders.fill_order(97, 1, ex_trade_id="another"),
    "delete dry trades": lambda work: work.trades.delete_dry_trades(7),
    "save trades": lambda work: work.trades.save_trades([_known_trade(n) for n in range(1, 51)]),
    "balances": lambda work: work.accounts.upsert_balances(7, [_BALANCE], datetime.now(UTC)),
    "positions": lambda work: work.accounts.upsert_positions(7, [_POSITION], datetime.now(UTC)),
    "ticks": lambda work: work.ticks.record_ticks([_TICK]),
}
