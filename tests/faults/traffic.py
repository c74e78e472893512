"""Trades by the thousand, from bots that know what was confirmed, and the count of what became of them."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, Self

import aio_pika
import asyncpg
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import AMQPError

from contracts.client import PersistenceClient, new_message_id
from contracts.errors import NotConfirmed
from contracts.topology import EVENT_QUEUE_ARGUMENTS, EVENTS, QUEUES
from tests.builders import Desk
from tests.e2e.wire import eventually

_BOTS: Final = 64
_AHEAD: Final = 5_000
"""Trades that may wait for the service before bots pause, so that a fault meets a backlog and no mountain."""
_QUEUE: Final = "traffic.events"

AWAY: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What asking a database that is being started again raises."""


class Traffic:
    """Bots that record one trade after the other, each sent again until it is confirmed."""

    def __init__(self, client: PersistenceClient, desks: Sequence[Desk]) -> None:
        self._client = client
        self._desks = desks
        self._sent = [0] * _BOTS
        self._tasks: list[asyncio.Task[None]] = []
        self._may_send = asyncio.Event()
        self._enough = asyncio.Event()
        self.confirmed = 0

    @classmethod
    @asynccontextmanager
    async def on(cls, url: str, desks: Sequence[Desk]) -> AsyncIterator[Self]:
        """Bots at work until the block ends, or until they are told to finish."""
        async with PersistenceClient(url, app_id="traffic") as client:
            traffic = cls(client, desks)
            traffic._tasks = [asyncio.create_task(traffic._trade(bot)) for bot in range(1, _BOTS + 1)]
            try:
                yield traffic
            finally:
                for task in traffic._tasks:
                    task.cancel()
                await asyncio.gather(*traffic._tasks, return_exceptions=True)

    def keep_near(self, stored: int) -> None:
        """Go on, or pause, by what is stored."""
        if self.confirmed - stored < _AHEAD:
            self._may_send.set()
        else:
            self._may_send.clear()

    async def finish(self) -> None:
        """Return when every trade that was begun is confirmed."""
        self._enough.set()
        self._may_send.set()
        await asyncio.gather(*self._tasks)

    async def _trade(self, bot: int) -> None:
        desk = self._desks[bot % len(self._desks)]
        while not self._enough.is_set():
            await self._may_send.wait()
            if self._enough.is_set():
                return
            self._sent[bot - 1] += 1
            await self._record(desk, f"{bot}-{self._sent[bot - 1]}")
            self.confirmed += 1

    async def _record(self, desk: Desk, key: str) -> None:
        """Send a trade until it is confirmed."""
        message_id = new_message_id()
        while True:
            with suppress(NotConfirmed):
                await self._client.publish(desk.trade(ex_trade_id=key), message_id=message_id)
                return

    @property
    def sent(self) -> dict[int, int]:
        """The number of the last trade of each bot."""
        return dict(enumerate(self._sent, 1))


class Audience:
    """A durable subscriber that notes which trades were announced by which event."""

    def __init__(self) -> None:
        self.announced: dict[int, str] = {}
        """Event by trade."""
        self.doubled = 0
        """Trades that two different events announced."""
        self.last_heard = 0.0
        self._listens = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def on(cls, url: str) -> AsyncIterator[Self]:
        """One that listens until the block ends, through every restart of the broker."""
        audience = cls()
        task = asyncio.create_task(audience._run(url))
        try:
            async with asyncio.timeout(20):
                await audience._listens.wait()
            yield audience
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self, url: str) -> None:
        while True:
            with suppress(AMQPError, OSError, TimeoutError, StopAsyncIteration):
                async with await aio_pika.connect(url, timeout=5) as connection:
                    closed = asyncio.Event()
                    connection.close_callbacks.add(lambda *_, closed=closed: closed.set())
                    channel = await connection.channel()
                    await channel.set_qos(200)
                    queue = await channel.declare_queue(_QUEUE, durable=True, arguments=dict(EVENT_QUEUE_ARGUMENTS))
                    await queue.bind(EVENTS.name, "trade.recorded")
                    await queue.consume(self._hear)
                    self._listens.set()
                    await closed.wait()
            await asyncio.sleep(0.1)

    async def _hear(self, message: AbstractIncomingMessage) -> None:
        event = json.loads(message.body)
        for change in event["changes"]:
            trade = change["key"]["trade_id"]
            self.doubled += self.announced.setdefault(trade, event["event_id"]) != event["event_id"]
        self.last_heard = time.monotonic()
        with suppress(AMQPError, OSError):  # it comes again then
            await message.ack()


