"""Sends damaged messages with good ones between them, and looks at what became of each."""

import asyncio
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast
from uuid import UUID

import asyncpg
from aiormq.abc import DeliveredMessage

from contracts.amqp import Link, WireLink
from contracts.base import LOOKUP_TYPES
from contracts.client import PersistenceClient, new_message_id
from contracts.frames import Message
from contracts.topology import COMMANDS, LOOKUPS, QUEUES
from service.inbox import payload_hash
from tests.builders import Desk, Direct, a_desk, a_vault, received
from tests.cases import a_lookup, a_scene, commands
from tests.hostile.damage import Sent, damaged

_WAVE: Final = 2_000
_GOOD_EVERY: Final = 10
_LOOKUPS_AMONG: Final = 0.3
_REPLIES: Final = "hostile.replies"
_NOBODY: Final = 2**31 - 7
_SECONDS_PER_WAVE: Final = 120.0
_LATE_LETTERS: Final = 10_000
"""Lanes commit side by side, so a letter may be seen after others with a higher number: at most so many."""

Tell = Callable[[int, int], None]


@dataclass
class Report:
    """What became of the messages."""

    outcomes: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By damage how often what came of it: stored, answered, or the code it was refused with."""
    good: int = 0
    """Good messages sent between."""
    problems: list[str] = field(default_factory=list)

    @property
    def hostile(self) -> int:
        return sum(counts.total() for counts in self.outcomes.values())


class Siege:
    """A running service, and one who means it ill."""

    def __init__(self, rabbitmq_url: str, database_url: str, *, seed: int, is_alive: Callable[[], bool]) -> None:
        self._rabbitmq_url = rabbitmq_url
        self._database_url = database_url
        self._chance = random.Random(seed)
        self._is_alive = is_alive
        self._answered: set[str] = set()
        self._refused: dict[bytes, str] = {}
        """By hash of the body the code of each message that lies among the dead letters."""
        self._last_letter = 0
        self.report = Report()

    async def lay(self, messages: int, tell: Tell = lambda *_: None) -> Report:
        """Send so many damaged messages in waves, and see after each that work goes on."""
        async with PersistenceClient(self._rabbitmq_url, answer_timeout=30) as client:
            good = await self._good_messages(client)
            keeper = await a_desk(client)
        link = WireLink(self._rabbitmq_url, name="hostile")
        lookout = Link(self._rabbitmq_url, name="lookout")
        connection = await asyncpg.connect(self._database_url)
        try:
            while self.report.hostile < messages and not self.report.problems:
                wave = [
                    damaged(self._fresh(good), self._chance)
                    for _ in range(min(_WAVE, messages - self.report.hostile))
                ]
                trades = [self._trade(keeper) for _ in range(len(wave) // _GOOD_EVERY)]
                await self._send(link, wave, trades)
                await self._quiet(lookout)
                await self._judge(connection, wave, trades)
                tell(self.report.hostile, messages)
        finally:
            await connection.close()
            await link.close()
            await lookout.close()
        return self.report

    async def _good_messages(self, client: PersistenceClient) -> list[Sent]:
        """One of each kind. What would delete is about nobody, so that the others keep what they are about."""
        scene = await a_scene(cast("Direct", client), a_vault())
        found = []
        for name, command in commands(scene).items():
            body = json.loads(received(command).body)
            if name.startswith(("delete", "del_", "remove")):
                body = {key: _NOBODY if isinstance(value, int) else value for key, value in body.items()}
            found.append(Sent(name, json.dumps(body).encode()))
        for kind in LOOKUP_TYPES.values():
            question = a_lookup(kind, scene).model_dump_json(exclude_unset=True).encode()
            found.append(Sent(kind.wire_name, question, is_lookup=True))
        return found

    def _fresh(self, good: Sequence[Sent]) -> Sent:
        wants_lookup = self._chance.random() < _LOOKUPS_AMONG
        message = self._chance.choice([one for one in good if one.is_lookup == wants_lookup])
        others: dict[str, Any] = {"content_type": "application/json", "delivery_mode": 2}
        message_id = str(new_message_id())
        if message.is_lookup or self._chance.random() < 0.3:
            others |= {"reply_to": _REPLIES, "correlation_id": message_id}
        return Sent(
            message.routing_key, message.body, message_id=message_id, others=others, is_lookup=message.is_lookup
        )

    def _trade(self, keeper: Desk) -> Sent:
        message = received(keeper.trade())
        others = {"content_type": "application/json", "delivery_mode": 2}
        return Sent(message.command, message.body, message_id=message.message_id, others=others)

    async def _send(self, link: WireLink, wave: Sequence[Sent], trades: Sequence[Sent]) -> None:
        between = list(trades)
        out = []
        for n, sent in enumerate(wave):
            if n % _GOOD_EVERY == 0 and between:
                out.append(between.pop())
            out.append(sent)
        fresh = link.opened is None
        wire = await link.channel()
        if fresh:
            await wire.queue_declare(_REPLIES, exclusive=True)
            await wire.basic_consume(_REPLIES, self._hear, no_ack=True)
        await wire.publish_confirmed(
            [
                Message(
                    LOOKUPS.name if sent.is_lookup else COMMANDS.name, sent.routing_key, sent.encoded(), sent.body
                )
                for sent in (*out, *between)
            ]
        )

    async def _hear(self, message: DeliveredMessage) -> None:
        self._answered.add(str(message.header.properties.correlation_id))

    async def _quiet(self, lookout: Link) -> None:
        """Wait until everything was taken, by the consumers that were there before."""
        deadline = asyncio.get_running_loop().time() + _SECONDS_PER_WAVE
        while True:
            channel = await lookout.channel()
            waiting = 0
            for queue in QUEUES:
                declared = (await channel.declare_queue(queue.name, passive=True)).declaration_result
                waiting += declared.message_count or 0
                if not declared.consumer_count and queue.name != "persistence.dead_letters":
                    self.report.problems.append(f"nobody consumes {queue.name} any more")
            if not self._is_alive():
                self.report.problems.append("the service has ended")
            if self.report.problems or not waiting:
                return
            if asyncio.get_running_loop().time() > deadline:
                self.report.problems.append(f"{waiting} messages still wait after {_SECONDS_PER_WAVE} s")
                return
            await asyncio.sleep(0.05)

    async def _judge(self, connection: Any, wave: Sequence[Sent], trades: Sequence[Sent]) -> None:
        """What became of each, which for the last ones may take a moment more."""
        deadline = asyncio.get_running_loop().time() + _SECONDS_PER_WAVE
        outcomes = await self._outcomes(connection, [*wave, *trades])
        while None in outcomes and self._is_alive() and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.2)
            outcomes = await self._outcomes(connection, [*wave, *trades])
        for sent, outcome in zip([*wave, *trades], outcomes, strict=True):
            if sent.damage == "none":
                self.report.good += 1
                if outcome != "stored":
                    self.report.problems.append(f"a good trade was not stored: {outcome}")
            else:
                self.report.outcomes[sent.damage][outcome or "lost"] += 1
                if outcome in (None, "internal"):
                    self.report.problems.append(f"{outcome or 'lost'}: {sent!r:.600}")

    async def _outcomes(self, connection: Any, messages: Sequence[Sent]) -> list[str | None]:
        ids = [as_uuid for sent in messages if (as_uuid := _uuid(sent)) is not None]
        done = {
            row[0]
            for row in await connection.fetch(
                "SELECT message_id FROM inbox WHERE message_id = ANY($1) AND NOT refused", ids
            )
        }
        for number, digest, code in await connection.fetch(
            "SELECT dead_letter_id, body_hash, code FROM dead_letters WHERE dead_letter_id > $1 AND reason <> ''",
            self._last_letter - _LATE_LETTERS,
        ):
            self._refused[digest] = code
            self._last_letter = max(self._last_letter, number)
        found: list[str | None] = []
        for sent in messages:
            if sent.is_lookup:
                found.append(self._of_lookup(sent))
            elif _uuid(sent) in done:
                found.append("stored")
            else:
                found.append(self._refused.get(payload_hash(sent.routing_key, sent.body)))
        return found

    def _of_lookup(self, sent: Sent) -> str | None:
        """Who asks with an address of no use gets no answer, and needs none."""
        correlation, reply_to = sent.others.get("correlation_id"), sent.others.get("reply_to")
        if reply_to != _REPLIES or correlation != sent.message_id or _uuid(sent) is None:
            return "has no address for an answer"
        return "answered" if correlation in self._answered else None


def _uuid(sent: Sent) -> UUID | None:
    try:
        return UUID(sent.message_id or "")
    except ValueError:
        return None
