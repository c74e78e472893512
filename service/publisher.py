"""Publishes events and answers, on a connection of its own: a broker that blocks publishers must not block acks."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

import structlog
from aio_pika import DeliveryMode

from contracts.amqp import BROKEN_LINK, WireLink
from contracts.frames import Message, properties, table
from contracts.topology import EVENTS
from contracts.wire import Wire
from service.config import Settings

log = structlog.get_logger()

_ANSWER_SECONDS: Final = 15.0
_MUTE_SECONDS: Final = 5.0
_EVENT_HEADERS: Final = table({"schema_version": 1})


@dataclass(frozen=True, slots=True)
class Publication:
    """An event or a heartbeat ready to go out."""

    event_id: UUID
    type: str
    occurred_at: datetime
    body: bytes
    exchange: str = EVENTS.name


class Addressed(NamedTuple):
    """An answer and who is to have it."""

    queue: str
    correlation_id: str | None
    reply: bytes


class InFlight(NamedTuple):
    """Events on their way to the broker."""

    wire: Wire
    confirmed: asyncio.Future[None]


class Publisher:
    """Two links: one confirms events, on the other go answers, whose loss the asker notices by its timeout."""

    def __init__(self, settings: Settings) -> None:
        url = settings.rabbitmq_url.get_secret_value()
        self._timeout = settings.publish_timeout
        self._mute_until = 0.0
        self._events = WireLink(url, name="persistence-events", heartbeat=settings.rabbitmq_heartbeat)
        self._replies = WireLink(
            url, name="persistence-replies", heartbeat=settings.rabbitmq_heartbeat, confirms=False, timeout=2
        )

    async def open(self) -> None:
        """Connect; raises one of `BROKEN_LINK` if the broker cannot be reached."""
        await self._events.channel()
        await self._replies.channel()

    async def close(self) -> None:
        await self._events.close()
        await self._replies.close()

    async def send_events(self, events: Sequence[Publication], *, after: InFlight | None = None) -> InFlight:
        """Send events in order, behind those sent ``after`` which they come, if these are not confirmed yet.

        Raises one of `BROKEN_LINK` if the broker cannot be reached, or if the link has been lost since: then those
        before are to be sent again first.
        """
        async with asyncio.timeout(self._timeout):
            wire = await self._events.channel()
        if after is not None and after.wire is not wire:
            raise ConnectionError("the link to the broker was lost with events under way")
        return InFlight(wire, wire.send([_event_message(event) for event in events]))

    async def confirmed(self, sent: InFlight) -> None:
        """Return when the broker has all of them for good; raises one of `BROKEN_LINK` if it does not say so."""
        try:
            async with asyncio.timeout(self._timeout):
                await sent.confirmed
        except BaseException:
            # Whether the rest got through is unknown: begin again on a fresh link, so that order holds.
            await self._events.close()
            raise

    async def answer(self, answers: Sequence[Addressed]) -> None:
        """Send answers, and never fail: who asked and is gone has no use for them."""
        if time.monotonic() < self._mute_until:
            return
        try:
            # As long as askers wait: a burst of answers takes its time on a busy machine.
            async with asyncio.timeout(_ANSWER_SECONDS):
                wire = await self._replies.channel()
                for answer in answers:
                    await wire.room()
                    _send(wire, answer)
        except BROKEN_LINK as error:
            if isinstance(error, TimeoutError):
                # A broker that takes nothing must not hold up a lane once for each of its batches.
                self._mute_until = time.monotonic() + _MUTE_SECONDS
            log.warning("answers_not_sent", answers=len(answers), error=type(error).__name__)


def _event_message(event: Publication) -> Message:
    head = properties(
        content_type="application/json",
        headers=_EVENT_HEADERS,
        delivery_mode=DeliveryMode.PERSISTENT,
        message_id=str(event.event_id),
        timestamp=int(event.occurred_at.timestamp()),
        message_type=event.type,
        app_id="persistence",
    )
    # An event nobody subscribed to is nobody's loss: it is not mandatory.
    return Message(event.exchange, event.type, head, event.body)


def _send(wire: Wire, answer: Addressed) -> None:
    try:
        head = properties(content_type="application/json", correlation_id=answer.correlation_id)
        wire.publish(Message("", answer.queue, head, answer.reply))
    except ValueError as error:
        log.warning("answer_not_addressed", reason=str(error))
