"""What is in the outbox is published: in order, at least once, by one instance at a time."""

import asyncio
import json
import time
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from pydantic import SecretStr
from sqlalchemy import func, select, text

from contracts import RemoveExchangeFromBot, SaveBotLog, SymbolUpdates, UpdateSymbol
from contracts.base import Command
from contracts.heartbeat import HEARTBEAT_SECONDS, Heartbeat
from contracts.topology import HEARTBEATS
from service.config import Settings
from service.database import SessionMaker, build_session_maker
from service.engine import build_engine
from service.executor import Executor
from service.models import OutboxEvent, PublishedEvent
from service.publisher import InFlight, Publisher
from service.relay import Relay
from tests.builders import Desk, received
from tests.fresh import a_plain_login, execute

_REFUSED_ONCE = """
CREATE SEQUENCE tries;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('tries') = 1 THEN RAISE EXCEPTION 'try again' USING ERRCODE = 'serialization_failure'; END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON event_streams FOR EACH STATEMENT EXECUTE FUNCTION refuse();
"""


@pytest.fixture
async def listener(subscriber: AbstractQueue) -> AbstractQueue:
    """The same queue, which gets the heartbeats as well."""
    await subscriber.bind(HEARTBEATS.name)
    return subscriber


@pytest.fixture
def relay(sessions: SessionMaker, publisher: Publisher, settings: Settings) -> Relay:
    return Relay(sessions, publisher, settings)


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


def _keys(event: dict[str, Any]) -> list[str]:
    return [",".join(map(str, change["key"].values())) for change in event["changes"]]


def _versions(event: dict[str, Any]) -> list[int]:
    return [-change["version"] if change["after"] is None else change["version"] for change in event["changes"]]


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

    async def test_keeps_what_each_event_was_about(
        self, relay: Relay, desk: Desk, sessions: SessionMaker, subscriber: AbstractQueue
    ) -> None:
        many: list[Command[Any]] = [desk.trade() for _ in range(3)]
        many += [SaveBotLog(bot_id=desk.bot.bot_id, message="x") for _ in range(2)]
        link = RemoveExchangeFromBot(bot_id=desk.bot.bot_id, ex_id=desk.account.ex_id)
        await Executor(sessions).execute([received(command, reply_to=None) for command in [*many, link]])

        published = await relay.publish_once()

        said = [
            (e["event_id"], e["type"], e["sequence"], e["transaction"], _keys(e), _versions(e))
            for e in await received_by(subscriber, published)
        ]
        async with sessions() as session:
            kept = list(await session.scalars(select(PublishedEvent).order_by(PublishedEvent.id)))
        assert said == [
            (str(e.event_id), e.type, e.sequence, str(e.transaction_id), e.keys, e.versions) for e in kept
        ]
        assert max(len(e.keys) for e in kept) == 3
        assert kept[-1].versions == [-2]

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
        confirmed = publisher.confirmed

        async def dies_after_the_confirms(sent: InFlight) -> None:
            await confirmed(sent)
            raise RuntimeError("killed")

        publisher.confirmed = dies_after_the_confirms  # type: ignore[method-assign]
        with pytest.raises(RuntimeError):
            await relay.publish_once()
        publisher.confirmed = confirmed  # type: ignore[method-assign]
        await relay.publish_once()

        events = await received_by(subscriber, 12)
        assert events[:6] == events[6:]

    async def test_does_not_publish_again_what_could_not_be_deleted_at_once(
        self, relay: Relay, desk: Desk, sessions: SessionMaker, subscriber: AbstractQueue, database_url: str
    ) -> None:
        await execute(database_url, _REFUSED_ONCE)

        assert await relay.publish_once() == 6

        await received_by(subscriber, 6)
        assert await waiting(sessions) == 0

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

    async def test_begins_again_if_another_one_led_while_it_waited_for_confirms(
        self, relay: Relay, desk: Desk, sessions: SessionMaker, publisher: Publisher, subscriber: AbstractQueue
    ) -> None:
        """Nobody deletes what was sent under the old term, so newer events must not go before it comes again."""
        confirmed = publisher.confirmed
        publisher.confirmed = _never  # type: ignore[method-assign]
        assert await relay._send_oldest() == 6
        async with sessions.begin() as session:
            await session.execute(
                text("UPDATE leases SET term = term + 1, holder = gen_random_uuid(), expires_at = now()")
            )
        publisher.confirmed = confirmed  # type: ignore[method-assign]
        relay._renew_at = 0.0
        await Executor(sessions).execute([received(desk.trade())])

        assert await relay.publish_once() == 7

        events = await received_by(subscriber, 13)
        assert events[:6] == events[6:12]
        assert events[12]["type"] == "trade.recorded"

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


