"""Tables that grow: what is asked all day takes as long with ten million trades as with ten thousand."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from contracts import GetLastBotLog, GetTradesPaginated, GetUserTradingStats
from deploy.servers import Servers
from service.database import build_session_maker
from service.engine import build_engine
from service.executor import Executor
from tests.benchmarks.stage import Stage, a_stage, trades
from tests.builders import Asking, received

_DESKS = 20
_STEP = 250_000

_TRADES = """
INSERT INTO trades (ex_trade_id, bot_id, uid, ex_id, cat_ex_id, symbol_id, side, size, price, cost, timestamp)
SELECT 'grown-' || n, bots[1 + n % $8], uids[1 + n % $8], accounts[1 + n % $8], catalogs[1 + n % $8],
    symbols[1 + n % $8], (ARRAY['buy', 'sell'])[1 + n % 2], 1 + n % 100, 0.001, 0.001 * (1 + n % 100),
    timestamptz '2025-01-01' + n * interval '1 second'
FROM generate_series($1::int, $2::int) AS n,
    (SELECT $3::int[] AS bots, $4::int[] AS uids, $5::int[] AS accounts, $6::int[] AS catalogs,
        $7::int[] AS symbols) AS owners
"""
_LOGS = """
INSERT INTO bot_logs (bot_id, level, message, timestamp)
SELECT ($3::int[])[1 + n % $4], 'INFO', 'entry ' || n, timestamptz '2025-01-01' + n * interval '1 second'
FROM generate_series($1::int, $2::int) AS n
"""


_INDEXES = """
SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition FROM pg_index
WHERE indrelid = 'trades'::regclass AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
"""


async def measured(servers: Servers, sizes: list[int]) -> dict[int, dict[str, float]]:
    """For each number of trades and log entries the milliseconds of what is asked and stored all day."""
    times: dict[int, dict[str, float]] = {}
    async with a_stage(servers, desks=_DESKS) as stage:
        engine = build_engine(stage.settings)
        sessions = build_session_maker(engine)
        connection = await asyncpg.connect(stage.settings.database_url.get_secret_value())
        grown = 0
        for size in sizes:
            await _grow(connection, stage, grown, size)
            grown = size
            times[size] = await _timed(Executor(sessions), Asking(sessions), stage, size)
        rows = await connection.fetchval("SELECT count(*) FROM trades")
        await connection.close()
        await engine.dispose()
    if rows != sizes[-1] + len(sizes) * _ROUNDS * _BATCHES * _BATCH:
        raise AssertionError(f"there are {rows} trades")
    return times


async def _grow(connection: asyncpg.Connection, stage: Stage, from_size: int, to_size: int) -> None:
    desks = stage.desks
    owners = (
        [desk.bot.bot_id for desk in desks],
        [desk.user.uid for desk in desks],
        [desk.account.ex_id for desk in desks],
        [desk.catalog.cat_ex_id for desk in desks],
        [desk.symbol.symbol_id for desk in desks],
    )
    url = stage.settings.database_url.get_secret_value()
    async with _quickly_filled(connection):
        await asyncio.gather(
            _insert(url, _TRADES, from_size, to_size, *owners, len(desks)),
            _insert(url, _LOGS, from_size, to_size, owners[0], len(desks)),
        )
    await connection.execute("VACUUM ANALYZE trades, bot_logs")
    await connection.execute("CHECKPOINT")


@asynccontextmanager
async def _quickly_filled(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Keys of generated rows are not looked up, and indexes made afterwards; totals are counted as always."""
    indexes = await connection.fetch(_INDEXES)
    for index in indexes:
        await connection.execute(f"DROP INDEX {index['name']}")
    for table in ("trades", "bot_logs"):
        await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL; ALTER TABLE {table} ENABLE TRIGGER USER")
    yield
    for index in indexes:
        await connection.execute(index["definition"])
    for table in ("trades", "bot_logs"):
        await connection.execute(f"ALTER TABLE {table} ENABLE TRIGGER ALL")


async def _insert(url: str, statement: str, from_size: int, to_size: int, *owners: object) -> None:
    connection = await asyncpg.connect(url)
    try:
        for start in range(from_size, to_size, _STEP):
            await connection.execute(statement, start, min(start + _STEP, to_size) - 1, *owners)
    finally:
        await connection.close()


_BATCH = 500
_ROUNDS = 8
_BATCHES = 3
_QUESTIONS = 10
_PAUSE_SECONDS = 0.3


async def _timed(executor: Executor, asking: Asking, stage: Stage, size: int) -> dict[str, float]:
    """Milliseconds of each, in rounds: what a neighbour on the machine does for a moment is not all that is seen."""
    desk = stage.desks[0]
    some = list(trades(stage.desks, _BATCH))
    batches = [
        [trade.model_copy(update={"ex_trade_id": f"{trade.ex_trade_id}-{size}-{batch}"}) for trade in some]
        for batch in range(_ROUNDS * _BATCHES)
    ]

    async def insert() -> None:
        await executor.execute([received(trade, reply_to=None) for trade in batches.pop()])

    def asked(lookup: Any) -> Callable[[], Awaitable[Any]]:
        return lambda: asking.ask(lookup)

    works = {
        "insert of 500": (insert, _BATCHES),
        "page of trades": (asked(GetTradesPaginated(uid=desk.user.uid)), _QUESTIONS),
        "last log": (asked(GetLastBotLog(bot_id=desk.bot.bot_id)), _QUESTIONS),
        "trading stats": (asked(GetUserTradingStats(uid=desk.user.uid)), _QUESTIONS),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(_ROUNDS):
        for name, (work, number) in works.items():
            for _ in range(number):
                began = time.perf_counter()
                await work()
                seconds[name].append(time.perf_counter() - began)
        await asyncio.sleep(_PAUSE_SECONDS)
    # The faster quarter's slowest.
    return {name: statistics.quantiles(times, n=4)[0] * 1_000 for name, times in seconds.items()}
