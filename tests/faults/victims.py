"""Services that are made to be killed: forked from a process that has imported everything, so each starts at once."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.faults.points import REPOSITORY

KILLED = -signal.SIGKILL


class Nursery:
    """The process that the victims are forked from."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._turn = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(cls, *, with_points: bool = False) -> AsyncIterator[Self]:
        """One whose services have the points of `tests.faults.points`, or are as they are."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.faults.zygote",
            *(["--with-points"] if with_points else []),
            cwd=REPOSITORY,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        nursery = cls(process)
        try:
            await nursery._answer()  # it has imported everything
            yield nursery
        finally:
            process.kill()  # its children end with it
            await process.wait()

    async def victim(self, environment: Mapping[str, str], *, log: Path, board: Path | None = None) -> "Victim":
        """A new service that is just starting; with points, ``board`` is where they are armed."""
        asked = {"environment": dict(environment), "board": board and str(board), "log": str(log)}
        async with self._turn:
            said = await self._ask(asked)
        return Victim(self, said["pid"], log)

    async def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        await self._process.stdin.drain()
        return await self._answer()

    async def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise AssertionError("the process that services are forked from has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def end_of(self, pid: int) -> int:
        """The exit code of a child, once it has ended."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        # It can be read from once the process has ended; the parent that has to wait for it forks others meanwhile.
        handle = os.pidfd_open(pid)
        loop.add_reader(handle, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(handle)
            os.close(handle)
        async with self._turn:
            code: int = (await self._ask({"wait": pid}))["exit_code"]
        return code


@dataclass
class Victim:
    """A service process, its end watched."""

    nursery: Nursery
    pid: int
    log: Path

    def __post_init__(self) -> None:
        self._end: asyncio.Task[int] = asyncio.create_task(self.nursery.end_of(self.pid))

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
        if not self.has_ended:
            os.kill(self.pid, signal.SIGKILL)
        await self._end

    async def terminate(self) -> int:
        """Ask it to end; gives its exit code."""
        os.kill(self.pid, signal.SIGTERM)
        code = await self.end(seconds=15)
        if code is None:
            await self.kill()
            raise AssertionError("a service did not end within 15 s of SIGTERM")
        return code
