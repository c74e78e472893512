"""The commands that a cache sends to Redis, each of which is answered in time or counts as not answered."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LinkError
from redis.exceptions import RedisClusterException, RedisError

from contracts.cache_entry import HEAD_BYTES

T = TypeVar("T")

REDIS_AWAY: Final = (RedisError, RedisClusterException, OSError, TimeoutError)
"""What a command raises that Redis does not answer."""

_ERRORS: Final = 5
_REST_SECONDS: Final = 1.0
_KEYS_PER_STEP: Final = 500
_LOOK_SECONDS: Final = 0.01

# Compare-and-set on the first bytes, which no two leases or values share. KEYS[1]; ARGV: expected, new, ms to live.
_SWAP: Final = """
if redis.call('GETRANGE', KEYS[1], 0, 16) == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return 1
end
return 0
"""


def connect(url: str, *, timeout: float = 0.1) -> Redis:
    """A client that gives up after ``timeout`` seconds, where redis-py by default hangs and retries for many."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=50,
        timeout=timeout,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        protocol=3,
    )
    return Redis.from_pool(pool)


class Away(LinkError):  # noqa: N818 - it tells of a state, like the other errors of links here
    """Redis did not answer, or not in time. What was asked for may still happen."""


class Store:
    """A Redis, a Valkey or a cluster of these. Every command raises `Away` if there is no answer.

    No command names two keys that a cluster could keep on different nodes.
    """

    def __init__(self, redis: Redis | RedisCluster, *, timeout: float) -> None:
        self.timeout: Final = timeout
        """Seconds to wait for an answer; it may be a hundredth of a second less."""
        self._redis: Any = redis
        self._is_cluster = isinstance(redis, RedisCluster)
        self._swap = self._redis.register_script(_SWAP)
        self._errors = 0
        self._try_at = 0.0
        self._watched_in: asyncio.AbstractEventLoop | None = None
        self._until: dict[asyncio.Task[Any], float] = {}
        """Who waits for an answer, and how long they may."""
        self._late: set[asyncio.Task[Any]] = set()
        """Those of them that were cancelled for it."""

    def may_be_asked(self) -> bool:
        """False after 5 errors in a row, but for one caller in a second, who finds out whether it is back."""
        if self._errors < _ERRORS:
            return True
        now = asyncio.get_running_loop().time()
        if now < self._try_at:
            return False
        self._try_at = now + _REST_SECONDS
        return True

    def get(self, name: str, until: float | None = None) -> Awaitable[bytes | None]:
        """What the key holds. ``until`` is by the clock of the event loop; without it, as long as a command has."""
        # What `Redis.get` does, without what that costs more: this is on the way of every hit.
        return self._answer(self._redis.execute_command("GET", name), until)

    def head(self, name: str) -> Awaitable[bytes]:
        """The first bytes of what the key holds; empty if it holds nothing."""
        return self._answer(self._redis.getrange(name, 0, HEAD_BYTES - 1))

    async def lease(self, name: str, lease: bytes, ms: int, *, until: float | None = None) -> bytes | None:
        """Put a lease where there is nothing; gives what is there instead."""
        return await self._answer(self._redis.set(name, lease, nx=True, get=True, px=ms), until)

    async def swap(self, name: str, head: bytes, new: bytes, ms: int, *, until: float | None = None) -> bool:
        """Put ``new`` in the place of what begins with ``head``; whether that was there."""
        return bool(await self._answer(self._swap([name], [head, new, ms]), until))

    async def unlink(self, names: Sequence[str]) -> None:
        """Remove whatever the keys hold."""
        for some in _steps(names):
            await self._answer(self._redis.unlink(*some))

    async def get_many(self, names: Sequence[str]) -> list[bytes | None]:
        """What each of the keys holds."""
        mget = self._redis.mget_nonatomic if self._is_cluster else self._redis.mget
        return [held for some in _steps(names) for held in await self._answer(mget(list(some)))]

    async def lease_many(self, leases: Mapping[str, bytes], ms: int) -> list[bool]:
        """Put leases by name where there is nothing; tells for each whether it is there now."""
        return await self._in_steps(list(leases), lambda pipe, name: pipe.set(name, leases[name], nx=True, px=ms))

    async def swap_many(self, swaps: Mapping[str, tuple[bytes, bytes, int]]) -> list[bool]:
        """`swap` for each name."""
        return await self._in_steps(list(swaps), lambda pipe, name: pipe.eval(_SWAP, 1, name, *swaps[name]))

    async def _in_steps(self, names: Sequence[str], command: Callable[[Any, str], Any]) -> list[bool]:
        """Some at a time. Each step has the time of ten commands."""
        results: list[bool] = []
        for some in _steps(names):
            pipe = self._redis.pipeline(transaction=False)
            for name in some:
                command(pipe, name)
            until = asyncio.get_running_loop().time() + 10 * self.timeout
            results += map(bool, await self._answer(pipe.execute(), until))
        return results

    async def _answer(self, command: Awaitable[T], until: float | None = None) -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - commands are awaited in tasks
        requests = task.cancelling()
        self._until[task] = until or loop.time() + self.timeout
        if self._watched_in is not loop:
            self._watched_in = loop
            loop.call_later(_LOOK_SECONDS, self._look, loop)
        try:
            answer = await command
        except Exception as error:
            # Also what redis-py does not mean to raise: whatever it is, there is no answer.
            raise self._away(error) from error
        except asyncio.CancelledError as error:
            # It may be that somebody else wants the task to end, too.
            if task not in self._late or task.cancelling() - 1 > requests:
                raise
            raise self._away(error) from error
        finally:
            del self._until[task]
            if task in self._late:
                self._late.remove(task)
                task.uncancel()
        self._errors = 0
        return answer

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel those whose time is over before the next look. A timer for each command would cost a hit more."""
        over = loop.time() + _LOOK_SECONDS
        late = [task for task, until in self._until.items() if until < over and task not in self._late]
        self._late.update(late)
        for task in late:
            task.cancel()
        if self._until:
            loop.call_later(_LOOK_SECONDS, self._look, loop)
        else:
            self._watched_in = None

    def _away(self, error: BaseException) -> Away:
        self._errors += 1
        self._try_at = asyncio.get_running_loop().time() + _REST_SECONDS
        why = "in time" if isinstance(error, asyncio.CancelledError) else f": {type(error).__name__}"
        return Away(f"the cache does not answer {why}")


def _steps(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[start : start + _KEYS_PER_STEP] for start in range(0, len(names), _KEYS_PER_STEP)]
