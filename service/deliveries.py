"""Hands deliveries to who takes them, with as little work in between as can be.

aio-pika reads a frame in three awaited steps, and makes two tasks and a message object for each delivery. That is
more work than a lane's share of storing it. Here frames are cut from what has arrived, and a delivery goes straight
to the function that takes it (`contracts.wire`). Connections, channels, subscriptions and their restoration stay the
libraries' own. The one module that changes how aiormq reads; tested in tests/integration/test_consumers.py.
"""

import struct
from collections.abc import Callable, Coroutine
from typing import Any, Final

import aiormq.connection
from aio_pika.abc import AbstractIncomingMessage
from aiormq.connection import FrameReceiver, ReceivedFrame
from aiormq.exceptions import AMQPConnectionError, InvalidFrameError, ProtocolSyntaxError
from pamqp.exceptions import PAMQPException

from contracts.frames import FRAME_END_BYTES, FRAME_HEAD, decoded
from contracts.wire import DirectChannel, Take

_CHUNK: Final = 128 * 1024


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


class _Channel(DirectChannel):
    def _taker(self, consumer_tag: str) -> Take | None:
        consumer = self.consumers.get(consumer_tag)
        # aio-pika subscribes with functools.partial(its own consumer, the function it was given, ...).
        callback = next(iter(getattr(consumer, "args", ())), None)
        subscribed = getattr(callback, "__self__", None)
        return subscribed.take if isinstance(subscribed, _Subscription) else None


class _Receiver(FrameReceiver):
    """Reads what has arrived at once and cuts the frames out of it."""

    _arrived = b""
    _place = 0

    async def get_frame(self) -> ReceivedFrame:
        while True:
            start = self._place + FRAME_HEAD.size
            if len(self._arrived) > start:
                _, _, length = FRAME_HEAD.unpack_from(self._arrived, self._place)
                end: int = start + length + FRAME_END_BYTES
                if len(self._arrived) >= end:
                    frame = self._arrived[self._place : end]
                    self._place = end
                    try:
                        return decoded(frame)
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
