"""A read-through cache that no late writer can make stale (extra ``cache``).

Each key holds either a value or a lease: a nonce that a reader puts there before it loads. The value is stored by
compare-and-set against that nonce, and invalidation is a plain UNLINK, which removes values and leases alike. So a
load that began before an invalidation can no longer be stored after it. The idea is the lease of R. Nishtala et al.,
"Scaling Memcache at Facebook", NSDI 2013.
"""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from contracts.certificate import UNCERTIFIED, Certificate, CertificateSource, name_of

Load = Callable[[], Awaitable[bytes]]
"""Reads a value from its source, in a transaction begun when it is called."""

_LEASE: Final = b"\x00"
_VALUE: Final = b"\x01"
_NONCE_BYTES: Final = 16
_LEASE_MS: Final = 5_000
_TRIES: Final = 3
_KEYS_PER_STEP: Final = 500
_AROUND_SECONDS: Final = 1.0
_WAIT_SECONDS: Final = 0.25
"""How long to wait for another reader's load before taking over its lease."""

# Compare-and-set on the whole value. KEYS[1]; ARGV: expected, new, time to live in ms.
_SWAP: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
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


class LeasedCache:
    """Values by logical key, in one namespace of a Redis.

    With Redis away every read goes to its source; nothing is ever served that an invalidation has removed.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        namespace: str,
        certificate: CertificateSource | None = None,
        ttl: float = 86_400.0,
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``certificate`` tells whether the cache may be read; without one it always may.

        ``ttl`` is in seconds; ``count`` is told of each read: ``hit``, ``miss`` or ``bypass``.
        """
        self._redis = redis
        self._namespace = namespace
        self._certificate = certificate or (lambda: UNCERTIFIED)
        self._last: Certificate = UNCERTIFIED
        self._ttl_ms = round(ttl * 1_000)
        self._count = count
        self._swap = redis.register_script(_SWAP)
        self._around_until = 0.0

    async def get(self, key: str, load: Load, *, ttl: float | None = None) -> bytes:
        """The value of ``key``, loaded and stored if it is not cached. Only ``load`` can fail.

        It is stored for ``ttl`` seconds, or the cache's own time to live.
        """
        if not self._is_certified():
            self._count("bypass")
            return await self.around(key, load)
        name = self._name(key)
        if asyncio.get_running_loop().time() < self._around_until:
            self._count("bypass")
            return await load()
        try:
            held: bytes | None = await self._redis.get(name)  # type: ignore[assignment]
            if held is not None and held[:1] == _VALUE:
                self._count("hit")
                return bytes(held[1 + _NONCE_BYTES :])
            self._count("miss")
            for _ in range(_TRIES):
                value = await self._fill(name, load, self._ttl_ms if ttl is None else round(ttl * 1_000))
                if value is not None:
                    return value
        except (RedisError, OSError, TimeoutError):
            # One read in a second finds out whether Redis is back; the others do not wait for it.
            self._around_until = asyncio.get_running_loop().time() + _AROUND_SECONDS
            self._count("bypass")
            return await load()
        # Invalidations keep coming in between. Load first, then remove what others may have stored meanwhile: in
        # this order nobody reads an older value after this one was returned.
        value = await load()
        await self.invalidate([key])
        return value

    async def cached(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Of these keys the values that are cached, in one round trip; it loads nothing and never fails."""
        different = list(dict.fromkeys(keys))
        if not different or not self._is_certified() or asyncio.get_running_loop().time() < self._around_until:
            return {}
        try:
            held: list[bytes | None] = await self._redis.mget(map(self._name, different))  # type: ignore[assignment]
        except (RedisError, OSError, TimeoutError):
            self._around_until = asyncio.get_running_loop().time() + _AROUND_SECONDS
            return {}
        found = {
            key: bytes(value[1 + _NONCE_BYTES :])
            for key, value in zip(different, held, strict=True)
            if value is not None and value[:1] == _VALUE
        }
        for key in keys:
            if key in found:
                self._count("hit")
        return found

    async def fill(self, keys: Sequence[str], load: Callable[[], Awaitable[Mapping[str, bytes]]]) -> int:
        """Load the values of many keys together and store those that are not cached; gives how many were stored.

        ``load`` is called once, after the leases were taken. Three round trips for every 500 keys. Raises
        RedisError if Redis is away.
        """
        if not self._is_certified():
            return 0
        leases = {key: _LEASE + os.urandom(_NONCE_BYTES) for key in dict.fromkeys(keys)}
        taken = await self._in_steps(
            list(leases),
            lambda pipe, key: pipe.set(self._name(key), leases[key], nx=True, px=_LEASE_MS),
        )
        if not any(taken):
            return 0
        values = await load()
        held = [key for key, is_taken in zip(leases, taken, strict=True) if is_taken and key in values]
        ttl = round(self._ttl_ms * random.uniform(0.9, 1.0))
        stored = await self._in_steps(
            held,
            lambda pipe, key: pipe.eval(
                _SWAP, 1, self._name(key), leases[key], _VALUE + leases[key][1:] + values[key], ttl
            ),
        )
        return sum(map(bool, stored))

    async def around(self, key: str, load: Load) -> bytes:
        """The value from its source, for as long as what is cached may be old. Only ``load`` can fail.

        Whatever is cached is removed afterwards, so that nobody reads an older value after this one.
        """
        value = await load()
        if asyncio.get_running_loop().time() >= self._around_until:
            try:
                await self.invalidate([key])
            except (RedisError, OSError, TimeoutError):
                self._around_until = asyncio.get_running_loop().time() + _AROUND_SECONDS
        return value

    async def invalidate(self, keys: Iterable[str]) -> None:
        """Remove values and leases; raises RedisError if it is not certain that they are gone."""
        self._is_certified()
        names = [self._name(key) for key in keys]
        if names:
            await self._redis.unlink(*names)

    def _is_certified(self) -> bool:
        certificate = self._certificate()
        if certificate is not None:
            self._last = certificate
        return certificate is not None

    def _name(self, key: str) -> str:
        return name_of(self._namespace, key, self._last)

    async def _in_steps(self, keys: Sequence[str], command: Callable[[Pipeline, str], Any]) -> list[Any]:
        """The results of a command for each key, some at a time, so that none of them takes too long."""
        results: list[Any] = []
        for start in range(0, len(keys), _KEYS_PER_STEP):
            async with self._redis.pipeline(transaction=False) as pipe:
                for key in keys[start : start + _KEYS_PER_STEP]:
                    command(pipe, key)
                results += await pipe.execute()
        return results

    async def _fill(self, name: str, load: Load, ttl_ms: int) -> bytes | None:
        """Load under a lease and store; None if the lease was lost meanwhile, so the value may be old."""
        nonce = os.urandom(_NONCE_BYTES)
        lease = _LEASE + nonce
        held: bytes | None = await self._redis.set(name, lease, nx=True, get=True, px=_LEASE_MS)  # type: ignore[assignment]
        if held is not None:
            held = await self._wait_for(name, held)
            if held is not None and held[:1] == _VALUE:
                return bytes(held[1 + _NONCE_BYTES :])
            taken = (
                await self._redis.set(name, lease, nx=True, px=_LEASE_MS)
                if held is None
                else await self._swap(keys=[name], args=[held, lease, _LEASE_MS])
            )
            if not taken:
                return None
        value = await load()
        ttl = round(ttl_ms * random.uniform(0.9, 1.0))
        stored = await self._swap(keys=[name], args=[lease, _VALUE + nonce + value, ttl])
        return value if stored else None

    async def _wait_for(self, name: str, held: bytes) -> bytes | None:
        """What the key holds once it is a value or gone; the other's lease if that takes too long."""
        deadline = asyncio.get_running_loop().time() + _WAIT_SECONDS
        pause = 0.002
        current: bytes | None = held
        while current is not None and current[:1] == _LEASE and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(pause * 2, 0.05)
            current = await self._redis.get(name)  # type: ignore[assignment]
        return current
