"""Loads from a source that must survive the cache in front of it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Loads(Generic[T]):
    """Runs loads, ``at_once`` of them together, of a key never more than one and the one after it."""

    def __init__(self, at_once: int) -> None:
        self._room = asyncio.Semaphore(at_once)
        self._running: dict[str, asyncio.Task[T]] = {}
        self._next: dict[str, asyncio.Task[T]] = {}

    async def run(self, load: Callable[[], Awaitable[T]]) -> T:
        """What ``load`` gives."""
        async with self._room:
            return await load()

    async def shared(self, key: str, load: Callable[[], Awaitable[T]]) -> T:
        """What a load of ``key`` gives that begins from now on.

        Who asks while one is under way is given the next one, together with all others that ask until it begins:
        the one under way may have read what is old by now.
        """
        following = self._next.get(key)
        if following is None:
            following = self._next[key] = asyncio.create_task(self._after_this(key, load), name=f"load {key}")
            following.add_done_callback(_without_complaint)
        # Who gives up does not take the others' load away.
        return await asyncio.shield(following)

    async def _after_this(self, key: str, load: Callable[[], Awaitable[T]]) -> T:
        this = asyncio.current_task()
        try:
            if key in self._running:
                await asyncio.wait([self._running[key]])
            await self._room.acquire()
        finally:
            # From here on it is under way.
            following = self._next.pop(key)
        assert following is this  # noqa: S101 - nobody else takes it out
        self._running[key] = following
        try:
            return await load()
        finally:
            self._room.release()
            del self._running[key]


def _without_complaint(task: asyncio.Task[T]) -> None:
    """Nobody may be left to hear of the error."""
    if not task.cancelled():
        task.exception()