class Books:
    """What the database holds, asked on a connection that is opened anew whenever the server has gone."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: asyncpg.Connection | None = None

    async def ask(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """Rows; raises OSError, TimeoutError or asyncpg's errors while the server is away."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(self._url, timeout=2, command_timeout=5)
        try:
            return list(await self._connection.fetch(query, *arguments))
        except AWAY:
            self._connection.terminate()
            raise

    async def stored(self) -> int | None:
        """The number of trades, or None while nobody answers."""
        return await self._number("SELECT count(*) AS number FROM trades")

    async def newest(self) -> int | None:
        """The id of the newest trade, 0 before the first, or None while nobody answers."""
        return await self._number("SELECT coalesce(max(trade_id), 0) AS number FROM trades")

    async def _number(self, query: str) -> int | None:
        try:
            [row] = await self.ask(query)
        except AWAY:
            return None
        return int(row["number"])

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.terminate()


class Account:
    """What was lost, doubled, out of order or not announced, when everything is quiet again."""

    def __init__(self, traffic: Traffic, audience: Audience, books: Books, rabbitmq_url: str) -> None:
        self._traffic = traffic
        self._audience = audience
        self._books = books
        self._rabbitmq_url = rabbitmq_url

    async def settle(self, *, seconds: float = 120) -> dict[str, int]:
        """Wait until nothing is under way any more; gives the number of each kind of mistake, and of trades."""
        with suppress(AssertionError):  # what is still under way then is missing below
            await eventually(self._is_quiet, seconds=seconds, pause=0.2)
        sent = self._traffic.sent
        stored = await self._books.ask(
            "SELECT split_part(ex_trade_id, '-', 1)::integer AS bot, count(*) AS rows, "
            "count(DISTINCT ex_trade_id) AS keys, max(split_part(ex_trade_id, '-', 2)::integer) AS last "
            "FROM trades GROUP BY 1"
        )
        [order] = await self._books.ask(
            "SELECT count(*) FILTER (WHERE number < before) AS number FROM (SELECT "
            "split_part(ex_trade_id, '-', 2)::integer AS number, "
            "lag(split_part(ex_trade_id, '-', 2)::integer) OVER ("
            "PARTITION BY split_part(ex_trade_id, '-', 1) ORDER BY trade_id) AS before FROM trades) AS placed"
        )
        ids = {row["trade_id"] for row in await self._books.ask("SELECT trade_id FROM trades")}
        [refused] = await self._books.ask("SELECT count(*) AS number FROM dead_letters")
        keys = {row["bot"]: row["keys"] for row in stored}
        return {
            "trades": sum(sent.values()),
            "lost": sum(max(number - keys.get(bot, 0), 0) for bot, number in sent.items()) + refused["number"],
            "doubled": sum(row["rows"] - row["keys"] for row in stored) + self._audience.doubled,
            "invented": sum(max(row["keys"] - sent.get(row["bot"], 0), 0) for row in stored),
            "out of order": order["number"],
            "not announced": len(ids ^ self._audience.announced.keys()),
        }

    async def _is_quiet(self) -> bool:
        """Everything confirmed has been committed, announced and heard."""
        try:
            [row] = await self._books.ask("SELECT (SELECT count(*) FROM outbox) AS outbox")
        except AWAY:
            return False
        stored = await self._books.stored() or 0
        heard = len(self._audience.announced)
        return not row["outbox"] and heard >= stored >= self._traffic.confirmed and not await self._queued()

    async def _queued(self) -> int:
        try:
            async with await aio_pika.connect(self._rabbitmq_url, timeout=5) as connection:
                channel = await connection.channel()
                queues = [await channel.declare_queue(queue.name, passive=True) for queue in QUEUES]
                return sum(queue.declaration_result.message_count or 0 for queue in queues)
        except (AMQPError, OSError, TimeoutError, StopAsyncIteration):
            return 1
