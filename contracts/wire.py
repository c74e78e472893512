"""Channels that take and publish many messages with little work for each (extra ``client``).

aio-pika makes two tasks and a message object for each delivery, and a task, a lock and a future for each publish.
Here a delivery goes straight from the connection's reader to the function that takes it, and all that is to be
published at a moment leaves in one write, with confirms counted by their numbers. Connections, heartbeats and the
opening and closing of channels stay aiormq's own. The one module that reaches into its channels; tested in
tests/integration/test_wire.py.
"""

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final, Self

from aiormq import Channel, spec
from aiormq.abc import AbstractConnection, ChannelFrame, DeliveredMessage
from aiormq.exceptions import AMQPError, ChannelInvalidStateError, DeliveryError, InvalidFrameError, PublishError
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from contracts.frames import Message, publish

Take = Callable[[DeliveredMessage], None]
"""Takes a delivery, and awaits nothing: so deliveries stay in the order of their queue."""

_ROOM: Final = 1024 * 1024
"""Bytes that may wait to be written before `Wire.room` makes callers wait."""


class _Frames(asyncio.Queue[tuple[int, Any]]):
    """Frames on their way from the connection's reader to a channel's, but for those the channel takes at once."""

    def __init__(self, take: Callable[[Any], bool], maxsize: int) -> None:
        super().__init__(maxsize)
        self._take = take

    async def put(self, item: tuple[int, Any]) -> None:
        if not self._take(item[1]):
            await super().put(item)


