"""Kills a service at one moment of one await after the other, and compares what it left with what it was sent.

One service runs at a time. It is sent everything that takes a way of its own through lanes and relay: trades that
are stored together and one by one, with and without an answer, logs, updates, repeated, contradicting, impossible and
replayed messages, one that fails at the commit and one that fails there once. It dies at the armed moment; the next
one finishes the work and becomes the next victim.
"""

import asyncio
import json
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final, Self
from uuid import UUID

import aio_pika
import asyncpg
from aio_pika.abc import AbstractChannel

from contracts import RecordTrade, SaveBotLog, SymbolUpdates, UpdateSymbol
from contracts.base import Command
from contracts.client import PersistenceClient, new_message_id
from contracts.producer import PRODUCER_HEADER, SEQUENCE_HEADER
from contracts.topology import COMMANDS, QUEUES
from service.config import Settings
from service.executor import REPLAY_HEADER
from tests.builders import Desk, a_desk
from tests.e2e.proxy import Proxy
from tests.e2e.wire import Listener, eventually
from tests.faults.points import EFFECTS, Board, Moment, board, find, moments
from tests.faults.victims import KILLED, Victim
from tests.fresh import environment
from tests.nursery import Nursery

_REPLIES: Final = "crash-replies"
_PRODUCER: Final = str(new_message_id())
_SECONDS_TO_DIE: Final = 10.0
_SECONDS_AFTERWARDS: Final = 2.0
"""How long a service that is through with everything may still come by its moment."""

# A trade whose fee is in one of these currencies fails at the commit: once per shot, or until it is forgiven.
_TRIGGER: Final = """
CREATE SEQUENCE failed_once;
CREATE TABLE forgiven (ex_trade_id text PRIMARY KEY);
CREATE FUNCTION fail_at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.fee_currency = 'ONCE' THEN
        IF nextval('failed_once') = 1 THEN
            RAISE EXCEPTION 'comes in between, once' USING ERRCODE = '40001';
        END IF;
    ELSIF NOT EXISTS (SELECT FROM forgiven WHERE ex_trade_id = NEW.ex_trade_id) THEN
        RAISE EXCEPTION 'is not to be' USING ERRCODE = '23514';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER fail_at_commit AFTER INSERT ON trades DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.fee_currency IN ('ONCE', 'NEVER')) EXECUTE FUNCTION fail_at_commit();
"""
_ENDING: Final = "the service is asked to end"
_NEVER_THERE: Final = "never came by, with everything in flight"
_TOO_LATE: Final = "died with nothing in flight"
MISSES: Final = frozenset({_NEVER_THERE, _TOO_LATE})
"""What says nothing about the code: the moment was not met."""
DISTURBANCES: Final = ("nothing", "events are cut", "another relay leads", _ENDING)
"""What goes on meanwhile, since there are points that nobody comes by otherwise."""


@dataclass
class Message:
    """A command as it is sent."""

    command: Command[Any]
    message_id: UUID | None = field(default_factory=new_message_id)
    asks: bool = False
    headers: dict[str, Any] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        return self.command.model_dump_json(exclude_unset=True).encode()


@dataclass
class Shot:
    """What one service was sent, and what must have become of it."""

    messages: list[Message] = field(default_factory=list)
    trades: list[RecordTrade] = field(default_factory=list)
    """To be stored, in the order of their ids."""
    replayed: list[RecordTrade] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    refused: dict[str | None, str] = field(default_factory=dict)
    """By message id, the field that is at fault."""


class CutEvents:
    """The connection that publishes events is cut when it publishes, as often as it is told to."""

    def __init__(self, range_: "Range") -> None:
        self._range = range_
        self._is_events = False

    def sent(self, data: bytes) -> bytes:
        self._is_events = self._is_events or b"persistence-events" in data
        # A frame with Basic.Publish to the exchange of events.
        if self._is_events and self._range.cuts and b"\x00\x3c\x00\x28" in data:
            self._range.cuts -= 1
            raise ConnectionResetError
        return data

    def answered(self, data: bytes) -> bytes:
        return data


