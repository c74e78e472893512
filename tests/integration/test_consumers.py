"""Deliveries reach a lane in order, are settled in one frame, and never block the goodbye."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelPreconditionFailed
from pamqp.common import FieldTable
from pydantic import SecretStr

from contracts.base import Reply
from contracts.topology import COMMANDS
from contracts.topology import Lane as LaneName
from service import topology
from service.config import Settings
from service.consumers import Consumers, Lane, read_delivery
from service.executor import Executor, Task
from service.publisher import Publisher
from service.received import Received
from tests.faults.links import Link

_PREFETCH = 100


class Recorder(Executor):
    """Carries out nothing, and remembers in which batches it was asked to."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    @property
    def bodies(self) -> list[str]:
        return [body for batch in self.batches for body in batch]

    def read(self, received: Received) -> Task:
        return Task(received)

    async def carry_out(self, tasks: Sequence[Task]) -> list[Reply]:
        await self.go_on.wait()
        self.batches.append([task.received.body.decode() for task in tasks])
        return [Reply(ok=True) for _ in tasks]


@pytest.fixture
async def channel(settings: Settings) -> AsyncIterator[AbstractChannel]:
    connection = await aio_pika.connect(settings.rabbitmq_url.get_secret_value())
    channel = await connection.channel()
    await topology.declare(channel)
    yield channel
    await connection.close()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def consumers(settings: Settings) -> Consumers:
    return Consumers(settings)


@pytest.fixture
async def lane(
    settings: Settings, consumers: Consumers, recorder: Recorder, channel: AbstractChannel
) -> AsyncIterator[Lane]:
    lane = Lane(
        LaneName.TRADING.queue, recorder, Publisher(settings), batch_size=10, prefetch=_PREFETCH, intake=consumers
    )
    task = asyncio.create_task(lane.run())
    consumers.subscribe(lane.queue, lane.take, prefetch=_PREFETCH)
    await consumers.start()
    yield lane
    await consumers.stop()
    task.cancel()


async def publish(channel: AbstractChannel, *bodies: str) -> None:
    exchange = await channel.get_exchange(COMMANDS.name, ensure=False)
    for body in bodies:
        await exchange.publish(aio_pika.Message(body.encode()), "record_trade")


@asynccontextmanager
async def another(settings: Settings, lane: Lane) -> AsyncIterator[list[DeliveredMessage]]:
    """The deliveries of another subscriber to the queue of a lane, who waits behind it."""
    taken: list[DeliveredMessage] = []
    consumers = Consumers(settings)
    consumers.subscribe(lane.queue, taken.append, prefetch=1_000)
    await consumers.start()
    yield taken
    await consumers.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def left_in(channel: AbstractChannel, lane: Lane) -> int:
    queue = await channel.declare_queue(lane.queue, passive=True)
    return queue.declaration_result.message_count or 0


class TestLane:
    async def test_takes_what_has_arrived_in_order_up_to_a_batch(
        self, consumers: Consumers, lane: Lane, recorder: Recorder, channel: AbstractChannel
    ) -> None:
        recorder.go_on.clear()
        await publish(channel, *(str(i) for i in range(25)))
        await asyncio.sleep(0.2)

        recorder.go_on.set()
        await until(lambda: len(recorder.bodies) == 25)

        assert recorder.bodies == [str(i) for i in range(25)]
        assert max(map(len, recorder.batches)) == 10

    async def test_acknowledges_what_is_committed_and_nothing_else(
        self, consumers: Consumers, lane: Lane, recorder: Recorder, channel: AbstractChannel
    ) -> None:
        await publish(channel, "a", "b")
        await until(lambda: len(recorder.bodies) == 2)
        await asyncio.sleep(0.1)
        recorder.go_on.clear()
        await publish(channel, "c", "d")
        await asyncio.sleep(0.2)

        await consumers.stop()

        await asyncio.sleep(0.2)
        assert await left_in(channel, lane) == 2

    async def test_drops_what_a_dead_channel_delivered_and_gets_it_again(
        self, consumers: Consumers, lane: Lane, recorder: Recorder, channel: AbstractChannel
    ) -> None:
        recorder.go_on.clear()
        await publish(channel, "first")
        await asyncio.sleep(0.1)
        await publish(channel, "second", "third")
        await asyncio.sleep(0.1)

        [subscriber] = consumers._subscribers.values()
        assert subscriber._queue_obj is not None
        underlay = await subscriber._queue_obj.channel.get_underlay_channel()
        await underlay.basic_ack(999_999)  # the broker closes a channel that acknowledges what was never delivered
        await until(lambda: underlay.is_closed)
        recorder.go_on.set()
        await until(lambda: len(recorder.bodies) >= 4)

        assert recorder.bodies == ["first", "first", "second", "third"]


