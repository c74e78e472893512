"""An event loop without a clock of its own: time passes when nobody can go on, and a seed decides who goes first."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any


class StuckError(Exception):
    """Everybody waits, and nothing will ever happen."""


class SimulatedLoop(asyncio.BaseEventLoop):
    """Runs what is ready in an order that ``chance`` gives, and jumps to the next timer when nothing is."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance
        self._now = 0.0
        self._selector = self

    def time(self) -> float:
        """Seconds since the beginning."""
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        """What the loop asks its selector before each round: nothing is ever waited for."""
        if timeout is None:
            raise StuckError
        self._now += timeout
        ready = list(self._ready)  # type: ignore[attr-defined]
        self._chance.shuffle(ready)
        self._ready.clear()  # type: ignore[attr-defined]
        self._ready.extend(ready)  # type: ignore[attr-defined]
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        assert not event_list


def run(loop: SimulatedLoop, main: Coroutine[Any, Any, None]) -> None:
    """Run to the end of ``main``, and end what else still runs."""
    try:
        loop.run_until_complete(main)
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.close()
