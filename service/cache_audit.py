"""Compares what is cached with the database, where nobody should be able to tell the difference.

A value that differs is looked at again after 1, 5 and 60 seconds, and counts as stale for that long only if it is the
very same entry still: one that was stored anew meanwhile has another nonce. So what is reported was stale, and how
long at least. After K. Chen et al., "Cache made consistent: Meta's cache invalidation solution", 2022 (Polaris).
"""

import asyncio
import json
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import structlog
from pydantic import ValidationError
from redis.asyncio import Redis

from contracts.base import Lookup
from contracts.cache_entry import LEASE, Entry
from contracts.cache_store import REDIS_AWAY
from contracts.certificate import CertificateSource, name_of
from contracts.key_spec import spec_of
from service.errors import is_transient
from service.lookups import ANSWERS
from service.observability import CACHE_AUDITED, CACHE_STALE

log = structlog.get_logger()

Ask = Callable[[Lookup[Any]], Awaitable[bytes]]
"""Answers a question from the database, as JSON."""

WINDOWS: Final = (1.0, 5.0, 60.0)
"""Seconds after which an entry that differs is looked at again."""
_NOTHING: Final = b"null"
_WAITING_AT_MOST: Final = 100


class Held(NamedTuple):
    """What Redis holds under a key, which is a value and no lease."""

    head: bytes
    value: bytes


@dataclass(frozen=True)
class Stale:
    """An entry that was wrong for so many seconds at least."""

    key: str
    seconds: float


class CacheAudit:
    """Looks at cached entries, one after the other."""

    def __init__(self, redis: Redis, *, namespace: str, certificate: CertificateSource, ask: Ask) -> None:
        """``certificate`` tells under which names readers find their values; without one nothing is compared."""
        self._redis = redis
        self._namespace = namespace
        self._certificate = certificate
        self._ask = ask

    async def held(self, key: str) -> Held | None:
        """What readers are given for ``key`` at this moment; None if that is nothing. Raises RedisError."""
        certificate = self._certificate()
        if certificate is None:
            return None
        held: Any = await self._redis.get(name_of(self._namespace, key, certificate))
        if held is None or held[0] == LEASE:
            return None
        entry = Entry(held)
        return Held(entry.head, _NOTHING if entry.value is None else entry.value)

    async def is_right(self, key: str, question: Lookup[Any]) -> tuple[bool, Held | None]:
        """Whether what is cached is what the database says, and what that was."""
        held = await self.held(key)
        return held is None or _same(held.value, await self._ask(question)), held

    async def stale(self, key: str, question: Lookup[Any], windows: Sequence[float] = WINDOWS) -> float:
        """For how many seconds at least the entry was stale: the longest of ``windows``, or 0."""
        is_right, first = await self.is_right(key, question)
        longest = waited = 0.0
        for window in windows:
            if is_right:
                break
            await asyncio.sleep(window - waited)
            waited = window
            is_right, held = await self.is_right(key, question)
            if is_right or first is None or held is None or held.head != first.head:
                break
            longest = window
        CACHE_AUDITED.inc()
        return longest


class CacheAuditor:
    """Audits a sample of what is read and of what events made stale, for as long as the service runs."""

    def __init__(self, audit: CacheAudit, *, events: float, hits: float) -> None:
        """``events`` and ``hits`` are the shares of events, and of reads out of the cache, that are looked at."""
        self._audit = audit
        self._events = events
        self._hits = hits
        self._waiting: asyncio.Queue[tuple[str, Lookup[Any]]] = asyncio.Queue(_WAITING_AT_MOST)

    def after_hit(self, key: str, question: Lookup[Any]) -> None:
        """A reader was given what is cached under ``key``."""
        if random.random() < self._hits:
            self._put(key, question)

    def after_event(self, keys: Sequence[str]) -> None:
        """These keys were removed, and are loaded anew by now or soon."""
        if random.random() < self._events:
            for key in keys:
                if (question := question_of(key)) is not None:
                    asyncio.get_running_loop().call_later(WINDOWS[0], self._put, key, question)

    def _put(self, key: str, question: Lookup[Any]) -> None:
        if not self._waiting.full():  # it is a sample
            self._waiting.put_nowait((key, question))

    async def run(self) -> None:
        """Look at what was put aside, until cancelled. Outages are waited out."""
        async with asyncio.TaskGroup() as looking:
            room = asyncio.Semaphore(10)
            while True:
                key, question = await self._waiting.get()
                await room.acquire()
                looking.create_task(self._look(key, question)).add_done_callback(lambda _: room.release())

    async def _look(self, key: str, question: Lookup[Any]) -> None:
        try:
            seconds = await self._audit.stale(key, question)
        except Exception as error:
            if not (isinstance(error, REDIS_AWAY) or is_transient(error)):
                raise
            return
        if seconds:
            CACHE_STALE.labels(window=f"{seconds:g}").inc()
            log.error("stale_cache_entry", key=key, seconds=seconds)


def question_of(key: str) -> Lookup[Any] | None:
    """The lookup whose answer is cached under a logical key, and kept fresh by events; None if there is none."""
    for pattern, kind in _patterns():
        if (found := pattern.fullmatch(key)) is None:
            continue
        try:
            question = kind.model_validate_strings({name: unquote(part) for name, part in found.groupdict().items()})
        except ValidationError:
            continue
        if _key(question) == key:
            return question
    return None


@cache
def _patterns() -> list[tuple[re.Pattern[str], type[Lookup[Any]]]]:
    """What the keys of each lookup look like. Those that live by their time alone are old by design."""
    patterns = []
    for kind, answer in ANSWERS.items():
        if answer.key is None:
            continue
        like: dict[str, Any] = {name: f"<{name}>" for name in kind.model_fields}
        # Of some only the plain question is cached.
        template = answer.key(kind.model_construct(**like)) or answer.key(kind()) or ""
        if spec_of(template).ttl is not None:
            continue
        named = re.sub(r"<(\w+)>", r"(?P<\1>[^:]+)", re.escape(template))
        patterns.append((re.compile(named), kind))
    return patterns


def _key(question: Lookup[Any]) -> str | None:
    key = ANSWERS[type(question)].key
    return None if key is None else key(question)


def _same(cached: bytes, stored: bytes) -> bool:
    return cached == stored or bool(json.loads(cached) == json.loads(stored))