class TestSubscription:
    async def test_is_missed_when_it_is_gone(
        self, consumers: Consumers, lane: Lane, channel: AbstractChannel
    ) -> None:
        assert await consumers.missing() == []

        queue = await channel.get_queue(lane.queue, ensure=False)
        await queue.delete(if_unused=False, if_empty=False)

        async with asyncio.timeout(5):
            while await consumers.missing() != [lane.queue]:
                await asyncio.sleep(0.05)

    async def test_ends_without_losing_what_was_delivered(
        self, consumers: Consumers, lane: Lane, recorder: Recorder, channel: AbstractChannel
    ) -> None:
        recorder.go_on.clear()
        await publish(channel, *"abc")
        await asyncio.sleep(0.2)

        ending = asyncio.create_task(lane.finish())
        await publish(channel, "d")
        recorder.go_on.set()
        await ending
        await publish(channel, "e")
        await consumers.stop()

        carried_out = recorder.bodies
        assert "".join(carried_out) in ("abc", "abcd")
        assert await left_in(channel, lane) == 5 - len(carried_out)

    async def test_is_not_overtaken_while_it_ends(
        self, lane: Lane, recorder: Recorder, settings: Settings, channel: AbstractChannel
    ) -> None:
        recorder.go_on.clear()
        await publish(channel, "a")
        await asyncio.sleep(0.2)
        async with another(settings, lane) as taken:
            ending = asyncio.create_task(lane.finish())
            await publish(channel, "b")
            await asyncio.sleep(0.5)
            assert taken == []
            recorder.go_on.set()
            await ending
            await publish(channel, "c")

            await until(lambda: len(recorder.bodies) + len(taken) == 3)
            assert recorder.bodies + [delivery.body.decode() for delivery in taken] == ["a", "b", "c"]

    async def test_ends_with_all_that_was_sent_and_leaves_nothing_to_be_sent_again(
        self, lane: Lane, recorder: Recorder, settings: Settings, channel: AbstractChannel
    ) -> None:
        bodies = [str(number) for number in range(2 * _PREFETCH + 20)]
        recorder.go_on.clear()
        await publish(channel, *bodies)
        await asyncio.sleep(0.2)
        async with another(settings, lane) as taken:
            ending = asyncio.create_task(lane.finish())
            await asyncio.sleep(0)
            recorder.go_on.set()
            await ending

            await until(lambda: len(recorder.bodies) + len(taken) == len(bodies))
            assert recorder.bodies == bodies[:_PREFETCH]
            assert [delivery.body.decode() for delivery in taken] == bodies[_PREFETCH:]
            assert not any(delivery.redelivered for delivery in taken)

    async def test_that_stood_by_gets_nothing_once_it_has_ended(
        self, lane: Lane, settings: Settings, channel: AbstractChannel
    ) -> None:
        stands_by = Consumers(settings)
        waiting = Lane(
            lane.queue, Recorder(), Publisher(settings), batch_size=10, prefetch=_PREFETCH, intake=stands_by
        )
        stands_by.subscribe(lane.queue, waiting.take, prefetch=_PREFETCH)
        await stands_by.start()
        await waiting.finish()
        await lane.finish()
        async with another(settings, lane) as taken:
            await publish(channel, "a")

            await until(lambda: bool(taken))
            assert not taken[0].redelivered
        await stands_by.stop()

    async def test_ends_without_a_word_to_the_broker_about_what_is_acknowledged(
        self, lane: Lane, consumers: Consumers, recorder: Recorder, channel: AbstractChannel
    ) -> None:
        await publish(channel, "a")
        await until(lambda: bool(recorder.bodies))
        await asyncio.sleep(0.1)
        [subscriber] = consumers._subscribers.values()
        assert subscriber._queue_obj is not None
        underlay = await subscriber._queue_obj.channel.get_underlay_channel()

        await lane.finish()

        with suppress(Exception):
            await underlay.closing
        error = None if underlay.closing.cancelled() else underlay.closing.exception()
        assert not isinstance(error, ChannelPreconditionFailed)

    async def test_ends_although_more_comes_all_the_time(
        self, lane: Lane, recorder: Recorder, channel: AbstractChannel
    ) -> None:
        async def go_on() -> None:
            while True:
                await publish(channel, "more")
                await asyncio.sleep(0.015)

        publishing = asyncio.create_task(go_on())
        await until(lambda: bool(recorder.bodies))
        async with asyncio.timeout(4):
            await lane.finish()
        carried_out = len(recorder.bodies)

        await asyncio.sleep(0.2)
        publishing.cancel()
        assert len(recorder.bodies) == carried_out