class Range:
    """Where the services are killed: servers, a desk, a listener, and what earlier shots left to be replayed."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.cuts = 0
        self.points = find()
        self.killed: Counter[Moment] = Counter()
        self._letters: list[tuple[Message, bool]] = []
        """Refused by the last shot: to be replayed by the next, with or without success."""
        self._shots = 0
        self._decimals = 0
        self._number = 0
        self._version = 1

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, folder: Path) -> AsyncIterator[Self]:
        """A range with a service that waits for the first shot."""
        range_ = cls(settings, folder)
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            range_.board = stack.enter_context(board(folder / "board", range_.points))
            proxy = await enter(Proxy(settings.rabbitmq_url.get_secret_value(), partial(CutEvents, range_)))
            range_._environment = {
                **environment(settings),
                "RABBITMQ_URL": proxy.url,
                "JOBS_ENABLED": "false",  # what they come by is not on the way of a message
                "RELAY_LEASE": "0.5",
                "BATCH_SIZE": "12",
                "RABBITMQ_PREFETCH": "16",
                "RELAY_BATCH": "4",
                "SHUTDOWN_TIMEOUT": "5",
            }
            range_._nursery = stack.enter_context(Nursery.running(with_points=True))
            stack.push_async_callback(range_._end)
            await range_._start()
            url = settings.rabbitmq_url.get_secret_value()
            range_.database = await asyncpg.connect(settings.database_url.get_secret_value())
            stack.push_async_callback(range_.database.close)
            await range_.database.execute(_TRIGGER)
            await range_._until_serving()
            range_.listener = await enter(Listener.on(url, queue="crash-listener"))
            connection = await enter(await aio_pika.connect(url))
            range_._channel = await connection.channel()
            await (await range_._channel.declare_queue(_REPLIES)).consume(_hear_nothing, no_ack=True)
            range_._client = await enter(PersistenceClient(url, answer_timeout=15))
            range_.desk = await a_desk(range_._client)
            range_.board.clear()  # what that came by, no workload does
            yield range_

    board: Board
    database: "asyncpg.Connection[asyncpg.Record]"
    listener: Listener
    desk: Desk
    service: Victim
    _nursery: Nursery
    _environment: Mapping[str, str]
    _channel: AbstractChannel
    _client: PersistenceClient

    async def _start(self) -> None:
        self._shots += 1
        log = self.folder / f"service-{self._shots}.log"
        self.service = Victim.of(self._nursery, self._environment, log=log, board=self.folder / "board")

    async def _end(self) -> None:
        await self.service.kill()

    async def _until_serving(self) -> None:
        async with asyncio.timeout(20):
            while not (self.service.log.exists() and '"serving"' in self.service.log.read_text()):
                assert not self.service.has_ended, self.service.log.read_text()
                await asyncio.sleep(0.01)

    def shot(self) -> Shot:
        """A workload that comes by every point."""
        shot = Shot()
        trade = self.desk.trade

        def good(*, asks: bool = False, **changes: Any) -> Message:
            shot.trades.append(trade(**changes))
            return Message(shot.trades[-1], asks=asks)

        def bad(field_: str, command: Command[Any], *, asks: bool = False) -> Message:
            message = Message(command, asks=asks)
            shot.refused[str(message.message_id)] = field_
            return message

        def log() -> Message:
            shot.logs.append(secrets.token_hex(8))
            self._number += 1
            headers = {PRODUCER_HEADER: _PRODUCER, SEQUENCE_HEADER: self._number}
            return Message(SaveBotLog(bot_id=self.desk.bot.bot_id, message=shot.logs[-1]), headers=headers)

        first = good()
        self._decimals = self._decimals % 8 + 1
        self._version += 1
        updates = SymbolUpdates(decimals=self._decimals)
        update = Message(UpdateSymbol(symbol_id=self.desk.symbol.symbol_id, updates=updates), asks=True)
        replays = [
            Message(letter.command, letter.message_id, headers={REPLAY_HEADER: 1}) for letter, _ in self._letters
        ]
        shot.replayed = [letter.command for letter, succeeds in self._letters if succeeds]  # type: ignore[misc]
        shot.refused |= {str(letter.message_id): "bot_id" for letter, succeeds in self._letters if not succeeds}
        nobody, unforgiven = bad("bot_id", trade(bot_id=2**31 - 1)), bad("trades", trade(fee_currency="NEVER"))
        other = Message(trade(), first.message_id)
        unnamed = Message(trade(), None)
        early = [good() for _ in range(7)]
        shot.messages = [
            first,
            *early,
            update,
            log(),
            nobody,
            *(good() for _ in range(3)),
            *(good(asks=True) for _ in range(2)),
            # Behind one that is answered, so in a run within the transaction.
            bad("bot_id", trade(bot_id=2**31 - 2)),
            good(),
            entry := log(),
            Message(entry.command, entry.message_id),
            log(),
            twice := good(),
            Message(twice.command, twice.message_id),
            *(Message(message.command, message.message_id, asks=True) for message in (first, *early[:4])),
            *replays,
            other,
            unnamed,
            good(),
            good(fee_currency="ONCE"),
            *(good() for _ in range(2)),
            log(),
            bad("ex_trade_id", shot.trades[1].model_copy(update={"price": Decimal(7)}), asks=True),
            good(),
            unforgiven,
            *(good() for _ in range(4)),
            log(),
        ]
        self._letters = [(nobody, False), (unforgiven, True)]
        return shot

    async def fire(self, moment: Moment | None, disturbance: str = "nothing") -> list[str]:
        """Send a workload, have the service die at ``moment`` and another finish the work; gives what is wrong."""
        shot = self.shot()
        wrong: list[str] = []
        self.cuts = 2 if disturbance == "events are cut" else 0
        if disturbance == "another relay leads":
            await self.database.execute(
                "UPDATE leases SET holder = gen_random_uuid(), term = term + 1, "
                "expires_at = clock_timestamp() + interval '0.7 s' WHERE name = 'relay'"
            )
        if shot.replayed:
            await self.database.executemany(
                "INSERT INTO forgiven VALUES ($1)", [(trade.ex_trade_id,) for trade in shot.replayed]
            )
        await self.database.execute("ALTER SEQUENCE failed_once RESTART")
        if disturbance == _ENDING:
            await self._until_serving()
        self.board.arm(moment)
        await self._publish(shot.messages)
        if disturbance == _ENDING:
            self.service.child.terminate()
        if moment is not None or disturbance == _ENDING:
            code = await self._end_of_victim(shot)
            if moment is None:
                _expect(wrong, "exit code", 0, code)
            elif code != KILLED:
                self.board.arm(None)
                wrong.append(_NEVER_THERE)
            else:
                try:
                    # The broker takes a moment to notice that its consumer has gone.
                    await eventually(self._in_flight, seconds=3, pause=0.01)
                    self.killed[moment] += 1
                except AssertionError:
                    wrong.append(_TOO_LATE)
            if code is not None:
                await self._start()
        return wrong + await self._compare(shot)

    async def _end_of_victim(self, shot: Shot) -> int | None:
        """Its exit code, or None if it lives on with everything done."""
        with suppress(AssertionError):  # it has not even done everything
            await eventually(partial(self._has_ended_or_done, shot), seconds=_SECONDS_TO_DIE, pause=0.1)
        return await self.service.end(seconds=_SECONDS_AFTERWARDS)

    async def _has_ended_or_done(self, shot: Shot) -> bool:
        return self.service.has_ended or await self._is_done(shot)

    async def _publish(self, messages: Iterable[Message]) -> None:
        exchange = await self._channel.get_exchange(COMMANDS.name, ensure=False)
        await asyncio.gather(
            *(
                exchange.publish(
                    aio_pika.Message(
                        message.body,
                        message_id=str(message.message_id) if message.message_id else "",
                        delivery_mode=2,
                        content_type="application/json",
                        reply_to=_REPLIES if message.asks else None,
                        headers=message.headers,
                    ),
                    message.command.wire_name,
                )
                for message in messages
            )
        )

    async def _in_flight(self) -> bool:
        """Whether the dead one left anything to do."""
        for queue in QUEUES:
            declared = await self._channel.declare_queue(queue.name, passive=True)
            if declared.declaration_result.message_count:
                return True
        return bool(await self.database.fetchval("SELECT EXISTS (SELECT FROM outbox)"))

    async def _is_done(self, shot: Shot) -> bool:
        stored = "SELECT count(*) FROM trades WHERE ex_trade_id = ANY($1)"
        keys = [trade.ex_trade_id for trade in (*shot.trades, *shot.replayed)]
        return (
            not await self._in_flight()
            and await self.database.fetchval(stored, keys) == len(keys)
            and await self.database.fetchval("SELECT count(*) FROM bot_logs WHERE message = ANY($1)", shot.logs)
            == len(shot.logs)
        )

    async def _compare(self, shot: Shot) -> list[str]:
        """What is lost, doubled, out of order or not announced."""
        wrong: list[str] = []
        try:
            await eventually(partial(self._is_done, shot), seconds=60, pause=0.02)
        except AssertionError:
            wrong.append(f"not done in 60 s; service log {self.service.log}")
        since = time.monotonic()
        while (problems := await self._problems(shot)) and time.monotonic() - since < 5:
            await asyncio.sleep(0.05)  # events may be under way
        return wrong + problems + await self._answers(shot)

    async def _problems(self, shot: Shot) -> list[str]:
        wrong: list[str] = []
        fetch = self.database.fetch
        keys = [trade.ex_trade_id for trade in (*shot.trades, *shot.replayed)]
        rows = await fetch("SELECT * FROM trades WHERE ex_trade_id = ANY($1) ORDER BY trade_id", keys)
        _expect(wrong, "trades stored, each once", Counter(keys), Counter(row["ex_trade_id"] for row in rows))
        own = [trade.ex_trade_id for trade in shot.trades]
        _expect(wrong, "trades in order", own, [row["ex_trade_id"] for row in rows if row["ex_trade_id"] in set(own)])
        by_key = {row["ex_trade_id"]: row for row in rows}
        for trade in (*shot.trades, *shot.replayed):
            if (row := by_key.get(trade.ex_trade_id)) is not None:
                said = {name: getattr(trade, name) for name in trade.model_fields_set}
                _expect(wrong, f"trade {trade.ex_trade_id}", said, {name: row[name] for name in said})
        logs = await fetch("SELECT log_id, message FROM bot_logs WHERE message = ANY($1) ORDER BY log_id", shot.logs)
        _expect(wrong, "log entries, in order", shot.logs, [row["message"] for row in logs])
        ids = [str(message.message_id) for message in shot.messages if message.message_id]
        inbox = await fetch("SELECT message_id FROM inbox WHERE message_id = ANY($1)", [UUID(i) for i in ids])
        _expect(wrong, "inbox", Counter(set(ids)), Counter(str(row["message_id"]) for row in inbox))
        await self._compare_letters(shot, wrong)
        self._compare_events(shot, rows, logs, wrong)
        version = await self.database.fetchval(
            "SELECT row_version FROM symbols WHERE symbol_id = $1", self.desk.symbol.symbol_id
        )
        _expect(wrong, "version of the symbol", self._version, version)
        return wrong

    async def _compare_letters(self, shot: Shot, wrong: list[str]) -> None:
        ids = [str(message.message_id) for message in shot.messages if message.message_id]
        letters = await self.database.fetch(
            "SELECT message_id, field, state, dead_letter_id FROM dead_letters WHERE message_id = ANY($1)", ids
        )
        first = str(shot.messages[0].message_id)
        expected = {**shot.refused, first: "message_id"}
        _expect(
            wrong,
            "open dead letters",
            sorted((key, name) for key, name in expected.items()),
            sorted((row["message_id"], _stated(row, shot)) for row in letters if row["state"] == "open"),
        )
        replayed = sorted(row["message_id"] for row in letters if row["state"] == "replayed")
        _expect(wrong, "replayed letters", len(shot.replayed), len(replayed))
        announced = Counter(
            change["key"]["dead_letter_id"]
            for event in self.listener.distinct
            if event["type"] == "command.rejected"
            for change in event["changes"]
        )
        told = {row["dead_letter_id"]: announced[row["dead_letter_id"]] for row in letters}
        _expect(wrong, "rejections announced once", dict.fromkeys(told, 1), told)

    def _compare_events(
        self, shot: Shot, trades: Sequence[Mapping[str, Any]], logs: Sequence[Mapping[str, Any]], wrong: list[str]
    ) -> None:
        told: defaultdict[tuple[str, int], list[Any]] = defaultdict(list)
        sequences: defaultdict[str, list[int]] = defaultdict(list)
        for event in self.listener.distinct:
            sequences[event["type"]].append(event["sequence"])
            for change in event["changes"]:
                told[event["type"], next(iter(change["key"].values()))].append(change)
        for row in trades:
            images = [change["after"]["ex_trade_id"] for change in told["trade.recorded", row["trade_id"]]]
            _expect(wrong, f"announced of {row['ex_trade_id']}", [row["ex_trade_id"]], images)
        for row in logs:
            _expect(wrong, f"announced of log {row['message']}", 1, len(told["bot_log.saved", row["log_id"]]))
        versions = [change["version"] for change in told["symbol.updated", self.desk.symbol.symbol_id]]
        _expect(wrong, "versions announced", list(range(2, self._version + 1)), versions)
        for kind, numbers in sequences.items():
            _expect(wrong, f"numbers of {kind}", list(range(numbers[0], numbers[0] + len(numbers))), numbers)

    async def _answers(self, shot: Shot) -> list[str]:
        """Who asks again under the same id gets the answer, as a repetition."""
        wrong: list[str] = []
        asked = [message for message in shot.messages if message.asks and str(message.message_id) not in shot.refused]
        for message in asked:
            answer, meta = await self._client.call_with_meta(message.command, message_id=message.message_id)
            _expect(wrong, f"answer to {message.message_id} is a repetition", True, meta.duplicate)
            if isinstance(message.command, RecordTrade):
                _expect(wrong, "answer", message.command.ex_trade_id, answer.ex_trade_id)
        return wrong

    async def finish(self) -> list[str]:
        """End the last service; nothing may be left that was delivered and not settled."""
        wrong: list[str] = []
        _expect(wrong, "exit code", 0, await self.service.terminate())
        _expect(wrong, "messages left", False, await self._in_flight())
        return wrong

    def seen(self) -> list[Moment]:
        """The moments on the way of messages that services came by so far."""
        on_the_way = [point for point in self.points if point.is_required or point.module in EFFECTS]
        return [moment for moment in moments(on_the_way) if self.board.count(moment)]


async def _hear_nothing(_: object) -> None:
    """The answers of services that died are nobody's concern."""


def _stated(row: Mapping[str, Any], shot: Shot) -> Any:
    """The field at fault; a failure of the commit can name only a table."""
    return row["field"] if row["field"] is not None else shot.refused.get(row["message_id"])


def _expect(wrong: list[str], what: str, expected: object, found: object) -> None:
    if expected != found:
        one, other = (json.dumps(value, default=str)[:300] for value in (expected, found))
        wrong.append(f"{what}: expected {one}, found {other}")
