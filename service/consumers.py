"""Takes commands and lookups from the broker and settles them. The one module that knows FastStream.

A delivery is decoded and joins its lane's buffer. Behind it one task takes what has arrived, up to a batch, has it
committed and acknowledges the batch in one frame. While a batch is being committed the next one collects, so batches
grow with the load and nobody waits when there is none.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol

import structlog
from aiormq.abc import AbstractChannel, DeliveredMessage
from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from faststream.rabbit.subscriber import RabbitSubscriber

from contracts.amqp import BROKEN_LINK, ChannelNotFoundEntity, Link, lost_links_as_errors
from contracts.base import Reply
from contracts.wire import Take
from service import deliveries, tolerant_amqp
from service.config import Settings
from service.errors import is_transient, reason
from service.executor import Executor, Task
from service.observability import BATCH_SECONDS, BATCH_SIZE, LANE_WAITING, OUTAGES
from service.publisher import Addressed, Publisher
from service.received import Received

log = structlog.get_logger()

_TURNS: Final = 3
"""How often the loop goes round until a frame that arrived has become a delivery."""
_WATCH_SECONDS: Final = 1.0
_GONE_SECONDS: Final = 5.0
_LULL_SECONDS: Final = 0.02
"""Without a delivery for that long, a queue counts as empty at the end."""
_LAST_SECONDS: Final = 0.5
"""How long at the end a lane goes on taking what comes."""


class Intake(Protocol):
    """What brings a lane its deliveries, and takes them back when there is no use for them."""

    async def pause(self, queue: str) -> None:
        """Give back to the broker what was delivered and not settled, in order, and take no more."""

    async def resume(self, queue: str) -> None:
        """Have deliveries again; raises one of `BROKEN_LINK` if the broker does not answer."""


class _HeldTooLongError(Exception):
    """An outage has lasted longer than deliveries should be kept from the broker."""


class _Delivery(NamedTuple):
    """A message, decoded, and what it takes to settle it."""

    task: Task
    channel: AbstractChannel
    tag: int
    consumer: str
    """The tag of the subscription that it came by."""


class Lane:
    """A queue of commands and the one task that carries them out in order."""

    def __init__(
        self,
        queue: str,
        executor: Executor,
        publisher: Publisher,
        *,
        batch_size: int,
        prefetch: int,
        intake: Intake,
        committed: Callable[[], None] = lambda: None,
        hold_seconds: float = 60.0,
    ) -> None:
        """``committed`` is called after each commit: there may be events to publish.

        ``prefetch`` is how many commands the broker sends before it waits for an acknowledgement.
        In an outage a batch is held for ``hold_seconds``, and then given back to ``intake`` until it is over.
        """
        self.queue = queue
        self.is_held = False
        """Whether an outage keeps the lane from committing."""
        self._executor = executor
        self._publisher = publisher
        self._batch_size = batch_size
        self._prefetch = prefetch
        self._committed = committed
        self._intake = intake
        self._hold_seconds = hold_seconds
        self._arrived: deque[_Delivery] = deque()
        self._not_empty = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._last: _Delivery | None = None
        """What was carried out last."""
        self._acknowledged: _Delivery | None = None
        """What was acknowledged last, with all before it."""
        self._is_finishing = self._is_finished = False

    def take(self, delivery: DeliveredMessage) -> None:
        """Take a delivery. Nothing is awaited, so deliveries stay in the order they came in."""
        if self._is_finished:
            return
        task = self._executor.read(read_delivery(delivery))
        consumer = delivery.consumer_tag or ""
        self._arrived.append(_Delivery(task, delivery.channel, delivery.delivery_tag or 0, consumer))
        self._idle.clear()
        self._not_empty.set()

    async def run(self) -> None:
        """Carry out what arrives until cancelled."""
        while True:
            await self._not_empty.wait()
            await self._while_more_arrive()
            batch = self._take()
            try:
                if batch:
                    await self._carry_out(batch)
            except _HeldTooLongError:
                await self._sit_out()
            if not self._arrived:
                self._not_empty.clear()
                self._idle.set()
            LANE_WAITING.labels(lane=self.queue).set(len(self._arrived))

    async def finish(self) -> None:
        """Carry out what comes until nothing does, settle it, and take no more; for the end of `run`.

        Each acknowledgement has the broker send more, so they are put off: then it stops by itself, and all that it
        sent is carried out. Whoever subscribes next begins behind that.
        """
        self._is_finishing = True
        try:
            await self._until_nothing_comes()
        except asyncio.CancelledError:
            await self._acknowledge_last()
            raise
        self._is_finished = True
        await self._leave()

    async def _until_nothing_comes(self) -> None:
        until = time.monotonic() + _LAST_SECONDS
        while True:
            await self._idle.wait()
            if not self._idle.is_set():
                continue  # something came before it was this one's turn
            last = self._last
            if self._is_all_there_is or time.monotonic() > until:
                return
            await asyncio.sleep(_LULL_SECONDS)
            if self._last is last and self._idle.is_set():
                return

    @property
    def _is_all_there_is(self) -> bool:
        """Whether the broker sends nothing behind what was carried out, before that is acknowledged."""
        if self._last is None or self._last.channel.is_closed:
            return False
        before = self._acknowledged
        first = before.tag if before is not None and before.channel is self._last.channel else 0
        return self._last.tag - first == self._prefetch

    async def _leave(self) -> None:
        """Acknowledge what was put off, in one go with the end of the subscription.

        A subscription that is cancelled lets the next one begin, so nothing of it may be on its way here. Something
        may be unless the broker is waiting for us; then it goes back to the head as the channel is closed.
        """
        if self._last is not None and self._is_all_there_is:
            with suppress(*BROKEN_LINK), lost_links_as_errors():
                await self._last.channel.basic_cancel(self._last.consumer, nowait=True)
        await self._acknowledge_last()
        # Also where nothing was carried out: to who only stands by, the broker would send what it takes no more.
        await self._intake.pause(self.queue)

    async def _acknowledge_last(self) -> None:
        if self._last is not None and self._last is not self._acknowledged:
            await self._acknowledge([self._last])

    async def _while_more_arrive(self) -> None:
        """Let the reader go on while it has something at hand: the larger a batch, the less a message costs.

        Nothing is waited for; with no more at hand this is over at once.
        """
        arrived = 0
        while arrived < len(self._arrived) < self._batch_size:
            arrived = len(self._arrived)
            for _ in range(_TURNS):
                await asyncio.sleep(0)

    def _take(self) -> list[_Delivery]:
        size = min(len(self._arrived), self._batch_size)
        batch = [self._arrived.popleft() for _ in range(size)]
        # What a broken channel delivered cannot be acknowledged any more; it comes again, in order, on the next one.
        return [delivery for delivery in batch if not delivery.channel.is_closed]

    async def _carry_out(self, batch: list[_Delivery]) -> None:
        started = time.perf_counter()
        replies = await self._until_committed([delivery.task for delivery in batch])
        BATCH_SECONDS.labels(lane=self.queue).observe(time.perf_counter() - started)
        BATCH_SIZE.labels(lane=self.queue).observe(len(batch))
        self._committed()
        await self._publisher.answer(list(_answers(batch, replies)))
        self._last = batch[-1]
        if not self._is_finishing:
            await self._acknowledge(batch)

    async def _acknowledge(self, batch: list[_Delivery]) -> None:
        """Settle a committed batch: everything up to its last delivery, which is all that is open on its channel.

        A lane has a channel of its own and settles in order of delivery, so no other message hides behind that tag.
        """
        last = {delivery.channel: delivery.tag for delivery in batch}
        for channel, tag in last.items():
            if channel.is_closed:
                continue
            try:
                with lost_links_as_errors():
                    await channel.basic_ack(tag, multiple=True, wait=False)
            except BROKEN_LINK:
                log.info("acknowledgement_lost", messages=len(batch))  # redelivered, and found in the inbox
        self._acknowledged = batch[-1]

    async def _until_committed(self, batch: list[Task]) -> list[Reply]:
        """An outage is never the messages' fault: hold them and try again until the database answers."""
        pause = 0.05
        held_since = time.monotonic()
        while True:
            try:
                replies = await self._executor.carry_out(batch)
            except Exception as error:
                if not is_transient(error):
                    raise
                self.is_held = True
                OUTAGES.labels(lane=self.queue).inc()
                log.warning("batch_held", lane=self.queue, size=len(batch), error=reason(error))
                if time.monotonic() - held_since > self._hold_seconds:
                    raise _HeldTooLongError from error
                await asyncio.sleep(random.uniform(pause / 2, pause))
                pause = min(pause * 2, 0.5)
            else:
                self.is_held = False
                return replies

    async def _sit_out(self) -> None:
        """Wait for the end of an outage with nothing in hand, so that the broker does not lose patience with us.

        It takes deliveries back from who keeps them for too long, closing the channel, and counts each time; here
        they are given back once, and taken again when the database stores something.
        """
        log.warning("intake_paused", lane=self.queue, seconds=self._hold_seconds)
        await self._intake.pause(self.queue)
        # What arrived is on its way again; a goodbye need not wait for it.
        self._arrived.clear()
        self._idle.set()
        pause = 0.5
        while True:
            await asyncio.sleep(random.uniform(pause / 2, pause))
            pause = min(pause * 2, 5.0)
            if not await self._executor.can_commit():
                continue
            try:
                await self._intake.resume(self.queue)
            except BROKEN_LINK as error:
                log.warning("intake_not_resumed", lane=self.queue, error=type(error).__name__)
                continue
            self.is_held = False
            log.info("intake_resumed", lane=self.queue)
            return


