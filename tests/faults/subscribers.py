"""Three who hear of every change: one that listens all the time, one that keeps dying, one that comes late."""

import asyncio
import random
from contextlib import AsyncExitStack
from typing import Any

from tests.e2e.wire import Listener


class Subscribers:
    """Everything that was heard, by who heard it."""

    def __init__(self, url: str, *, seed: int) -> None:
        self._url = url
        self._random = random.Random(seed)
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._flaky: list[Listener] = []
        self._heard: dict[str, Listener] = {}
        self._enough = asyncio.Event()

    async def begin(self) -> None:
        self._heard["steady"] = await self._stack.enter_async_context(Listener.on(self._url, queue="steady"))
        self._tasks.append(asyncio.create_task(self._come_and_go()))
        # Its queue is there from now on, for the moments in which nobody listens.
        while not self._flaky:
            await asyncio.sleep(0.01)

    @property
    def has_late(self) -> bool:
        """Whether the one that comes late has come."""
        return "late" in self._heard

    async def join_late(self) -> None:
        self._heard["late"] = await self._stack.enter_async_context(Listener.on(self._url, queue="late"))

    async def _come_and_go(self) -> None:
        while True:
            seconds = self._random.uniform(0.2, 2.0)
            try:
                async with Listener.on(self._url, queue="flaky") as listener:
                    self._flaky.append(listener)
                    await asyncio.wait({asyncio.create_task(self._enough.wait())}, timeout=seconds)
                    if self._enough.is_set():
                        await asyncio.Event().wait()
            except TimeoutError:
                continue  # the broker is away

    def stay(self) -> None:
        """Nobody dies any more."""
        self._enough.set()

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    def heard(self, who: str) -> list[dict[str, Any]]:
        """Every delivery to one of them, in order."""
        if who == "flaky":
            return [event for listener in self._flaky for event in listener.heard]
        return self._heard[who].heard if who in self._heard else []
