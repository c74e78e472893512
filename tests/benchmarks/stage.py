"""What each measurement begins with: a fresh database and virtual host, desks to trade at, and real trades."""

import asyncio
import csv
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import aio_pika
import asyncpg
from aio_pika.abc import AbstractChannel

from contracts import RecordTrade, SaveBotLog, UpdateOrderStatus
from contracts.amqp import WireLink
from contracts.base import Command
from contracts.client import new_message_id
from contracts.frames import Message, properties, table
from contracts.topology import COMMANDS
from deploy.servers import Servers
from service import schema, topology
from service.config import Settings
from service.database import build_session_maker
from service.engine import build_engine
from service.executor import Executor
from tests.builders import Desk, Direct, a_desk
from tests.fresh import environment, execute, fresh_database, fresh_vhost

REPOSITORY: Final = Path(__file__).parents[2]
TRADES_FILE: Final = REPOSITORY / "deploy" / "demo" / "data" / "trades_xrp_eth.csv"
_IN_FLIGHT: Final = 1_000
_HEADERS: Final = table({"schema_version": 1})


@dataclass(frozen=True)
class Stage:
    """Servers of one measurement's own, with desks set up."""

    settings: Settings
    desks: Sequence[Desk]
    orders: list[int] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **environment(self.settings), "LOG_LEVEL": "WARNING"}


@asynccontextmanager
async def a_stage(servers: Servers, *, desks: int, orders: int = 0) -> AsyncIterator[Stage]:
    """A migrated database, a virtual host with the topology, and ``desks`` bots with accounts of their own."""
    async with fresh_database(servers) as database_url, fresh_vhost(servers) as rabbitmq_url:
        settings = Settings.model_validate(
            {"database_url": database_url, "rabbitmq_url": rabbitmq_url, "redis_url": servers.redis_url}
        )
        await schema.migrate(settings)
        engine = build_engine(settings)
        executor = Direct(Executor(build_session_maker(engine)))
        made = [await a_desk(executor) for _ in range(desks)]
        await engine.dispose()
        await execute(database_url, "TRUNCATE outbox, inbox")
        async with a_channel(rabbitmq_url) as channel:
            await topology.declare(channel)
        stage = Stage(settings, made)
        stage.orders.extend(await place_orders(stage, orders) if orders else ())
        yield stage


@asynccontextmanager
async def a_channel(url: str) -> AsyncIterator[AbstractChannel]:
    connection = await aio_pika.connect(url)
    try:
        yield await connection.channel()
    finally:
        await connection.close()


def trades(desks: Sequence[Desk], number: int) -> Iterator[RecordTrade]:
    """Real trades dealt out to the desks. Where more are asked for than there are, the market does the same again.

    It does so later, and not at the same time once more: what was asked of an index would be spread over all of it.
    """
    with TRADES_FILE.open() as file:
        rows = list(csv.DictReader(file))
    first, last = (datetime.fromisoformat(rows[place]["timestamp"]) for place in (0, -1))
    for index, desk in zip(range(number), cycle(desks), strict=False):
        again, position = divmod(index, len(rows))
        row = rows[position]
        yield desk.trade(
            ex_trade_id=f"{again:05}-{row['ex_trade_id']}-{index}",
            **{name: row[name] for name in ("side", "price", "size")},
            timestamp=datetime.fromisoformat(row["timestamp"]) + again * (last - first),
        )


def logs(desks: Sequence[Desk], number: int) -> Iterator[SaveBotLog]:
    """Log entries of the length bots write."""
    for index, desk in zip(range(number), cycle(desks), strict=False):
        yield SaveBotLog(
            bot_id=desk.bot.bot_id,
            action="tick",
            symbol="XRP/ETH",
            message=f"{index}: signal 0.{index % 997:03}, position 581, waiting for a better price",
        )


async def place_orders(stage: Stage, number: int) -> list[int]:
    """The ids of new orders, dealt out to the desks."""
    ids = []
    connection = await asyncpg.connect(stage.settings.database_url.get_secret_value())
    for desk in stage.desks:
        made = await connection.fetch(
            "INSERT INTO orders (bot_id, uid, ex_id, cat_ex_id, symbol_id, side, order_type, size, price) "
            "SELECT $1, $2, $3, $4, $5, 'buy', 'limit', 10, 0.1 FROM generate_series(1, $6) RETURNING order_id",
            *(desk.bot.bot_id, desk.user.uid, desk.account.ex_id, desk.catalog.cat_ex_id, desk.symbol.symbol_id),
            number // len(stage.desks),
        )
        ids.append([row["order_id"] for row in made])
    await connection.close()
    return [order_id for ids_of_desks in zip(*ids, strict=True) for order_id in ids_of_desks]


def mixed(stage: Stage, number: int) -> Iterator[Command[Any]]:
    """Of ten messages seven log entries, two trades and a step of an order through its statuses."""
    steps = (
        {"status": "open", "reason": "accepted"},
        {"status": "partially_filled", "filled_size": "5", "avg_fill_price": "0.1"},
        {"status": "filled", "filled_size": "10", "avg_fill_price": "0.1"},
    )
    moves = (
        UpdateOrderStatus.model_validate({"order_id": order_id, **step})
        for step in steps
        for order_id in stage.orders
    )
    entries, bought = logs(stage.desks, number), trades(stage.desks, number)
    for index in range(number):
        place = index % 10
        yield next(moves) if place == 9 else next(bought) if place in (2, 6) else next(entries)


async def publish(stage: Stage, commands: Iterable[Command[Any]]) -> None:
    """Put commands into their lanes, persistent and confirmed, in order."""
    link = WireLink(stage.settings.rabbitmq_url.get_secret_value(), name="bench")
    rest = iter(commands)
    try:
        wire = await link.channel()
        before = wire.send([])
        while some := [message_of(command) for command in islice(rest, _IN_FLIGHT)]:
            # While the broker stores these the next ones are made.
            sent = wire.send(some)
            await before
            before = sent
        await before
    finally:
        await link.close()


def message_of(command: Command[Any]) -> Message:
    """As `PersistenceClient` would send it."""
    head = properties(
        content_type="application/json",
        headers=_HEADERS,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=str(new_message_id()),
        message_type=command.wire_name,
        app_id="bench",
    )
    body = command.model_dump_json(exclude_unset=True).encode()
    return Message(COMMANDS.name, command.wire_name, head, body, mandatory=True)


@asynccontextmanager
async def a_process(
    stage: Stage, *command: str, log: Path | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process on this stage's servers, ended with the block."""
    path = log or Path(os.devnull)
    with path.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *command,
            cwd=REPOSITORY,
            env=stage.environment,
            stdout=asyncio.subprocess.PIPE if log is None else output,
            stderr=output,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.communicate(), 20)
        except TimeoutError:
            process.kill()
            await process.wait()
