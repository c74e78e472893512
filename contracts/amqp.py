"""A connection to the broker that is opened when needed and replaced when it broke (extra ``client``).

aio-pika's own robust connection restores channels behind one's back, and a channel it fails to restore once stays
dead without a word. Here a broken link is an error to the caller of the moment, and the next call opens a new one.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Generic, Protocol, TypeVar

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, ChannelNotFoundEntity
from aiormq.exceptions import InvalidFrameError, ProbableAuthenticationError
from yarl import URL

from contracts.errors import LoginRefused
from contracts.wire import Wire

BROKEN_LINK: Final = (AMQPError, ChannelInvalidStateError, ConnectionError, OSError, TimeoutError)
"""What an operation on a broken link raises; all of it may be tried again on a new one."""

__all__ = ["BROKEN_LINK", "ChannelNotFoundEntity", "Link", "WireLink", "lost_links_as_errors"]


class _Closable(Protocol):
    @property
    def is_closed(self) -> bool: ...


C = TypeVar("C", bound=_Closable)


@contextmanager
def lost_links_as_errors() -> Iterator[None]:
    """Turn the cancellation that a silently lost link raises into a ConnectionError.

    aiormq cancels its own waiters when heartbeats stop; nobody asked for this task to end, so it must not.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise ConnectionError("the link to the broker was lost") from None


class _Link(ABC, Generic[C]):
    """One connection with one channel.

    ``setup`` is called with each new channel, to declare and consume. Safe for use by many tasks at once.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        setup: Callable[[C], Awaitable[None]] | None = None,
        confirms: bool = True,
        heartbeat: int = 10,
        timeout: float = 5.0,
    ) -> None:
        # The name is what an operator sees in the broker's list of connections.
        self._url = _read(url).update_query(name=name, heartbeat=str(heartbeat))
        self._setup = setup
        self._confirms = confirms
        self._timeout = timeout
        self._opening = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._channel: C | None = None

    @abstractmethod
    async def _open_on(self, connection: AbstractConnection) -> C:
        """The link's channel on a new connection."""

    @property
    def is_open(self) -> bool:
        return self.opened is not None

    @property
    def opened(self) -> C | None:
        """The channel, if there is one that is open."""
        if (
            self._connection is not None
            and not self._connection.is_closed
            and self._channel is not None
            and not self._channel.is_closed
        ):
            return self._channel
        return None

    async def channel(self) -> C:
        """The channel, opened first if there is none; raises one of `BROKEN_LINK` if that fails."""
        if (channel := self.opened) is not None:
            return channel
        async with self._opening:
            if (channel := self.opened) is not None:
                return channel
            await self._discard()
            with lost_links_as_errors():
                async with asyncio.timeout(self._timeout):
                    self._connection = await self._connect()
                    channel = await self._open_on(self._connection)
                    if self._setup is not None:
                        await self._setup(channel)
            self._channel = channel
            return channel

    async def _connect(self) -> AbstractConnection:
        try:
            return await aio_pika.connect(self._url, timeout=self._timeout)
        except StopAsyncIteration:
            # What aiormq makes of a broker that hangs up before it has said anything, as one does that is starting.
            raise ConnectionError("the broker hung up") from None
        except ProbableAuthenticationError as error:
            raise LoginRefused(f"the broker refuses user or password: {error}") from None
        except InvalidFrameError:
            # What aiormq makes of a refusal that names the virtual host.
            vhost = self._url.path.removeprefix("/") or "/"
            raise ConnectionError(
                f"the broker refuses the virtual host {vhost!r}: does it exist, and may the user use it?"
            ) from None

    async def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        async with self._opening:
            await self._discard()

    async def _discard(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            # A peer that has gone silent must not hold up the goodbye. Who is cancelled meanwhile cuts it short,
            # which drops the connection, and is cancelled.
            with suppress(*BROKEN_LINK), lost_links_as_errors():
                async with asyncio.timeout(2):
                    await connection.close()


def _read(url: str) -> URL:
    """The URL; raises ValueError for what is none of a broker, without saying it: it may hold a password."""
    with suppress(ValueError):
        read = URL(url)
        if read.scheme in ("amqp", "amqps") and read.host:
            return read
    raise ValueError("the broker's URL must look like amqp://user:password@host:port/vhost, or begin with amqps://")


class Link(_Link[AbstractChannel]):
    """A link with a channel of aio-pika's."""

    async def _open_on(self, connection: AbstractConnection) -> AbstractChannel:
        return await connection.channel(publisher_confirms=self._confirms, on_return_raises=self._confirms)


class WireLink(_Link[Wire]):
    """A link with a channel for many messages."""

    async def _open_on(self, connection: AbstractConnection) -> Wire:
        if connection.transport is None:
            raise ConnectionError("the link to the broker was lost")
        return await Wire.open_on(connection.transport.connection, confirms=self._confirms)
