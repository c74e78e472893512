"""A service under observation: what was confirmed to its clients is compared with its tables and its events."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import aio_pika

from contracts import RecordTrade, TradeView
from contracts.client import PersistenceClient
from contracts.topology import QUEUES
from tests.builders import Desk, a_desk
from tests.conftest import RunningService
from tests.e2e.wire import Listener, eventually, http, ready, rows, value


@dataclass
class Run:
    """A service with a desk, a client, and a listener to all its events that outlives it."""

    service: RunningService
    client: PersistenceClient
    desk: Desk
    listener: Listener

    @classmethod
    @asynccontextmanager
    async def of(cls, service: RunningService) -> AsyncIterator[Self]:
        async with (
            PersistenceClient(service.rabbitmq_url, answer_timeout=10) as client,
            Listener.on(service.rabbitmq_url, queue="listener") as listener,
        ):
            desk = await a_desk(client)
            await all_is_announced(service.database_url)
            yield cls(service, client, desk, listener)

    async def has_exactly(
        self,
        trades: Sequence[RecordTrade],
        *,
        service: RunningService,
        seconds: float = 20,
        repeated: int | None = None,
        refused: int = 0,
    ) -> None:
        """Every one of ``trades`` is a row, every row is one announced change, and nothing is left over anywhere.

        With ``repeated``, so many messages were recognised as handled before by ``service``, which ends here.
        """
        await eventually(lambda: stored_are(service.database_url, len(trades)), seconds=seconds)
        await everything_is_settled(service)
        table = await stored(service.database_url, self.desk)
        assert sorted(row.ex_trade_id or "" for row in table) == sorted(trade.ex_trade_id or "" for trade in trades)
        by_key = {row.ex_trade_id: row for row in table}
        for trade in trades:
            row = by_key[trade.ex_trade_id]
            assert all(getattr(row, name) == getattr(trade, name) for name in trade.model_fields_set)
        await self.listener.until(lambda heard: announced(heard, "trade.recorded") >= len(trades))
        told = [
            (change["version"], change["before"], TradeView.model_validate(change["after"]))
            for event in self.listener.distinct
            if event["type"] == "trade.recorded"
            for change in event["changes"]
        ]
        assert sorted(told, key=lambda change: change[2].trade_id) == [(1, None, row) for row in table]
        assert sequences_have_no_gap(self.listener.distinct)
        assert await value(service.database_url, "SELECT count(*) FROM dead_letters") == refused
        if repeated is not None:
            found = await repetitions(service)
            assert found == repeated, f"{found} repetitions were recognised"
        # What was delivered and not acknowledged becomes visible when its consumer has gone.
        assert await service.terminate() == 0
        for queue in QUEUES:
            assert await holds(service.rabbitmq_url, queue.name, 0), queue.name


class Load:
    """Bots that publish trades for as long as the block lasts, each its own connection, one trade after the other."""

    def __init__(self, run: Run, *, bots: int, pause: float) -> None:
        self._run = run
        self._bots = bots
        self._pause = pause
        self._enough = False
        self.confirmed: list[RecordTrade] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._publish()) for _ in range(self._bots)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._enough = True
        await asyncio.gather(*self._tasks)

    async def _publish(self) -> None:
        async with PersistenceClient(self._run.service.rabbitmq_url, confirm_timeout=60) as client:
            while not self._enough:
                trade = self._run.desk.trade()
                await client.publish(trade)
                self.confirmed.append(trade)
                await asyncio.sleep(self._pause)


async def stored(database_url: str, desk: Desk) -> list[TradeView]:
    """The trades of a desk as they are in the table, oldest first."""
    found = await rows(database_url, "SELECT * FROM trades WHERE ex_id = $1 ORDER BY trade_id", desk.account.ex_id)
    return [TradeView.model_validate(row) for row in found]


async def stored_are(database_url: str, count: int) -> bool:
    return bool(await value(database_url, "SELECT count(*) >= $1 FROM trades", count))


def changes(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [change for event in events for change in event["changes"]]


def announced(events: Iterable[dict[str, Any]], kind: str) -> int:
    """How many changes of a kind the distinct ones of ``events`` tell."""
    distinct = {event["event_id"]: len(event["changes"]) for event in events if event["type"] == kind}
    return sum(distinct.values())


def sequences_have_no_gap(events: Iterable[dict[str, Any]]) -> bool:
    """Each type of event is counted without a gap, from wherever the listener came in."""
    by_type: dict[str, list[int]] = {}
    for event in events:
        by_type.setdefault(event["type"], []).append(event["sequence"])
    return all(numbers == list(range(numbers[0], numbers[0] + len(numbers))) for numbers in by_type.values())


async def everything_is_settled(service: RunningService) -> None:
    """No message waits in a queue, no event in the outbox, no transaction is open, and the service is ready."""
    idle = "SELECT count(*) = 0 FROM pg_stat_activity WHERE state LIKE 'idle in%' AND datname = current_database()"
    for queue in QUEUES:
        await eventually(partial(holds, service.rabbitmq_url, queue.name, 0))
    await all_is_announced(service.database_url)
    await eventually(lambda: value(service.database_url, idle))
    assert (await ready(service.http))[0] == 200


async def all_is_announced(database_url: str) -> None:
    await eventually(lambda: value(database_url, "SELECT count(*) = 0 FROM outbox"))


async def holds(rabbitmq_url: str, queue: str, messages: int) -> bool:
    """Whether so many messages wait in a queue."""
    async with await aio_pika.connect(rabbitmq_url) as connection:
        channel = await connection.channel()
        declared = await channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count == messages


async def repetitions(service: RunningService) -> int:
    """How many commands the service recognised as handled before."""
    _, metrics = await http(f"{service.http}/metrics")
    found = re.findall(r'^persistence_commands_total\{.*outcome="duplicate"\} (\S+)', metrics, re.MULTILINE)
    return int(sum(map(float, found)))
