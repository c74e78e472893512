"""Hands deliveries to who takes them, with as little work in between as can be.

aio-pika reads a frame in three awaited steps, and makes two tasks and a message object for each delivery. That is
more work than a lane's share of storing it. Here frames are cut from what has arrived, and a delivery goes straight
to the function that takes it. Connections, channels, subscriptions and their restoration stay the libraries' own.
The one module that changes how aiormq reads; tested in tests/integration/test_consumers.py.
"""

import struct
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any, Final

import aiormq.connection
import pamqp.decode
import pamqp.frame
from aio_pika.abc import AbstractIncomingMessage
from aiormq import Channel, spec
from aiormq.abc import DeliveredMessage
from aiormq.connection import FrameReceiver, ReceivedFrame
from aiormq.exceptions import AMQPConnectionError, InvalidFrameError, ProtocolSyntaxError
from pamqp.constants import FRAME_END, FRAME_HEADER, FRAME_METHOD
from pamqp.exceptions import PAMQPException
from pamqp.header import ContentHeader

Take = Callable[[DeliveredMessage], None]
"""Takes a delivery, and awaits nothing: so deliveries stay in the order of their queue."""

_CHUNK: Final = 128 * 1024
_FRAME_HEAD: Final = struct.Struct(">BHI")
_FRAME_END_BYTES: Final = 1
_DELIVER: Final = struct.pack(">HH", 60, 60)
"""Class and method of basic.deliver."""
_TAG: Final = struct.Struct(">QB")
"""Delivery tag, and whether it is delivered again."""
_CONTENT: Final = struct.Struct(">HHQH")
"""Class, weight, body size, and which properties follow."""
_FLAGS_END: Final = _FRAME_HEAD.size + _CONTENT.size - 1


class _Properties:
    """What `spec.Basic.Properties` is to a reader; those that a message does not have need not be set."""

    content_type = content_encoding = correlation_id = reply_to = expiration = None
    message_id = message_type = user_id = app_id = headers = None
    delivery_mode = priority = timestamp = None
    cluster_id = ""


class _Subscription:
    """What is given to FastStream as the function that consumes; `_Channel` finds ``take`` in it."""

    def __init__(self, take: Take) -> None:
        self.take = take

    async def consume(self, _: AbstractIncomingMessage) -> None:
        raise RuntimeError("the delivery did not come over a channel of this module")


def subscription(take: Take) -> Callable[[AbstractIncomingMessage], Coroutine[Any, Any, None]]:
    """A function to subscribe with, so that ``take`` gets each delivery."""
    return _Subscription(take).consume


def install() -> None:
    """Have aiormq use the classes below from now on, in this process."""
    vars(aiormq.connection).update(FrameReceiver=_Receiver, Channel=_Channel)


class _Channel(Channel):
    async def _on_deliver_frame(self, frame: spec.Basic.Deliver) -> None:
        consumer = self.consumers.get(frame.consumer_tag or "")
        # aio-pika subscribes with functools.partial(its own consumer, the function it was given, ...).
        callback = next(iter(getattr(consumer, "args", ())), None)
        subscribed = getattr(callback, "__self__", None)
        if not isinstance(subscribed, _Subscription):
            await super()._on_deliver_frame(frame)
            return
        header = await self._get_frame()
        if not isinstance(header, ContentHeader):
            raise InvalidFrameError(header)
        subscribed.take(await self._read_content(frame, header))


class _Receiver(FrameReceiver):
    """Reads what has arrived at once and cuts the frames out of it."""

    _arrived = b""
    _place = 0

    async def get_frame(self) -> ReceivedFrame:
        while True:
            start = self._place + _FRAME_HEAD.size
            if len(self._arrived) > start:
                _, _, length = _FRAME_HEAD.unpack_from(self._arrived, self._place)
                end: int = start + length + _FRAME_END_BYTES
                if len(self._arrived) >= end:
                    frame = self._arrived[self._place : end]
                    self._place = end
                    try:
                        return _decoded(frame)
                    except (PAMQPException, ValueError, IndexError, struct.error) as error:
                        raise InvalidFrameError(str(error)) from error
            await self._read()

    async def _read(self) -> None:
        try:
            chunk = await self.reader.read(_CHUNK)
        except OSError as error:
            raise AMQPConnectionError(f"Server communication error: {error!r}") from error
        if not chunk:
            raise AMQPConnectionError("Server connection unexpectedly closed")
        if not self.started and chunk.startswith(b"AMQP"):
            raise ProtocolSyntaxError("Unexpected AMQP protocol header")
        self.started = True
        self._arrived = self._arrived[self._place :] + chunk
        self._place = 0


def _decoded(frame: bytes) -> ReceivedFrame:
    """What `pamqp.frame.unmarshal` gives, in a third of the time for the two frames that begin a delivery."""
    kind, channel, length = _FRAME_HEAD.unpack_from(frame)
    if frame[-1] == FRAME_END:
        if kind == FRAME_METHOD and frame.startswith(_DELIVER, _FRAME_HEAD.size):
            return length, channel, _deliver(frame)
        if kind == FRAME_HEADER and length >= _CONTENT.size and not frame[_FLAGS_END] & 1:
            return length, channel, _content(frame)
    return pamqp.frame.unmarshal(frame)


def _deliver(frame: bytes) -> spec.Basic.Deliver:
    deliver = spec.Basic.Deliver.__new__(spec.Basic.Deliver)
    deliver.consumer_tag, place = _short_text(frame, _FRAME_HEAD.size + len(_DELIVER))
    deliver.delivery_tag, redelivered = _TAG.unpack_from(frame, place)
    deliver.redelivered = bool(redelivered)
    deliver.exchange, place = _short_text(frame, place + _TAG.size)
    deliver.routing_key, _ = _short_text(frame, place)
    return deliver


def _content(frame: bytes) -> ContentHeader:
    header = ContentHeader.__new__(ContentHeader)
    header.class_id, header.weight, header.body_size, flags = _CONTENT.unpack_from(frame, _FRAME_HEAD.size)
    properties = _Properties()
    place = _FRAME_HEAD.size + _CONTENT.size
    value: Any
    for name, kind in _present(flags):
        if kind == "shortstr":
            value, place = _short_text(frame, place)
        else:
            # Looked up each time, because `tolerant_amqp` puts its own functions there.
            used, value = pamqp.decode.METHODS[kind](frame[place:-1])
            place += used
        setattr(properties, name, value)
    header.properties = properties  # type: ignore[assignment]
    return header


@cache
def _present(flags: int) -> list[tuple[str, str]]:
    """Names and kinds of the properties that follow these flags."""
    kind = spec.Basic.Properties
    return [(name, kind.amqp_type(name)) for name, flag in kind.flags.items() if flags & flag]


def _short_text(frame: bytes, place: int) -> tuple[str, int]:
    end = place + 1 + frame[place]
    return frame[place + 1 : end].decode(errors="replace"), end
