"""A wire between a process and a server, on which everything can go wrong while it stays connected."""

import asyncio
from contextlib import suppress
from typing import Final

from tests.e2e.proxy import Proxy

_SILENT_SECONDS: Final = 30.0


class Link(Proxy):
    """A port in front of a server; what its connections suffer is set while they live."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.delay = 0.0
        """Seconds that everything takes longer."""
        self.hears_requests = True
        """Whether what a client sends arrives; it is gone if not, as with a half-open connection."""
        self.hears_answers = True
        self._forgotten = 0

    def forget(self) -> None:
        """Nothing passes any more on the connections that are, and no end hears of it; new ones work.

        As when a router loses its table, or a proxy its mind: both ends still get their bytes acknowledged.
        """
        self._forgotten += 1

    def heal(self) -> None:
        self.delay, self.hears_requests, self.hears_answers = 0.0, True, True

    async def cut(self) -> None:
        """End every connection at once; new ones are taken."""
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        to_server: asyncio.StreamWriter | None = None
        forgotten = self._forgotten
        try:
            from_server, to_server = await asyncio.open_connection(self._parts.hostname, self._parts.port)
            ends = [
                asyncio.create_task(self._pass(reader, to_server, forgotten, requests=True)),
                asyncio.create_task(self._pass(from_server, writer, forgotten, requests=False)),
            ]
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for end in ends:
                    end.cancel()
                await asyncio.gather(*ends, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the server is away, or the link was cut
        finally:
            self._links.discard(link)
            for side in (writer, to_server):
                if side is not None:
                    side.transport.abort()
                    with suppress(OSError):
                        await side.wait_closed()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, forgotten: int, *, requests: bool
    ) -> None:
        is_whole = True
        with suppress(OSError):
            while data := await reader.read(65_536):
                if self.delay:
                    await asyncio.sleep(self.delay)
                # What was dropped once leaves a hole: no byte after it may arrive.
                is_heard = self.hears_requests if requests else self.hears_answers
                is_whole = is_whole and is_heard and forgotten == self._forgotten
                if is_whole:
                    writer.write(data)
                    await writer.drain()
        if not is_whole or forgotten != self._forgotten:
            # That one side has hung up does not reach the other either.
            await asyncio.sleep(_SILENT_SECONDS)
