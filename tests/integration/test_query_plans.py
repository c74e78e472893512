"""No list is answered by reading a big table from end to end."""

import json
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import (
    GetBalances,
    GetDryMargin,
    GetDryTrades,
    GetExchangeHistory,
    GetLastDryTrade,
    GetLastOrder,
    GetLastTrade,
    GetLiveTrades,
    GetOpenOrders,
    GetOrders,
    GetPendingOrders,
    GetPositions,
    GetSymbolPriceStats,
    GetTicks,
    GetTradesByUser,
    GetTradesPaginated,
    GetTradeStats,
    GetUserTradingStats,
    GetUserTradingSummary,
    Lookup,
)
from contracts.errors import Refusal
from service.database import SessionMaker
from service.unit_of_work import UnitOfWork
from tests.observe import answer

ROWS: Final = 100_000
USERS: Final = 200
BIG: Final = {"orders", "trades", "dry_trades", "exchange_history", "balances", "positions", "ticks_p_default"}

# A hundred thousand rows of each kind, of two hundred users with a bot and an account each, over three years.
# In the tables' own order of time, as they come.
_FILL: Final = f"""
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
"""  # noqa: S608 - of two numbers

OWNERS: Final = [{"bot_id": 7}, {"uid": 7}, {"ex_id": 7}]
SINCE: Final = "2026-01-01T00:00:00Z"


def lookups(recent: str) -> list[Lookup[Any]]:
    """Every list and sum of the trading nouns, narrowed down in every way that has an index of its own."""
    return [
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


async def test_neither_lists_nor_commands_read_a_big_table_from_end_to_end(
    recent: str, sessions: SessionMaker, engine: AsyncEngine, database_url: str
) -> None:
    plans = Plans(engine, database_url)

    for lookup in lookups(recent):
        page = await answer(sessions, lookup)
        assert await plans.read_through() == set(), lookup
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
