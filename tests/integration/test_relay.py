"""What is in the outbox is published: in order, at least once, by one instance at a time."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractQueue
from sqlalchemy import func, select

from contracts import SymbolUpdates, UpdateSymbol
from contracts.amqp import Link
from contracts.topology import EVENTS
from service import topology
from service.config import Settings
from service.database import SessionMaker
from service.executor import Executor
from service.models import OutboxEvent
from service.publisher import Publisher
from service.relay import Relay
from tests.builders import Desk, Direct, a_desk, received


@pytest.fixture
async def publisher(settings: Settings) -> AsyncIterator[Publisher]:
    link = Link(settings.rabbitmq_url.get_secret_value(), name="test", setup=topology.declare)
    await link.channel()
    await link.close()
    publisher = Publisher(settings)
    yield publisher
    await publisher.close()


@pytest.fixture
async def subscriber(settings: Settings, publisher: Publisher) -> AsyncIterator[AbstractQueue]:
    """A queue that gets every event."""
    connection = await aio_pika.connect(settings.rabbitmq_url.get_secret_value())
    channel = await connection.channel()
    queue = await channel.declare_queue("test.events", durable=True)
    await queue.bind(EVENTS.name, "#")
    yield queue
    await connection.close()


@pytest.fixture
def relay(sessions: SessionMaker, publisher: Publisher, settings: Settings) -> Relay:
    return Relay(sessions, publisher, settings)


@pytest.fixture
async def desk(sessions: SessionMaker) -> Desk:
    return await a_desk(Direct(Executor(sessions)))


async def received_by(queue: AbstractQueue, number: int) -> list[dict[str, Any]]:
    events = []
    for _ in range(number):
        message = await queue.get(timeout=5, fail=False)
        while message is None:
            await asyncio.sleep(0.01)
            message = await queue.get(timeout=5, fail=False)
        assert message.routing_key == message.type
        await message.ack()
        events.append({**json.loads(message.body), "message_id": message.message_id})
    assert await queue.get(fail=False) is None
    return events


async def waiting(sessions: SessionMaker) -> int:
    async with sessions() as session:
        return await session.scalar(select(func.count()).select_from(OutboxEvent)) or 0


class TestRelay:
    async def test_publishes_each_event_in_order_and_empties_the_outbox(
        self, relay: Relay, desk: Desk, sessions: SessionMaker, subscriber: AbstractQueue
    ) -> None:
        executor = Executor(sessions)
        for decimals in (1, 2, 3):
            await executor.execute(
                [received(UpdateSymbol(symbol_id=desk.symbol.symbol_id, updates=SymbolUpdates(decimals=decimals)))]
            )

        assert await relay.publish_once() == 9

        events = await received_by(subscriber, 9)
        updates = [event for event in events if event["type"] == "symbol.updated"]
        assert [event["changes"][0]["version"] for event in updates] == [2, 3, 4]
        assert [event["sequence"] for event in updates] == [1, 2, 3]
        assert [event["event_id"] for event in events] == [event["message_id"] for event in events]
        assert await waiting(sessions) == 0

    async def test_reads_no_more_at_once_than_fits_into_memory(
        self, relay: Relay, sessions: SessionMaker, subscriber: AbstractQueue
    ) -> None:
        large = f'[{{"key":{{}},"before":null,"after":"{"x" * 3_000_000}"}}]'
        async with sessions.begin() as session:
            session.add_all(
                OutboxEvent(type="symbol.updated", causation_ids=[], changes=large, stale_keys=[]) for _ in range(3)
            )

        assert await relay.publish_once() == 2
        assert await relay.publish_once() == 1

        assert [event["sequence"] for event in await received_by(subscriber, 3)] == [1, 2, 3]

    async def test_goes_on_counting_after_a_restart(
        self, relay: Relay, desk: Desk, sessions: SessionMaker, subscriber: AbstractQueue, settings: Settings
    ) -> None:
        executor = Executor(sessions)
        await executor.execute([received(desk.trade())])
        await relay.publish_once()
        await relay.release()
        publisher = Publisher(settings)
        await executor.execute([received(desk.trade())])

        await Relay(sessions, publisher, settings).publish_once()

        await publisher.close()
        trades = [e["sequence"] for e in await received_by(subscriber, 8) if e["type"] == "trade.recorded"]
        assert trades == [1, 2]

    async def test_publishes_the_same_again_if_it_dies_before_the_delete(
        self, relay: Relay, desk: Desk, sessions: SessionMaker, subscriber: AbstractQueue, publisher: Publisher
    ) -> None:
        confirmed = publisher.publish_events

        async def dies_after_the_confirms(events: Any) -> None:
            await confirmed(events)
            raise RuntimeError("killed")

        publisher.publish_events = dies_after_the_confirms  # type: ignore[method-assign]
        with pytest.raises(RuntimeError):
            await relay.publish_once()
        publisher.publish_events = confirmed  # type: ignore[method-assign]
        await relay.publish_once()

        events = await received_by(subscriber, 12)
        assert events[:6] == events[6:]

    async def test_leaves_the_outbox_to_who_has_the_lease(
        self, relay: Relay, desk: Desk, sessions: SessionMaker, settings: Settings, publisher: Publisher
    ) -> None:
        other = Relay(sessions, publisher, settings)
        assert await relay.publish_once() == 6
        await Executor(sessions).execute([received(desk.trade())])

        assert await other.publish_once() == 0
        assert await waiting(sessions) == 1

        await relay.release()
        assert await other.publish_once() == 1

    async def test_takes_over_when_the_lease_has_run_out(
        self, relay: Relay, desk: Desk, sessions: SessionMaker, settings: Settings, publisher: Publisher
    ) -> None:
        await relay.publish_once()
        await Executor(sessions).execute([received(desk.trade())])
        other = Relay(sessions, publisher, settings)

        await asyncio.sleep(settings.relay_lease + 0.1)

        assert await other.publish_once() == 1
        assert await relay.publish_once() == 0

    async def test_is_woken_by_a_commit_long_before_its_poll(
        self, desk: Desk, sessions: SessionMaker, settings: Settings, publisher: Publisher, subscriber: AbstractQueue
    ) -> None:
        relay = Relay(sessions, publisher, settings.model_copy(update={"relay_poll_interval": 60.0}))
        running = asyncio.create_task(relay.run())
        await received_by(subscriber, 6)
        await Executor(sessions).execute([received(desk.trade())])

        relay.wake()

        async with asyncio.timeout(5):
            [event] = await received_by(subscriber, 1)
        assert event["type"] == "trade.recorded"
        running.cancel()
