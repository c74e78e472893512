"""What is found afterwards, by an outsider with SQL, AMQP, HTTP and lookups: facts for the verdict, no judgement."""

import asyncio
import re
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import aio_pika
import asyncpg

from contracts import GetOpenOrders, GetTradesPaginated, GetUserTradingStats, OrderView, TradeView, TradingStats
from contracts.client import PersistenceClient
from contracts.topology import QUEUES
from deploy.demo.bots import Desk, Journal
from deploy.demo.market import Listing, Trade
from deploy.demo.mischief import Wrong
from deploy.demo.subscriber import CacheReport

Row = dict[str, Any]

_PAGE: Final = 1_000
_SECONDS_FOR_QUEUES_TO_SETTLE: Final = 5


@dataclass(frozen=True)
class Table:
    """A table whose rows are announced."""

    name: str
    key: tuple[str, ...]
    """Its primary key; the first column grows with each new row."""
    events: tuple[str, ...]
    """The types of events that announce its rows."""
    columns: str = "*"


TABLES: Final = (
    Table("users", ("uid",), ("user.created",)),
    Table("cat_exchanges", ("cat_ex_id",), ("catalog.exchange_installed",)),
    Table("exchanges", ("ex_id",), ("exchange.created",)),
    Table("symbols", ("symbol_id",), ("symbol.created", "symbol.updated")),
    Table("bots", ("bot_id",), ("bot.created",)),
    Table("bot_exchanges", ("bot_id", "ex_id"), ("bot.exchange_added",)),
    Table("orders", ("order_id",), ("order.created", "order.status_changed")),
    Table("trades", ("trade_id",), ("trade.recorded",)),
    Table("bot_logs", ("log_id",), ("bot_log.saved",)),
    Table(
        "dead_letters",
        ("dead_letter_id",),
        ("command.rejected",),
        columns="*, properties ->> 'user_id' AS user_id, properties ->> 'app_id' AS app_id",
    ),
)


@dataclass(frozen=True)
class Baseline:
    """How far everything was counted before the demo; what is above is the demo's."""

    keys: Mapping[str, int]
    """By table."""
    sequences: Mapping[str, int]
    """By type of event."""


@dataclass(frozen=True)
class Database:
    """What the demo left in the database."""

    rows: Mapping[str, Sequence[Row]]
    """By table, in the order of their keys."""
    outbox: int
    """Events that wait to be published."""
    sequences: Mapping[str, int]
    """The number of the last event published, by type."""


@dataclass(frozen=True)
class Answers:
    """What the service said when it was asked about a user."""

    trades: Sequence[TradeView]
    stats: TradingStats
    open_orders: list[OrderView]


@dataclass(frozen=True)
class Evidence:
    """All that the verdict is based on."""

    trades: Sequence[Trade]
    """What happened on the exchange, from the file."""
    listings: Sequence[Listing]
    """The symbols of the exchange."""
    journals: Sequence[Journal]
    wrong: Sequence[Wrong]
    baseline: Baseline
    database: Database
    events: Sequence[Row]
    """Bodies of all distinct events, in the order of arrival."""
    answers: Mapping[int, Answers]
    """By user."""
    commands: Mapping[tuple[str, str], int]
    """How many commands the service says it handled, by name and outcome."""
    cached: int
    """Keys in the subscriber's cache before a symbol changed."""
    change: CacheReport
    queues: Mapping[str, int]
    """Messages left in each queue after the service has stopped."""
    exit_code: int
    """Of the service."""


async def baseline(database: asyncpg.Connection) -> Baseline:
    """Where the demo's rows and events will begin."""
    keys = {
        table.name: await database.fetchval(f"SELECT coalesce(max({table.key[0]}), 0) FROM {table.name}")  # noqa: S608
        for table in TABLES
    }
    return Baseline(keys, await sequences(database))


async def stored(database: asyncpg.Connection, table: str, since: Baseline) -> int:
    """How many of the demo's rows ``table`` has at this moment."""
    [key] = [each.key[0] for each in TABLES if each.name == table]
    count: int = await database.fetchval(f"SELECT count(*) FROM {table} WHERE {key} > $1", since.keys[table])  # noqa: S608
    return count


async def read_database(database: asyncpg.Connection, since: Baseline) -> Database:
    """The demo's rows and what waits in the outbox."""
    rows = {
        table.name: [
            dict(row)
            for row in await database.fetch(
                f"SELECT {table.columns} FROM {table.name} WHERE {table.key[0]} > $1 ORDER BY {', '.join(table.key)}",  # noqa: S608
                since.keys[table.name],
            )
        ]
        for table in TABLES
    }
    return Database(rows, await waiting(database), await sequences(database))


async def waiting(database: asyncpg.Connection) -> int:
    """How many events wait in the outbox at this moment."""
    count: int = await database.fetchval("SELECT count(*) FROM outbox")
    return count


async def sequences(database: asyncpg.Connection) -> dict[str, int]:
    """The number of the last event published, by type."""
    return dict(await database.fetch("SELECT type, sequence FROM event_streams"))


async def ask(client: PersistenceClient, desk: Desk) -> Answers:
    """All that lookups tell about the trades of a user."""
    trades: list[TradeView] = []
    page, pages = 0, 1
    while page < pages:
        page += 1
        answer = await client.lookup(GetTradesPaginated(uid=desk.uid, page=page, page_size=_PAGE))
        trades += answer.trades
        pages = answer.pagination.pages
    return Answers(
        trades,
        await client.lookup(GetUserTradingStats(uid=desk.uid)),
        await client.lookup(GetOpenOrders(uid=desk.uid)),
    )


def read_metrics(address: str) -> dict[tuple[str, str], int]:
    """How many commands the service has handled, by name and outcome."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=5) as answer:  # noqa: S310 - http, made by us
        text = answer.read().decode()
    counts = re.finditer(
        r'^persistence_commands_total\{command="(\w+)",outcome="(\w+)"\} ([\d.e+]+)$', text, re.MULTILINE
    )
    return {(count[1], count[2]): int(float(count[3])) for count in counts}


async def read_queues(url: str, others: Sequence[str]) -> dict[str, int]:
    """How many messages each queue holds: those of the service and ``others``."""
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        deadline = asyncio.get_running_loop().time() + _SECONDS_FOR_QUEUES_TO_SETTLE
        while True:
            queues = [
                await channel.declare_queue(name, passive=True)
                for name in (*(queue.name for queue in QUEUES), *others)
            ]
            left = {queue.name: queue.declaration_result.message_count or 0 for queue in queues}
            # A quorum queue counts what was acknowledged last a moment later.
            if not any(left.values()) or asyncio.get_running_loop().time() > deadline:
                return left
            await asyncio.sleep(0.1)


async def delete_queues(url: str, names: Sequence[str]) -> None:
    """Leave nothing behind at the broker."""
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        for name in names:
            await channel.queue_delete(name)
