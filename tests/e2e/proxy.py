"""A wire that can be cut at a certain word: everything passes a proxy that sees what goes by."""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol, Self
from urllib.parse import urlsplit, urlunsplit

_PROTOCOL_HEADER_BYTES: Final = 8
_BIND: Final = b"B"  # how PostgreSQL is told to carry out what was prepared
_METHOD_FRAME: Final = 1
_BASIC_ACK: Final = b"\x00\x3c\x00\x50"
_BASIC_PUBLISH: Final = b"\x00\x3c\x00\x28"


class Tap(Protocol):
    """What becomes of the bytes of one connection; a tap that raises ConnectionResetError cuts it."""

    def sent(self, data: bytes) -> bytes:
        """Of what the client sent, that which reaches the server."""

    def answered(self, data: bytes) -> bytes:
        """Of what the server sent, that which reaches the client."""


class Untouched:
    """What is sent arrives."""

    def sent(self, data: bytes) -> bytes:
        return data

    def answered(self, data: bytes) -> bytes:
        return data


class Proxy:
    """A port in front of a server, which can be closed like the server's own."""

    def __init__(
        self, url: str, tap: Callable[[], Tap] = Untouched, *, encrypted: ssl.SSLContext | None = None
    ) -> None:
        """With ``encrypted`` clients have to speak TLS to it, as to a server that has this certificate."""
        self._parts = urlsplit(url)
        self._encrypted = encrypted
        self._tap = tap
        self._port = 0
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shut()

    @property
    def url(self) -> str:
        """The server's URL, by way of this port."""
        login, at, _ = self._parts.netloc.rpartition("@")
        scheme = self._parts.scheme + ("s" if self._encrypted else "")
        return urlunsplit(self._parts._replace(scheme=scheme, netloc=f"{login}{at}127.0.0.1:{self._port}"))

    @property
    def links(self) -> int:
        """How many connections go through it."""
        return len(self._links)

    async def open(self) -> None:
        """Listen; again on the same port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port, ssl=self._encrypted)
        self._port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        """Cut every connection and refuse new ones."""
        if self._server is not None:
            self._server.close()
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        try:
            await _relay(reader, writer, self._parts.hostname or "", self._parts.port or 0, self._tap())
        except asyncio.CancelledError:
            pass  # the port was shut
        finally:
            self._links.discard(link)


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int, tap: Tap) -> None:
    to_server: asyncio.StreamWriter | None = None
    try:
        from_server, to_server = await asyncio.open_connection(host, port)
        ends = [
            asyncio.create_task(_pump(reader, to_server, tap.sent)),
            asyncio.create_task(_pump(from_server, writer, tap.answered)),
        ]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
    except OSError:
        pass  # the server is away, and so are we
    finally:
        for side in (writer, to_server):
            if side is not None:
                side.transport.abort()
                with suppress(OSError):
                    await side.wait_closed()


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, through: Callable[[bytes], bytes]
) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(through(data))
            await writer.drain()


class Frames:
    """AMQP frames out of bytes as they come; what is behind the last whole frame waits for the rest."""

    def __init__(self, *, with_protocol_header: bool) -> None:
        self._rest = b""
        self._skip = _PROTOCOL_HEADER_BYTES if with_protocol_header else 0

    def split(self, data: bytes) -> list[bytes]:
        self._rest += data
        frames = []
        if self._skip and len(self._rest) >= self._skip:
            frames.append(self._rest[: self._skip])
            self._rest, self._skip = self._rest[self._skip :], 0
        while not self._skip and len(self._rest) >= 7:
            size = 7 + int.from_bytes(self._rest[3:7]) + 1
            if len(self._rest) < size:
                break
            frames.append(self._rest[:size])
            self._rest = self._rest[size:]
        return frames


def is_ack(frame: bytes) -> bool:
    return frame[0] == _METHOD_FRAME and frame[7:11] == _BASIC_ACK


def is_publish(frame: bytes) -> bool:
    return frame[0] == _METHOD_FRAME and frame[7:11] == _BASIC_PUBLISH


class AcksLost:
    """The broker hears everything of a consumer but its acknowledgements."""

    def __init__(self) -> None:
        self._frames = Frames(with_protocol_header=True)

    def sent(self, data: bytes) -> bytes:
        return b"".join(frame for frame in self._frames.split(data) if not is_ack(frame))

    def answered(self, data: bytes) -> bytes:
        return data


class ConfirmsLost:
    """The first confirms a publisher is to hear cut its connection instead."""

    def __init__(self, cuts: list[int], published: list[bytes]) -> None:
        self._sent_frames = Frames(with_protocol_header=True)
        self._frames = Frames(with_protocol_header=False)
        self._cuts = cuts
        """One entry for each connection still to be cut: after how many confirms."""
        self._published = published
        """A frame for each message that was sent, over whichever connection."""

    def sent(self, data: bytes) -> bytes:
        frames = self._sent_frames.split(data)
        self._published += filter(is_publish, frames)
        return b"".join(frames)

    def answered(self, data: bytes) -> bytes:
        frames = self._frames.split(data)
        for frame in frames:
            if self._cuts and is_ack(frame):
                if self._cuts[0] == 0:
                    self._cuts.pop(0)
                    raise ConnectionResetError
                self._cuts[0] -= 1
        return b"".join(frames)


class CommitsUnanswered:
    """The database commits, and nobody hears of it.

    Once a statement with ``word`` was prepared, the answer to carrying it out, which commits it, is kept back.
    """

    def __init__(self, word: bytes, muted: asyncio.Event) -> None:
        self._word = word
        self._muted = muted
        self._seen = self._mute = False

    def sent(self, data: bytes) -> bytes:
        if self._seen and data.startswith(_BIND):
            self._mute = True
            self._muted.set()
        self._seen = self._seen or self._word in data
        return data

    def answered(self, data: bytes) -> bytes:
        return b"" if self._mute else data
