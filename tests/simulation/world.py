"""A run of the service's core under one seed: bots, a broker, instances that die, outages, and what must hold.

Real are the lanes, the executor with inbox and savepoints, the outbox's recording, the relay, and all their retries.
Made up are the broker, the database and the clock.
"""

import asyncio
import hashlib
import json
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final, cast
from unittest.mock import patch

from pamqp.commands import Basic

from contracts.wire import Wire
from service.config import Settings
from service.consumers import Lane
from service.executor import Executor
from service.publisher import Addressed, InFlight, Publication, Publisher
from service.relay import Relay
from tests.simulation.database import HANDLERS, UNKNOWN_BOT, Database, in_place
from tests.simulation.loop import SimulatedLoop, StuckError, run

_SETTINGS: Final = Settings.model_validate(
    {
        "database_url": "postgresql://none",
        "rabbitmq_url": "amqp://none",
        "redis_url": "redis://none",
        "relay_poll_interval": 1.0,
        "relay_lease": 3.0,
    }
)
_QUEUES: Final = ("logs", "config")
_USERS: Final = 2
_HOLD_SECONDS: Final = 2.0
_PREFETCH: Final = 4
_HEAL_AT: Final = 12.0
_QUIET_WITHIN: Final = 60.0
"""Seconds after everything was healed, until when all has to be done."""


class Violation(Exception):  # noqa: N818 - that is what it is
    """Something that must not be."""


@dataclass
class Message:
    """A command on its way."""

    id: str
    command: str
    body: bytes
    queue: str
    reply_to: str | None = None
    redelivered: bool = False


class FakeChannel:
    """A channel that delivers to one lane, so many at most before it waits for an acknowledgement."""

    def __init__(self, world: "World", queue: str, take: Any) -> None:
        self.is_closed = self.is_cancelled = False
        self.unsettled: dict[int, Message] = {}
        self._world = world
        self._queue = queue
        self._take = take
        self._tag = 0
        self._on_their_way: deque[tuple[int, Message]] = deque()

    @property
    def takes_more(self) -> bool:
        return not self.is_closed and not self.is_cancelled and len(self.unsettled) < _PREFETCH

    def deliver(self, message: Message) -> None:
        """Send a message, which arrives behind those that are on their way already."""
        self._tag += 1
        self.unsettled[self._tag] = message
        self._on_their_way.append((self._tag, message))
        self._world.loop.call_later(self._world.chance.choice((0, 0, 0.01, 0.1)), self._arrives)

    def _arrives(self) -> None:
        tag, message = self._on_their_way.popleft()
        if self.is_closed:
            return
        head = Basic.Properties(
            message_id=message.id,
            content_type="application/json",
            reply_to=message.reply_to,
            correlation_id=message.id,
        )
        self._take(
            SimpleNamespace(
                channel=self,
                delivery_tag=tag,
                consumer_tag="consumer",
                routing_key=message.command,
                body=message.body,
                redelivered=message.redelivered,
                header=SimpleNamespace(properties=head),
            )
        )

    async def basic_ack(self, tag: int, *, multiple: bool, wait: bool) -> None:
        assert multiple
        assert not wait
        if self.is_closed:
            raise ConnectionError("the channel is closed")
        self._world.expect(tag in self.unsettled, f"{self._queue}: {tag} is acknowledged, and is not open")
        for settled in [each for each in self.unsettled if each <= tag]:
            self._world.settled(self.unsettled.pop(settled))
        self._world.wake_broker()

    async def basic_cancel(self, consumer_tag: str, *, nowait: bool) -> None:
        assert consumer_tag
        assert nowait
        self.is_cancelled = True
        self._world.wake_broker()
        await self._world.pause()

    async def basic_nack(self, tag: int, *, requeue: bool) -> None:
        assert requeue
        message = self.unsettled.pop(tag, None)
        if message is not None and not self.is_closed:
            self._world.ready[self._queue].append(message)  # to the tail, as RabbitMQ 3.10 does
            self._world.wake_broker()

    def close(self) -> None:
        """The broker puts back to the head what was not settled, in order."""
        self.is_closed = True
        for message in reversed(self.unsettled.values()):
            message.redelivered = True
            self._world.ready[self._queue].appendleft(message)
        self.unsettled.clear()


@dataclass(eq=False)
class Instance:
    """A process of the service."""

    lanes: dict[str, Lane]
    tasks: list[asyncio.Task[None]]
    channels: dict[str, FakeChannel] = field(default_factory=dict)