class DirectChannel(Channel):
    """A channel whose deliveries go straight to who takes them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.frames = _Frames(self._take_frame, self.frames.maxsize)
        # A method whose content is on its way, what of it has come, and how many bytes are missing.
        self._begun: spec.Basic.Deliver | spec.Basic.Return | None = None
        self._header: ContentHeader | None = None
        self._parts: list[bytes] = []
        self._missing = 0
        self._complete: Take = _nobody

    @abstractmethod
    def _taker(self, consumer_tag: str) -> Take | None:
        """Who takes the deliveries of a subscription; None for those that are left to aiormq."""

    def _take_frame(self, frame: Any) -> bool:
        if self._begun is not None:
            self._take_content(frame)
            return True
        if type(frame) is spec.Basic.Deliver and (take := self._taker(frame.consumer_tag or "")) is not None:
            self._begun, self._complete = frame, take
            return True
        return False

    def _take_content(self, frame: Any) -> None:
        if self._header is None:
            if not isinstance(frame, ContentHeader):
                raise InvalidFrameError(frame)
            self._header = frame
            self._missing = frame.body_size or 0
        else:
            if not isinstance(frame, ContentBody):
                raise InvalidFrameError(frame)
            self._parts.append(frame.value)
            self._missing -= len(frame.value)
        if self._missing <= 0:
            assert self._begun is not None  # noqa: S101 - content follows a method
            body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            message = DeliveredMessage(delivery=self._begun, header=self._header, body=body, channel=self)
            self._begun = self._header = None
            self._parts = []
            self._complete(message)


@dataclass
class _Batch:
    """Messages whose confirms somebody waits for together."""

    confirmed: asyncio.Future[None]
    left: int


class Wire(DirectChannel):
    """A channel to publish on, and to have answers on."""

    def __init__(self, connection: AbstractConnection, number: int, *, confirms: bool = True) -> None:
        """Without ``confirms`` the broker says of nothing that it has it, and `publish` is all there is."""
        super().__init__(connection, number, publisher_confirms=confirms)
        self._frame_max = connection.connection_tune.frame_max or 0
        self._takes: dict[str, Take] = {}
        self._on_return: Take = _nobody
        self._unwritten: list[bytes] = []
        self._unwritten_bytes = 0
        self._is_writing = False
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._unconfirmed: dict[int, tuple[_Batch, str]] = {}
        self.heard_at = self.loop.time()
        """When, by the loop's clock, the broker last confirmed or delivered something."""
        self.closing.add_done_callback(self._on_closed)

    @classmethod
    async def open_on(cls, connection: AbstractConnection, *, confirms: bool = True) -> Self:
        """A new channel of a connection; raises what broken links raise."""
        number = max(connection.channels, default=0) + 1
        wire = cls(connection, number, confirms=confirms)
        connection.channels[number] = wire
        await wire.open()
        return wire

    async def subscribe(self, queue: str, take: Take, *, on_return: Take) -> None:
        """Have ``take`` called with what comes, not to be acknowledged, and ``on_return`` with what no queue wanted.

        Of messages published with a confirm, the one who waits for it is told instead.
        """
        tag = f"wire-{self.number}"
        self._takes[tag] = take
        self._on_return = on_return
        await self.basic_consume(queue, _no_callback, no_ack=True, consumer_tag=tag)

    async def room(self) -> None:
        """Return when little waits to be written; raises ChannelInvalidStateError if the channel is closed."""
        while self._unwritten_bytes > _ROOM:
            self._has_room.clear()
            await self._has_room.wait()
        self._check()

    @property
    def has_room(self) -> bool:
        """Whether something may be published at once."""
        return not self.is_closed and self._unwritten_bytes <= _ROOM

    def publish(self, message: Message) -> None:
        """Have a message sent. Whether the broker has it nobody asks."""
        self._check()
        self._append(message)

    async def publish_confirmed(self, messages: Sequence[Message]) -> None:
        """Send messages, in order, and return when the broker has all of them for good.

        Raises DeliveryError if it refuses one, PublishError if no queue wants one that is ``mandatory``, and one of
        `BROKEN_LINK` if the link breaks: then nobody knows.
        """
        await self.send(messages)

    def send(self, messages: Sequence[Message]) -> asyncio.Future[None]:
        """Send messages behind all that were sent before; gives what `publish_confirmed` waits for."""
        self._check()
        if not self.publisher_confirms:
            raise ValueError("this channel was opened without confirms")
        batch = _Batch(self.loop.create_future(), len(messages))
        batch.confirmed.add_done_callback(_seen)
        for message in messages:
            self._append(message)
            self._unconfirmed[self.delivery_tag] = batch, message.message_id
        if not messages:
            batch.confirmed.set_result(None)
        return batch.confirmed

    def _check(self) -> None:
        if self.is_closed:
            raise ChannelInvalidStateError(f"channel {self.number} is closed")

    def _append(self, message: Message) -> None:
        parts = publish(self.number, message, frame_max=self._frame_max)
        self._unwritten += parts
        self._unwritten_bytes += len(message.body) + len(message.properties)
        self.delivery_tag += 1
        if not self._is_writing:
            self._is_writing = True
            self.create_task(self._write())

    async def _write(self) -> None:
        """Write all there is until nothing is left, each time when the socket has taken what was written before."""
        try:
            while self._unwritten:
                written = self.create_future()
                payload = b"".join(self._unwritten)
                self._unwritten.clear()
                self._unwritten_bytes = 0
                self._has_room.set()
                await self.write_queue.put(ChannelFrame(payload, should_close=False, drain_future=written))
                await written
        finally:
            self._is_writing = False

    def _taker(self, consumer_tag: str) -> Take | None:
        self.heard_at = self.loop.time()
        return self._takes.get(consumer_tag)

    def _take_frame(self, frame: Any) -> bool:
        if super()._take_frame(frame):
            return True
        kind = type(frame)
        if kind is spec.Basic.Ack or kind is spec.Basic.Nack:
            self.heard_at = self.loop.time()
            self._settle(frame)
            return True
        if kind is spec.Basic.Return:
            self._begun, self._complete = frame, self._take_back
            return True
        return False

    def _settle(self, frame: spec.Basic.Ack | spec.Basic.Nack) -> None:
        tag = frame.delivery_tag or 0
        if frame.multiple:
            tags: Iterable[int] = list(takewhile(tag.__ge__, self._unconfirmed))
        else:
            tags = (tag,)
        for each in tags:
            if each not in self._unconfirmed:
                continue
            batch, _ = self._unconfirmed.pop(each)
            batch.left -= 1
            if batch.confirmed.done():
                continue
            if isinstance(frame, spec.Basic.Nack):
                batch.confirmed.set_exception(DeliveryError(None, frame))
            elif not batch.left:
                batch.confirmed.set_result(None)

    def _take_back(self, message: DeliveredMessage) -> None:
        """Tell who waits that no queue wants it. The broker confirms it all the same, and names its message id."""
        message_id = message.header.properties.message_id
        assert isinstance(message.delivery, spec.Basic.Return)  # noqa: S101 - set where returns begin
        for batch, unconfirmed_id in self._unconfirmed.values():
            if unconfirmed_id == message_id and not batch.confirmed.done():
                batch.confirmed.set_exception(PublishError(message, message.delivery))
                return
        self._on_return(message)

    def _on_closed(self, closing: asyncio.Future[Any]) -> None:
        error = None if closing.cancelled() else closing.exception()
        if not isinstance(error, AMQPError):
            # Closed by us or fallen silent: aiormq would cancel who waits, which nobody asked for.
            error = ConnectionError("the link to the broker was lost")
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        for batch, _ in unconfirmed.values():
            if not batch.confirmed.done():
                batch.confirmed.set_exception(error)
        self._has_room.set()


def _seen(confirmed: asyncio.Future[None]) -> None:
    """Nobody has to be told of a failure who has given up waiting."""
    if not confirmed.cancelled():
        confirmed.exception()


def _nobody(_: DeliveredMessage) -> None:
    raise RuntimeError("nobody takes this delivery")


async def _no_callback(_: DeliveredMessage) -> None:
    raise RuntimeError("the delivery did not come over this module's channel")