def _answers(batch: list[_Delivery], replies: list[Reply]) -> Iterator[Addressed]:
    for delivery, reply in zip(batch, replies, strict=True):
        received = delivery.task.received
        if received.answerable is not None:
            body = reply.model_dump_json(exclude_none=True).encode()
            yield Addressed(received.answerable, received.correlation_id, body)


def read_delivery(delivery: DeliveredMessage) -> Received:
    """What a delivery says, with nothing in it that a database or a log could not hold."""
    properties = delivery.header.properties
    return Received(
        command=_text(delivery.routing_key),
        body=delivery.body,
        message_id=_text_or_none(properties.message_id),
        type=_text_or_none(properties.message_type),
        content_type=_text_or_none(properties.content_type),
        content_encoding=_text_or_none(properties.content_encoding),
        reply_to=_text_or_none(properties.reply_to),
        correlation_id=_text_or_none(properties.correlation_id),
        user_id=_text_or_none(properties.user_id),
        app_id=_text_or_none(properties.app_id),
        redelivered=bool(delivery.redelivered),
        headers=_headers(properties.headers),
    )


def _headers(headers: dict[str, Any] | None) -> dict[str, Any]:
    if not headers or (len(headers) == 1 and type(headers.get("schema_version")) is int):
        return headers or {}  # nearly always
    plain: dict[str, Any] = _plain(headers)
    return plain