class FakePublisher:
    """Publishes events and answers; confirms may be lost, and so may what was published."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._link = object()

    async def send_events(self, events: Sequence[Publication], *, after: InFlight | None = None) -> InFlight:
        await self._world.pause()
        if after is not None and after.wire is not self._link:
            raise ConnectionError("the link is gone with events under way")
        sent = InFlight(cast("Wire", self._link), self._world.loop.create_future())
        for event in events:
            if self._loses_link():
                break
            self._world.heard.append(event)
        return sent

    async def confirmed(self, sent: InFlight) -> None:
        await self._world.pause()
        if self._world.chance.random() < self._world.trouble / 10:
            await asyncio.sleep(4.0)  # longer than a lease
        if sent.wire is not self._link or self._loses_link():
            raise ConnectionError("the link is gone")
        await self._world.pause()

    def _loses_link(self) -> bool:
        is_lost = self._world.chance.random() < self._world.trouble
        if is_lost:
            self._link = object()
        return is_lost

    async def answer(self, answers: Sequence[Addressed]) -> None:
        await self._world.pause()
        if self._world.chance.random() >= self._world.trouble:
            self._world.answers += answers


class World:
    """Everything there is in a run."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.loop = SimulatedLoop(self.chance)
        self.database = Database(self.loop, self.chance)
        self.trouble = 0.0
        """How likely a link breaks."""
        self.ready: dict[str, deque[Message]] = {queue: deque() for queue in _QUEUES}
        self.heard: list[Publication] = []
        self.answers: list[Addressed] = []
        self.confirmed: dict[str, Message] = {}
        self.sent: defaultdict[str, list[Message]] = defaultdict(list)
        """By bot, in order."""
        self._instances: list[Instance] = []
        self._active: dict[str, FakeChannel | None] = {}
        self._broker_wakes = asyncio.Event()
        self._publisher = cast("Publisher", FakePublisher(self))
        self._violations: list[str] = []

    # What the fakes ask

    async def pause(self) -> None:
        if self.chance.random() < 0.5:
            await asyncio.sleep(self.chance.choice((0, 0, 0.001, 0.01)))

    def may_lose_link(self) -> None:
        if self.chance.random() < self.trouble:
            raise self.chance.choice((ConnectionError, TimeoutError))("the link is gone")

    def wake_broker(self) -> None:
        self._broker_wakes.set()

    def settled(self, message: Message) -> None:
        """An acknowledged message is gone from the broker, so what became of it must be committed."""
        tables = self.database.tables
        if message.id not in map(str, tables.inbox):
            self._violations.append(f"{message.id} was acknowledged before its commit")

    # Who lives in it

    async def live(self) -> None:
        bots = [asyncio.create_task(self._bot(n)) for n in range(self.chance.randint(1, 3))]
        broker = asyncio.create_task(self._broker())
        for _ in range(self.chance.randint(1, 2)):
            self._start()
        nemesis = asyncio.create_task(self._nemesis())
        await asyncio.sleep(_HEAL_AT)
        await nemesis
        self._heal()
        await asyncio.gather(*bots)
        deadline = self.loop.time() + _QUIET_WITHIN
        while not self._is_quiet():
            if self.loop.time() > deadline or any(task.done() for one in self._instances for task in one.tasks):
                self._violations.append(f"not quiet: {self._what_is_left()}")
                break
            await asyncio.sleep(0.5)
        broker.cancel()
        for instance in self._instances:
            self._end(instance)
        self._check()

    async def _bot(self, number: int) -> None:
        """Sends one command after the other, the same bytes under the same id until the broker has confirmed."""
        name = f"bot-{number}"
        for n in range(self.chance.randint(2, 10)):
            message = self._command(name, n)
            self.sent[name].append(message)
            while message.id not in self.confirmed:
                await asyncio.sleep(self.chance.choice((0, 0, 0.001, 0.1, 1.0)))
                self._publish(message)

    def _command(self, bot: str, n: int) -> Message:
        message_id = str(self.database.uuid())
        reply_to = "amq.rabbitmq.reply-to.bot" if self.chance.random() < 0.3 else None
        kind = self.chance.random()
        body: dict[str, Any]
        if kind < 0.2:
            body = {"uid": self.chance.randint(1, _USERS), "active": True}
            return Message(message_id, "set_user_active", json.dumps(body).encode(), "config", reply_to)
        bot_id = UNKNOWN_BOT if kind > 0.9 else 1
        body = {"bot_id": bot_id, "message": f"{bot}:{n}"}
        return Message(message_id, "save_bot_log", json.dumps(body).encode(), "logs", reply_to)

    def _publish(self, message: Message) -> None:
        fate = self.chance.random()
        if fate < self.trouble:
            return  # lost on the way
        copies = 2 if fate < 2 * self.trouble else 1
        for _ in range(copies):
            self.ready[message.queue].append(Message(**vars(message)))
        self.wake_broker()
        if fate >= 3 * self.trouble:
            self.confirmed[message.id] = message

    async def _broker(self) -> None:
        """Delivers to a single active consumer per queue; to another one only once that one's channel is closed."""
        while True:
            await self._broker_wakes.wait()
            self._broker_wakes.clear()
            for queue, ready in self.ready.items():
                channel = self._consumer_of(queue)
                while channel is not None and ready and channel.takes_more:
                    channel.deliver(ready.popleft())
                    if self.chance.random() < 0.5:
                        await self.pause()

    def _consumer_of(self, queue: str) -> FakeChannel | None:
        active = self._active.get(queue)
        if active is None or active.is_closed or active.is_cancelled:
            channels = (one.channels[queue] for one in self._instances if queue in one.channels)
            active = next((one for one in channels if not one.is_closed and not one.is_cancelled), None)
            self._active[queue] = active
        return active

    def _start(self) -> None:
        sessions = cast("Any", self.database)
        relay = Relay(sessions, self._publisher, _SETTINGS)
        executor = Executor(sessions, HANDLERS)
        instance = Instance({}, [])
        for queue in _QUEUES:
            instance.lanes[queue] = Lane(
                queue,
                executor,
                self._publisher,
                batch_size=self.chance.choice((1, 3, 100)),
                prefetch=_PREFETCH,
                committed=relay.wake,
                intake=_Intake(self, instance),
                hold_seconds=_HOLD_SECONDS,
            )
        self._instances.append(instance)
        parts: list[Lane | Relay] = [*instance.lanes.values(), relay]
        instance.tasks = [asyncio.create_task(part.run()) for part in parts]
        for queue in _QUEUES:
            self.subscribe(instance, queue)

    def subscribe(self, instance: Instance, queue: str) -> None:
        open_already = queue in instance.channels and not instance.channels[queue].is_closed
        if instance in self._instances and not open_already:
            instance.channels[queue] = FakeChannel(self, queue, instance.lanes[queue].take)
            self.wake_broker()

    def _end(self, instance: Instance) -> None:
        """It dies, wherever it is at the moment."""
        self._instances.remove(instance)
        for task in instance.tasks:
            task.cancel()
        for channel in instance.channels.values():
            channel.close()
        self.wake_broker()

    async def _nemesis(self) -> None:
        while self.loop.time() < _HEAL_AT - 1:
            await asyncio.sleep(self.chance.choice((0.01, 0.1, 0.5, 2.0)))
            deed = self.chance.randrange(8)
            if deed == 0 and self._instances:
                self._end(self.chance.choice(self._instances))
                await self.pause()
                self._start()
            elif deed == 1:
                self.database.is_down = not self.database.is_down
            elif deed == 2 and self._instances:
                self._cut(self.chance.choice(self._instances))
            elif deed == 3:
                self.database.trouble = self.chance.choice((0.0, 0.02, 0.2))
            elif deed == 4:
                self.trouble = self.chance.choice((0.0, 0.05, 0.2))
            elif deed in (5, 6) and self._instances:
                await self._finish(self.chance.choice(self._instances))
            elif len(self._instances) < 2:
                self._start()

    async def _finish(self, instance: Instance) -> None:
        """It is asked to end, and may be followed by another that has started already."""
        if self.chance.random() < 0.5:
            self._start()
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                await asyncio.gather(*(lane.finish() for lane in instance.lanes.values()))
        await self.pause()
        if instance in self._instances:
            self._end(instance)
        if not self._instances:
            self._start()

    def _cut(self, instance: Instance) -> None:
        """Its link to the broker breaks, and is there again soon."""
        for queue, channel in list(instance.channels.items()):
            if not channel.is_closed:
                channel.close()
                self.loop.call_later(self.chance.choice((0, 0.5)), self.subscribe, instance, queue)

    def _heal(self) -> None:
        self.trouble = self.database.trouble = 0.0
        self.database.is_down = False
        self.wake_broker()

    # What must hold

    def _is_quiet(self) -> bool:
        unsettled = any(channel.unsettled for one in self._instances for channel in one.channels.values())
        return not (unsettled or any(self.ready.values()) or self.database.tables.outbox)

    def _what_is_left(self) -> str:
        ends = [repr(task) for one in self._instances for task in one.tasks if task.done()]
        waiting = {queue: len(ready) for queue, ready in self.ready.items()}
        unsettled = [len(channel.unsettled) for one in self._instances for channel in one.channels.values()]
        return f"ready {waiting}, unsettled {unsettled}, outbox {len(self.database.tables.outbox)}, ended {ends}"

    def _check(self) -> None:
        tables = self.database.tables
        said = Counter(row.message for row in tables.logs)
        changed = Counter(uid for uid, _ in tables.changes)
        wanted: Counter[int] = Counter()
        for message in (message for messages in self.sent.values() for message in messages):
            body = json.loads(message.body)
            if message.command == "set_user_active":
                wanted[body["uid"]] += 1
            elif body["bot_id"] == UNKNOWN_BOT:
                self.expect(tables.letters.get(message.id) == "not_found", f"{body} is in no dead letter")
                self.expect(not said[body["message"]], f"{body} was refused and took effect")
            else:
                self.expect(said[body["message"]] == 1, f"{body} took effect {said[body['message']]} times")
        self.expect(changed == wanted, f"users were changed {dict(changed)} times, asked {dict(wanted)}")
        for bot in self.sent:
            order = [int(row.message.split(":")[1]) for row in tables.logs if row.message.startswith(f"{bot}:")]
            self.expect(order == sorted(order), f"{bot} out of order: {order}")
        self._check_events()
        self._check_answers()

    def _check_events(self) -> None:
        tables = self.database.tables
        first: dict[str, dict[str, Any]] = {}
        for publication in self.heard:
            if publication.type != "heartbeat":
                event = json.loads(publication.body)
                first.setdefault(event["event_id"], event)
        logs = Counter(
            change["key"]["log_id"]
            for event in first.values()
            if event["type"] == "bot_log.saved"
            for change in event["changes"]
        )
        self.expect(logs == Counter(row.log_id for row in tables.logs), "events of logs and logs differ")
        versions: defaultdict[int, list[int]] = defaultdict(list)
        for event in first.values():
            for change in event["changes"] if event["type"] == "user.password_changed" else ():
                versions[change["key"]["uid"]].append(change["version"])
        wanted: defaultdict[int, list[int]] = defaultdict(list)
        for uid, version in tables.changes:
            wanted[uid].append(version)
        self.expect(versions == wanted, f"events tell of versions {dict(versions)}, made were {dict(wanted)}")
        for kind, last in tables.streams.items():
            numbers = [number for of, number in tables.published if of == kind]
            self.expect(numbers == list(range(1, last + 1)), f"{kind} is numbered {numbers}, the last is {last}")

    def _check_answers(self) -> None:
        sent = {message.id: message for messages in self.sent.values() for message in messages}
        for answer in self.answers:
            reply = json.loads(answer.reply)
            message = sent[answer.correlation_id or ""]
            body = json.loads(message.body)
            good = message.command == "set_user_active" or body["bot_id"] != UNKNOWN_BOT
            self.expect(reply["ok"] == good, f"{body} was answered {reply}")
            if message.command == "set_user_active" and reply.get("data") is not None:
                self.expect(reply["data"]["uid"] == body["uid"], f"{body} was answered {reply}")

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self._violations.append(otherwise)

    def verdict(self) -> str:
        """A digest of everything that happened; raises `Violation` if something happened that must not."""
        if self._violations:
            raise Violation("; ".join(self._violations[:5]))
        tables = self.database.tables
        told = (tables.logs, tables.changes, tables.published, [event.body for event in self.heard], self.answers)
        return hashlib.sha256(repr((self.loop.time(), told)).encode()).hexdigest()


class _Intake:
    """How a lane gives back what it holds, and takes it again."""

    def __init__(self, world: World, instance: Instance) -> None:
        self._world = world
        self._instance = instance

    async def pause(self, queue: str) -> None:
        await self._world.pause()
        self._instance.channels[queue].close()
        self._world.wake_broker()

    async def resume(self, queue: str) -> None:
        await self._world.pause()
        self._world.may_lose_link()
        self._world.subscribe(self._instance, queue)


def simulate(seed: int) -> str:
    """Run the world of a seed; gives a digest of all that happened, or raises `Violation`."""
    world = World(seed)
    state = random.getstate()
    random.seed(seed)
    try:
        with in_place(world.database), patch.object(time, "monotonic", world.loop.time):
            run(world.loop, world.live())
    except StuckError:
        raise Violation("everybody waits for ever") from None
    finally:
        random.setstate(state)
    return world.verdict()
