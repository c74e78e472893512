"""An event loop whose every step a seed decides, and a Redis in its memory.

Whoever asks a server waits twice: until the server acts, and until the answer arrives. Which of those who wait goes
on is decided by random priorities, which change at a few random moments: S. Burckhardt and others, "A randomized
scheduler with probabilistic guarantees of finding bugs", ASPLOS 2010. Time stands still until nobody asks Redis.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

from tests.simulation import loop
from tests.simulation.loop import SimulatedLoop, StuckError

_CHANGES: Final = 3
_LONG: Final = 0.1
"""Seconds after which an answer is too late."""
_STEPS: Final = 250
"""About how many steps a schedule has: the moments at which priorities change are among them."""


class Scheduler:
    """Decides who goes on."""

    def __init__(self, seed: int) -> None:
        self.random: Final = random.Random(seed)
        self.now = 0.0
        self.may_time_out = False
        """Whether time may pass while somebody waits for Redis."""
        self._waiting: list[tuple[asyncio.Task[Any], asyncio.Future[None], bool]] = []
        self._priorities: dict[object, float] = {}
        self._steps = 0
        self._changes = {self.random.randrange(_STEPS) for _ in range(_CHANGES)}

    async def point(self, *, at_redis: bool = False) -> None:
        """Let others go first, as many as it pleases the seed."""
        task = asyncio.current_task()
        assert task is not None
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((task, future, at_redis))
        await future

    def step(self, timeout: float | None) -> None:
        """Everything that can run has run: let one go on, or time pass up to the next timer."""
        self._waiting = [each for each in self._waiting if not each[1].done()]
        may_pass = timeout is not None and (self.may_time_out or not any(at_redis for *_, at_redis in self._waiting))
        candidates: list[object] = [task for task, *_ in self._waiting]
        if may_pass:
            candidates.append(self)
        if not candidates:
            raise StuckError
        chosen = max(candidates, key=self._priority)
        if self._steps in self._changes:
            self._priorities[chosen] = -self._steps
        self._steps += 1
        if chosen is self:
            assert timeout is not None
            self.now += max(timeout, self.random.choice((0.0, _LONG))) if self.may_time_out else timeout
            # Time would pass by itself for ever, while others wait for their turn.
            self._priorities[self] = self.random.random()
        else:
            next(future for task, future, _ in self._waiting if task is chosen).set_result(None)

    def _priority(self, who: object) -> float:
        if who not in self._priorities:
            self._priorities[who] = self.random.random()
        return self._priorities[who]


class ScheduledLoop(SimulatedLoop):
    """An event loop that a `Scheduler` drives, in a time of its own."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler.random)
        self._scheduler = scheduler

    def time(self) -> float:
        """Seconds since the beginning of the schedule."""
        return self._scheduler.now

    def select(self, timeout: float | None) -> list[Any]:
        """Unlike its parent it takes what is ready in order: only who waits for a server may be overtaken."""
        if timeout != 0:
            self._scheduler.step(timeout)
        return []


def run(scheduler: Scheduler, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a schedule to its end. What is random in the code follows the seed as well."""
    state = random.getstate()
    random.seed(scheduler.random.random())
    try:
        loop.run(ScheduledLoop(scheduler), main())
    finally:
        random.setstate(state)


class SimulatedRedis:
    """The commands that a cache uses."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._held: dict[str, tuple[bytes, float]] = {}

    def execute_command(self, command: str, name: str) -> Awaitable[bytes | None]:
        assert command == "GET"
        return self._asked(lambda: self._now(name))

    def getrange(self, name: str, first: int, last: int) -> Awaitable[bytes]:
        return self._asked(lambda: (self._now(name) or b"")[first : last + 1])

    def set(self, name: str, value: bytes, *, px: int, nx: bool = False, get: bool = False) -> Awaitable[Any]:
        return self._asked(lambda: self._set(name, value, px, nx=nx, get=get))

    def mget(self, names: Sequence[str]) -> Awaitable[list[bytes | None]]:
        return self._asked(lambda: [self._now(name) for name in names])

    def unlink(self, *names: str) -> Awaitable[None]:
        return self._asked(lambda: self.forget(*names))

    def register_script(self, _: str) -> Callable[[list[str], list[Any]], Awaitable[int]]:
        """There is one: compare the first bytes, and set."""
        return lambda names, args: self._asked(lambda: self._swap(names[0], *args))

    def pipeline(self, *, transaction: bool) -> "SimulatedPipeline":
        assert not transaction
        return SimulatedPipeline(self, self._scheduler)

    def forget(self, *names: str) -> None:
        """Remove keys, or all of them."""
        for name in names or list(self._held):
            self._held.pop(name, None)

    def names(self) -> list[str]:
        return list(self._held)

    async def _asked(self, act: Callable[[], Any]) -> Any:
        await self._scheduler.point(at_redis=True)
        answer = act()
        await self._scheduler.point(at_redis=True)
        return answer

    def _now(self, name: str) -> bytes | None:
        value, until = self._held.get(name, (None, 0.0))
        return value if until > self._scheduler.now else None

    def _set(self, name: str, value: bytes, px: int, *, nx: bool = False, get: bool = False) -> Any:
        before = self._now(name)
        is_set = before is None or not nx
        if is_set:
            self._held[name] = (value, self._scheduler.now + px / 1_000)
        return before if get else is_set or None

    def _swap(self, name: str, head: bytes, new: bytes, px: int) -> int:
        if (self._now(name) or b"")[:17] != head:
            return 0
        self._set(name, new, px)
        return 1


class SimulatedPipeline:
    """Commands that are answered together, and between which others may act."""

    def __init__(self, redis: SimulatedRedis, scheduler: Scheduler) -> None:
        self._redis = redis
        self._scheduler = scheduler
        self._commands: list[Callable[[], Any]] = []

    def set(self, name: str, value: bytes, *, px: int, nx: bool = False) -> None:
        self._commands.append(lambda: self._redis._set(name, value, px, nx=nx))

    def eval(self, _: str, __: int, name: str, head: bytes, new: bytes, px: int) -> None:
        self._commands.append(lambda: self._redis._swap(name, head, new, px))

    async def execute(self) -> list[Any]:
        results = []
        for command in self._commands:
            await self._scheduler.point(at_redis=True)
            results.append(command())
        await self._scheduler.point(at_redis=True)
        return results