def _text_or_none(value: Any) -> str | None:
    return _text(value) if value else None


def _text(value: Any) -> str:
    if isinstance(value, str) and value.isascii() and "\x00" not in value:
        return value  # nearly always
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")
    return text.replace("\x00", "\ufffd").encode(errors="replace").decode()


def _plain(value: Any, depth: int = 0) -> Any:
    """A header value as JSON can hold it, cut where it gets deep or long."""
    if depth > 8:  # noqa: PLR2004 - nobody nests headers deeper in earnest
        return "..."
    if isinstance(value, dict):
        return {_text(name)[:255]: _plain(part, depth + 1) for name, part in list(value.items())[:100]}
    if isinstance(value, list):
        return [_plain(part, depth + 1) for part in value[:100]]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if (isinstance(value, float) and value != value) or value in (float("inf"), float("-inf")):  # noqa: PLR0124
        return str(value)
    return value if isinstance(value, int | float | bool | None) else _text(value)[:1_000]


class SubscriptionLostError(Exception):
    """A queue has had no consumer of ours for too long, although the broker answers."""


class Consumers:
    """The service's subscriptions at the broker."""

    def __init__(self, settings: Settings) -> None:
        tolerant_amqp.install()
        deliveries.install()
        self._broker = RabbitBroker(
            settings.rabbitmq_url.get_secret_value(),
            client_properties={"heartbeat": settings.rabbitmq_heartbeat},
            reconnect_interval=0.5,
            timeout=5.0,
            graceful_timeout=settings.shutdown_timeout,
            # The URL holds a password; the document that would show it is not FastStream's here.
            specification_url="amqp://broker",
            apply_types=False,
            logger=None,
        )
        self._subscribers: dict[str, RabbitSubscriber] = {}
        self._paused: set[str] = set()

    def subscribe(self, queue: str, take: Take, *, prefetch: int) -> None:
        """Have ``take`` called with each delivery of a queue that exists, on a channel of its own."""
        subscriber = self._broker.subscriber(
            RabbitQueue(queue, declare=False, durable=True),
            channel=Channel(prefetch_count=prefetch),
            ack_policy=AckPolicy.MANUAL,
        )
        subscriber(_never_called)

        # FastStream would run its whole pipeline per message (middlewares, context, dependency injection). A lane
        # needs none of it: deliveries go straight to it, while FastStream keeps connection, channel and subscription.
        subscriber.consume = deliveries.subscription(take)  # type: ignore[method-assign, assignment]
        self._subscribers[queue] = subscriber

    async def start(self) -> None:
        await self._broker.start()

    async def pause(self, queue: str) -> None:
        """Close the channel of a queue's subscription: the broker puts what it had delivered back to the head."""
        self._paused.add(queue)
        subscribed = self._subscribers[queue]._queue_obj  # noqa: SLF001 - tested in test_consumers
        if subscribed is not None:
            with suppress(*BROKEN_LINK), lost_links_as_errors():
                async with asyncio.timeout(5):
                    await subscribed.channel.close()

    async def resume(self, queue: str) -> None:
        """Open it again, with its subscription; raises one of `BROKEN_LINK` if it stays closed."""
        subscriber = self._subscribers[queue]
        subscribed = subscriber._queue_obj  # noqa: SLF001 - tested in test_outages
        if subscribed is not None:
            try:
                with lost_links_as_errors():
                    async with asyncio.timeout(5):
                        # Not `reopen`: the client library opens channels too once a lost link is back, and on two
                        # channels of one lane the later one would settle what the earlier one delivered.
                        subscribed.channel._close_called = False  # type: ignore[attr-defined]  # noqa: SLF001
                        await subscribed.channel.restore()  # type: ignore[attr-defined]
                if not await _is_subscribed(subscriber):
                    raise ConnectionError("the broker is away")
            except BROKEN_LINK:
                await self.pause(queue)  # or the library opens it when nobody looks
                raise
        self._paused.discard(queue)

    async def stop(self) -> None:
        """Close channels and connection.

        Subscriptions stay until the channels are closed: then the broker puts what was not settled back to the head.
        A subscription that is cancelled before would let the next subscriber overtake that.
        """
        for subscriber in self._subscribers.values():
            subscriber._consumer_tag = None  # noqa: SLF001 - or FastStream cancels; tested in test_consumers
        connection = self._broker._connection  # noqa: SLF001 - tested in test_consumers
        with suppress(*BROKEN_LINK), lost_links_as_errors():
            async with asyncio.timeout(3):
                await self._broker.stop()
        if connection is not None:
            # Until it is told this itself, it takes even the end of the loop for a lost link and connects again.
            with suppress(*BROKEN_LINK), lost_links_as_errors():
                async with asyncio.timeout(2):
                    await connection.close()

    async def watch(self, link: Link) -> None:
        """Raise `SubscriptionLostError` once a subscription is gone for good; waits out outages of the broker.

        The client library tries once to restore a subscription that the broker has cancelled, a channel whose
        restoration failed stays dead on a living connection, and a queue that was deleted may come back without its
        consumer. Only a new start brings those back. ``link`` must not declare anything.
        """
        gone_since: float | None = None
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            missing = [queue for queue in await self.missing() if queue not in self._paused]
            try:
                await self._look(link)
            except ChannelNotFoundEntity as error:
                raise SubscriptionLostError(f"a queue was deleted: {reason(error)}") from error
            except BROKEN_LINK:
                gone_since = None
                continue
            if not missing:
                gone_since = None
                continue
            gone_since = gone_since or time.monotonic()
            if time.monotonic() - gone_since > _GONE_SECONDS:
                raise SubscriptionLostError(f"no consumer of {', '.join(missing)} for {_GONE_SECONDS:g} s")

    async def _look(self, link: Link) -> None:
        """Ask the broker for each queue; raises what it answers."""
        with lost_links_as_errors():
            async with asyncio.timeout(2):
                channel = await link.channel()
                for queue in self._subscribers:
                    await channel.declare_queue(queue, passive=True)

    async def missing(self) -> list[str]:
        """Queues without a living subscription of ours, as the client library sees it."""
        return [name for name, subscriber in self._subscribers.items() if not await _is_subscribed(subscriber)]


async def _is_subscribed(subscriber: RabbitSubscriber) -> bool:
    queue, tag = subscriber._queue_obj, subscriber._consumer_tag  # noqa: SLF001 - tested in test_consumers
    if queue is None or tag is None:
        return False
    try:
        with lost_links_as_errors():
            async with asyncio.timeout(1):
                channel = await queue.channel.get_underlay_channel()
    except BROKEN_LINK:
        return False
    return not channel.is_closed and tag in getattr(channel, "consumers", ())


async def _never_called() -> None:
    """What FastStream asks for before it subscribes."""
