"""Publishes events and answers, on a connection of its own: a broker that blocks publishers must not block acks."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import structlog
from aio_pika import DeliveryMode, Message

from contracts.amqp import BROKEN_LINK, Link, lost_links_as_errors
from contracts.base import Reply
from contracts.topology import EVENTS, HEARTBEATS
from service.config import Settings

log = structlog.get_logger()

_ANSWER_SECONDS: Final = 15.0
_MUTE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Publication:
    """An event or a heartbeat ready to go out."""

    event_id: UUID
    type: str
    occurred_at: datetime
    body: bytes
    exchange: str = EVENTS.name


class Publisher:
    """Two channels: one confirms events, the other sends answers, whose loss the asker notices by its timeout."""

    def __init__(self, settings: Settings) -> None:
        url = settings.rabbitmq_url.get_secret_value()
        self._timeout = settings.publish_timeout
        self._mute_until = 0.0
        self._events = Link(url, name="persistence-events", heartbeat=settings.rabbitmq_heartbeat)
        self._replies = Link(
            url, name="persistence-replies", heartbeat=settings.rabbitmq_heartbeat, confirms=False, timeout=2
        )

    async def open(self) -> None:
        """Connect; raises one of `BROKEN_LINK` if the broker cannot be reached."""
        await self._events.channel()
        await self._replies.channel()

    async def close(self) -> None:
        await self._events.close()
        await self._replies.close()

    async def publish_events(self, events: Sequence[Publication]) -> None:
        """Publish in order and return when all are confirmed; raises one of `BROKEN_LINK` if any is not."""
        try:
            async with asyncio.timeout(self._timeout):
                channel = await self._events.channel()
                exchanges = {
                    name: await channel.get_exchange(name, ensure=False) for name in (EVENTS.name, HEARTBEATS.name)
                }
                with lost_links_as_errors():
                    # Frames leave in the order the tasks are made; only the confirms overlap.
                    await asyncio.gather(
                        *(
                            # An event nobody subscribed to is nobody's loss.
                            exchanges[event.exchange].publish(_event_message(event), event.type, mandatory=False)
                            for event in events
                        )
                    )
        except BaseException:
            # Whether the rest got through is unknown: begin again on a fresh link, so that order holds.
            await self._events.close()
            raise

    async def answer(self, queue: str, correlation_id: str | None, reply: Reply | bytes) -> None:
        """Send an answer, and never fail: who asked and is gone has no use for it."""
        body = reply if isinstance(reply, bytes) else reply.model_dump_json(exclude_none=True).encode()
        message = Message(body, content_type="application/json", correlation_id=correlation_id)
        if time.monotonic() < self._mute_until:
            return
        try:
            # As long as askers wait: a burst of answers takes its time on a busy machine.
            async with asyncio.timeout(_ANSWER_SECONDS):
                channel = await self._replies.channel()
                with lost_links_as_errors():
                    await channel.default_exchange.publish(message, queue, mandatory=False)
        except BROKEN_LINK as error:
            if isinstance(error, TimeoutError):
                # A broker that takes nothing must not hold up the lane once for each answer of a batch.
                self._mute_until = time.monotonic() + _MUTE_SECONDS
            log.warning("answer_not_sent", error=type(error).__name__)


def _event_message(event: Publication) -> Message:
    return Message(
        event.body,
        content_type="application/json",
        delivery_mode=DeliveryMode.PERSISTENT,
        message_id=str(event.event_id),
        type=event.type,
        timestamp=event.occurred_at,
        app_id="persistence",
        headers={"schema_version": 1},
    )
