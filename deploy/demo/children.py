"""Processes of the demo beside its own: each says what it does in JSON lines on its standard output."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel

from deploy.servers import REPOSITORY
from deploy.service import end_with_parent

R = TypeVar("R", bound=BaseModel)

# A bot's whole journal is one line.
_LONGEST_LINE = 16 * 1024 * 1024
SECONDS_TO_END = 5
"""What a child may take to clean up."""


class ChildError(Exception):
    """A process of the demo ended before its work was done. The message says which, and its last words."""


class Child(Generic[R]):
    """A Python module that runs as a process of its own and sends reports of type ``R``."""

    def __init__(self, name: str, kind: type[R], process: asyncio.subprocess.Process, log: Path) -> None:
        self._name = name
        self._kind = kind
        self._process = process
        self._log = log

    async def next(self) -> R:
        """The next report; raises `ChildError` if there will be none."""
        assert self._process.stdout is not None  # noqa: S101 - it was started with a pipe
        line = await self._process.stdout.readline()
        if not line:
            code = await self._process.wait()
            words = self._log.read_text().strip().splitlines()
            raise ChildError(f"{self._name} ended with {code}: {words[-1] if words else 'without a word'}")
        return self._kind.model_validate_json(line)

    async def end(self) -> None:
        """Ask it to end, and see to it."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            try:
                async with asyncio.timeout(SECONDS_TO_END):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()


class Children:
    """Starts children and ends them."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._started: list[Child[BaseModel]] = []

    async def start(self, name: str, module: str, kind: type[R], *arguments: object) -> Child[R]:
        """Run ``module`` with ``arguments``; what it says on standard error goes to a file."""
        log = self._folder / f"{name.replace(' ', '-')}.log"
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                *map(str, arguments),
                cwd=REPOSITORY,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                limit=_LONGEST_LINE,
                # Ctrl-C is for the demo; it ends the others in its own order.
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        child = Child(name, kind, process, log)
        self._started.append(child)  # type: ignore[arg-type]
        return child

    async def end(self) -> None:
        """End all that still run."""
        await asyncio.gather(*(child.end() for child in self._started))


@asynccontextmanager
async def children(folder: Path, environment: Mapping[str, str]) -> AsyncIterator[Children]:
    """Children that are gone when the block ends; ``folder`` takes their logs."""
    started = Children(folder, environment)
    try:
        yield started
    finally:
        await started.end()


def report(said: BaseModel) -> None:
    """Say something to the demo; for the child's side."""
    sys.stdout.write(said.model_dump_json(exclude_defaults=True) + "\n")
    sys.stdout.flush()