async def _never(sent: InFlight) -> None:
    """A broker that has fallen silent."""
    await asyncio.Event().wait()


class TestHeartbeat:
    """What a subscriber may take for certain when it hears one."""

    async def test_follows_everything_that_was_committed_before_its_moment(
        self, relay: Relay, desk: Desk, sessions: SessionMaker, listener: AbstractQueue
    ) -> None:
        before = await database_clock(sessions)
        await Executor(sessions).execute([received(desk.trade())])

        await relay.publish_once()

        *events, beat = await drained(listener)
        assert [message.type for message in events][-1] == "trade.recorded"
        told = Heartbeat.model_validate_json(beat.body)
        assert before < told.as_of < await database_clock(sessions)
        assert told.sequences == {kind: numbers[-1] for kind, numbers in numbers_of(events).items()}
        assert await relay.publish_once() == 0
        assert await drained(listener) == []

    async def test_comes_once_a_second_while_nothing_happens(
        self, relay: Relay, listener: AbstractQueue, sessions: SessionMaker
    ) -> None:
        running = asyncio.create_task(relay.run())
        await asyncio.sleep(2.5 * HEARTBEAT_SECONDS)
        running.cancel()

        beats = [Heartbeat.model_validate_json(message.body) for message in await drained(listener)]
        assert 2 <= len(beats) <= 4
        apart = [(after.as_of - before.as_of).total_seconds() for before, after in pairwise(beats)]
        assert all(HEARTBEAT_SECONDS <= seconds < 2 * HEARTBEAT_SECONDS for seconds in apart)
        assert {beat.timeline for beat in beats} == {beats[0].timeline}
        assert await waiting(sessions) == 0

    async def test_of_a_backlog_waits_for_its_moment_and_claims_no_later_one(
        self, desk: Desk, sessions: SessionMaker, settings: Settings, publisher: Publisher, listener: AbstractQueue
    ) -> None:
        """More comes in all the time, and the outbox is never empty."""
        relay = Relay(sessions, publisher, settings.model_copy(update={"relay_batch": 4}))
        executor = Executor(sessions)
        await relay.publish_once()
        marked = await database_clock(sessions)
        for _ in range(4):
            for _ in range(4):
                await executor.execute([received(desk.trade())])
            await relay.publish_once()

        messages = await drained(listener)
        # Six events were there at first, so the beat came with the second batch of four: neither before nor never.
        at = [message.type for message in messages].index("heartbeat")
        assert at == 8
        assert Heartbeat.model_validate_json(messages[at].body).as_of < marked
        assert await waiting(sessions) > 0

    async def test_of_a_relay_that_was_overtaken_is_not_sent(
        self, relay: Relay, sessions: SessionMaker, settings: Settings, publisher: Publisher, listener: AbstractQueue
    ) -> None:
        await relay.publish_once()
        await asyncio.sleep(settings.relay_lease + 0.1)
        other = Relay(sessions, publisher, settings)
        await other.publish_once()
        first, second = await drained(listener)
        assert Heartbeat.model_validate_json(first.body).term < Heartbeat.model_validate_json(second.body).term
        relay._renew_at = time.monotonic() + 60  # it does not know yet

        await relay.publish_once()

        assert await drained(listener) == []

    async def test_is_readable_for_a_login_without_rights_of_its_own(
        self, database_url: str, publisher: Publisher, listener: AbstractQueue, settings: Settings
    ) -> None:
        """The timeline comes from functions that not every role may be allowed to call."""
        async with a_plain_login(database_url) as url:
            engine = build_engine(settings.model_copy(update={"database_url": SecretStr(url)}))
            await Relay(build_session_maker(engine), publisher, settings).publish_once()
            await engine.dispose()

        [beat] = await drained(listener)
        assert len(Heartbeat.model_validate_json(beat.body).timeline.split(".")) == 3


async def database_clock(sessions: SessionMaker) -> datetime:
    async with sessions() as session:
        now: datetime = await session.scalar(text("SELECT clock_timestamp()"))
        return now


async def drained(queue: AbstractQueue) -> list[AbstractIncomingMessage]:
    """Everything that is in the queue."""
    messages = []
    while (message := await queue.get(fail=False)) is not None:
        await message.ack()
        messages.append(message)
    return messages


def numbers_of(events: list[AbstractIncomingMessage]) -> dict[str, list[int]]:
    """The sequence numbers of each type, in order."""
    numbers: dict[str, list[int]] = {}
    for event in events:
        numbers.setdefault(event.type or "", []).append(json.loads(event.body)["sequence"])
    return numbers
