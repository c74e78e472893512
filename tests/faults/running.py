"""Processes that are started again whenever they end."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from tests.faults.points import REPOSITORY
from tests.faults.victims import Victim
from tests.nursery import Nursery

_PAUSE_SECONDS = 0.05


class Process(Protocol):
    """One of the operating system's."""

    @property
    def pid(self) -> int: ...

    async def wait(self) -> int:
        """Its exit code, once it has ended; negative for the signal that ended it."""


Spawn = Callable[[], Awaitable[Process]]


def by_command(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Spawn:
    """Starts a program that writes to ``log``."""

    async def spawn() -> Process:
        with log.open("ab") as output:
            return await asyncio.create_subprocess_exec(
                *command,
                cwd=REPOSITORY,
                env={**os.environ, **environment},
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
            )

    return spawn


def by_forking(nursery: Nursery, environment: Mapping[str, str], log: Path) -> Spawn:
    """Starts a service, without the seconds that a Python needs to import everything."""

    async def spawn() -> Process:
        return Victim.of(nursery, environment, log=log)

    return spawn


class Running:
    """A process that is started again whenever it ends, for as long as it is kept up."""

    def __init__(self, spawn: Spawn) -> None:
        self._spawn = spawn
        self._process: Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._lives = False
        self.exit_codes: list[int] = []
        self.is_kept_up = False

    async def start(self) -> None:
        """Start it, and again whenever it ends."""
        self.is_kept_up = True
        self._keeper = asyncio.create_task(self._keep_up())
        while self._process is None:
            await asyncio.sleep(0.01)

    async def _keep_up(self) -> None:
        while self.is_kept_up:
            self._process = await self._spawn()
            self._lives = True
            code = await self._process.wait()
            self._lives = False
            self.exit_codes.append(code)
            await asyncio.sleep(_PAUSE_SECONDS)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it lives."""
        if self._process is not None and self._lives:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    async def next_end(self, *, seconds: float) -> int | None:
        """The exit code of the one that runs now, or None if it lives for longer."""
        ended = len(self.exit_codes)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while len(self.exit_codes) == ended:
                    await asyncio.sleep(0.005)
        return self.exit_codes[ended] if len(self.exit_codes) > ended else None

    async def stop(self, number: signal.Signals = signal.SIGTERM, *, seconds: float = 30) -> int:
        """End it for good; gives its exit code."""
        self.is_kept_up = False
        self.send(number)
        assert self._keeper is not None
        try:
            await asyncio.wait_for(asyncio.shield(self._keeper), seconds)
        except TimeoutError:
            self.send(signal.SIGKILL)
            await self._keeper
        return self.exit_codes[-1]
