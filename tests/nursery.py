"""Processes of ``persistence`` that start at once: forked from one that has imported everything.

An interpreter of its own takes a second or three to import the service, and tests start a hundred.
"""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Self

REPOSITORY: Final = Path(__file__).parents[1]


class Child:
    """A process that was forked, to be handled like one of `asyncio.subprocess`."""

    def __init__(self, nursery: "Nursery", pid: int) -> None:
        self.pid = pid
        self._nursery = nursery
        # It can be read from once the process has ended; the parent that has to wait for it forks others meanwhile.
        self._handle = os.pidfd_open(pid)
        self._code: int | None = None

    @property
    def returncode(self) -> int | None:
        """Its exit code, minus the signal that it died of, or None while it lives."""
        self._look(0)
        return self._code

    def wait_for(self, seconds: float) -> int:
        """Its exit code, once it has ended; raises TimeoutError if it has not by then."""
        self._look(seconds)
        if self._code is None:
            raise TimeoutError(f"process {self.pid} lives on after {seconds:g} s")
        return self._code

    async def wait(self) -> int:
        """Its exit code, once it has ended."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        while (code := self.returncode) is None:
            # A handle of this waiter's own: a loop tells one of them only.
            handle = os.dup(self._handle)
            loop.add_reader(handle, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(handle)
                os.close(handle)
        return code

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            signal.pidfd_send_signal(self._handle, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, seconds: float) -> None:
        if self._code is None and select.select([self._handle], [], [], seconds)[0]:
            self._code = self._nursery.end_of(self.pid)
            os.close(self._handle)


class Nursery:
    """The process that the others are forked from; they end with it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._is_ready = False

    @classmethod
    @contextmanager
    def running(cls, *, with_points: bool = False) -> Iterator[Self]:
        """One whose services have the points of `tests.faults.points`, or are as they are."""
        options = ["--with-points"] if with_points else []
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote", *options],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with process:
            try:
                yield cls(process)
            finally:
                process.kill()

    def fork(
        self,
        *arguments: str,
        environment: Mapping[str, str],
        output: Path,
        errors: Path | None = None,
        program: str = "service.cli",
        board: Path | None = None,
    ) -> Child:
        """``persistence`` with these arguments and no other environment, just starting.

        ``program`` is a module whose ``main`` is ``persistence`` with something put wrong; on ``board`` points are
        armed.
        """
        asked = {
            "program": program,
            "arguments": arguments,
            "environment": dict(environment),
            "output": str(output),
            "errors": str(errors or output),
            "board": board and str(board),
        }
        return Child(self, self._ask(asked)["pid"])

    async def run(self, *arguments: str, environment: Mapping[str, str], seconds: float = 20) -> tuple[int, str, str]:
        """Exit code, output and complaints of ``persistence``."""
        with TemporaryDirectory() as folder:
            output, errors = Path(folder, "output"), Path(folder, "errors")
            child = self.fork(*arguments, environment=environment, output=output, errors=errors)
            try:
                async with asyncio.timeout(seconds):
                    code = await child.wait()
            finally:
                child.kill()
            return code, _text(output), _text(errors)

    def end_of(self, pid: int) -> int:
        """The exit code of a child that has ended."""
        code: int = self._ask({"wait": pid})["exit_code"]
        return code

    def _ask(self, question: Mapping[str, Sequence[str] | Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        if not self._is_ready:
            self._answer()  # it has imported everything
            self._is_ready = True
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError("the process that services are forked from has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _text(file: Path) -> str:
    return file.read_text()
