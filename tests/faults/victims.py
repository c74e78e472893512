"""Services that are made to be killed."""

import asyncio
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.nursery import Child, Nursery

KILLED = -signal.SIGKILL


@dataclass
class Victim:
    """A service process, its end watched."""

    child: Child
    log: Path

    def __post_init__(self) -> None:
        self._end: asyncio.Task[int] = asyncio.create_task(self.child.wait())

    @classmethod
    def of(
        cls, nursery: Nursery, environment: Mapping[str, str], *, log: Path, board: Path | None = None
    ) -> "Victim":
        """A new service that is just starting; with points, ``board`` is where they are armed."""
        return cls(nursery.fork("serve", environment={**os.environ, **environment}, output=log, board=board), log)

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def has_ended(self) -> bool:
        return self._end.done()

    async def wait(self) -> int:
        """Its exit code, once it has ended."""
        return await asyncio.shield(self._end)

    async def end(self, *, seconds: float) -> int | None:
        """Its exit code, or None if it still lives after so long."""
        done, _ = await asyncio.wait([self._end], timeout=seconds)
        return self._end.result() if done else None

    async def kill(self) -> None:
        self.child.kill()
        await self._end

    async def terminate(self) -> int:
        """Ask it to end; gives its exit code."""
        self.child.terminate()
        code = await self.end(seconds=15)
        if code is None:
            await self.kill()
            raise AssertionError("a service did not end within 15 s of SIGTERM")
        return code