class TestDelivery:
    async def test_is_read_whatever_its_properties_hold(
        self, lane: Lane, settings: Settings, channel: AbstractChannel
    ) -> None:
        taken: list[DeliveredMessage] = []
        other = Consumers(settings)
        await channel.declare_queue("odd", durable=True)
        other.subscribe("odd", taken.append, prefetch=10)
        await other.start()
        deep: FieldTable = {}
        for _ in range(30):
            deep = {"deeper": deep}
        message = aio_pika.Message(b"{}", message_id="a\x00b", headers={"n\x00": "v\x00", "deep": deep, "f": 1.5})
        await channel.default_exchange.publish(message, "odd")
        await until(lambda: len(taken) == 1)

        received = read_delivery(taken[0])

        await other.stop()
        assert received.message_id == "a\ufffdb"
        assert received.headers["n\ufffd"] == "v\ufffd"
        assert received.headers["f"] == 1.5

    @pytest.mark.parametrize("size", [0, 1, 131_072, 1_000_000])
    async def test_is_whole_however_its_frames_arrive(
        self, consumers: Consumers, lane: Lane, recorder: Recorder, channel: AbstractChannel, size: int
    ) -> None:
        await publish(channel, "first", "x" * size, "last")
        await until(lambda: len(recorder.bodies) == 3)

        assert recorder.bodies == ["first", "x" * size, "last"]

    async def test_to_others_in_the_process_goes_the_way_of_the_library(
        self, lane: Lane, channel: AbstractChannel, settings: Settings
    ) -> None:
        async with await aio_pika.connect(settings.rabbitmq_url.get_secret_value()) as connection:
            own = await connection.channel()
            queue = await own.declare_queue("own", durable=True)
            await own.default_exchange.publish(aio_pika.Message(b"hello"), "own")
            async with queue.iterator(timeout=5) as messages:
                async for message in messages:
                    assert message.body == b"hello"
                    await message.ack()
                    break


async def test_nothing_connects_again_after_the_end_even_if_the_goodbye_takes_too_long(
    settings: Settings, channel: AbstractChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    others = asyncio.all_tasks()
    async with Link(settings.rabbitmq_url.get_secret_value()) as wire:
        consumers = Consumers(settings.model_copy(update={"rabbitmq_url": SecretStr(wire.url)}))
        consumers.subscribe(LaneName.TRADING.queue, lambda _: None, prefetch=1)
        await consumers.start()
        wire.hears_requests = False
        await wire.cut()
        await asyncio.sleep(1)  # it is connecting again, and nobody answers
        monkeypatch.setattr(consumers._broker, "stop", hang)
        await consumers.stop()
        # As asyncio.run does at its end, which waits for all of them, for ever if need be.
        left = asyncio.all_tasks() - others
        for task in left:
            task.cancel()
        _, running = await asyncio.wait(left, timeout=2) if left else (None, None)
        assert not running
