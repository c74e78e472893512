"""Keep a Redis cache free of stale keys (extras ``client`` and ``cache``)."""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, Literal, Self

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aiormq.exceptions import ChannelPreconditionFailed
from pydantic import BaseModel, ValidationError
from redis.asyncio import Redis, RedisCluster

from contracts.amqp import BROKEN_LINK, Link, lost_links_as_errors
from contracts.base import EVENT_TYPES, Event
from contracts.cache import CacheInvalidated
from contracts.cache_keys import DECLARED_HERE
from contracts.cache_store import REDIS_AWAY
from contracts.cancellation import end, heed_cancellation
from contracts.certificate import UNCERTIFIED, Certificate, name_of, name_of_certificate, name_of_progress
from contracts.certificate_watch import CertificateWatch, run_id_of
from contracts.heartbeat import Heartbeat
from contracts.key_spec import ANY, SPECS, KeySpec
from contracts.topology import EVENTS, HEARTBEATS, INVALIDATION_QUEUE_ARGUMENTS
from contracts.types import Instant

OnEvent = Callable[[Event[Any]], Awaitable[None]]

Why = Literal["start", "gap", "unreadable", "asked", "timeline", "run_id"]
"""Why all that is cached was left behind: nothing was known of it; an event is missing; one could not be read; it was
asked for; the database or the Redis server is another one than before."""

log = logging.getLogger(__name__)

_PREFETCH: Final = 200
_SILENCE_SECONDS: Final = 3.0
_ANSWER_SECONDS: Final = 2.0
_CERTIFIED_SECONDS: Final = 3.0
_MAX_LAG_SECONDS: Final = 2.0
_SWITCH_SECONDS: Final = _CERTIFIED_SECONDS + 1.0
"""How long readers may still go by a certificate that was replaced."""
_NAMES_AT_ONCE: Final = 500
_FIRST_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 10.0
_SCHEMA_VERSION: Final = 1

# KEYS: progress; ARGV: who takes over from now on. Gives the progress so far.
_TAKE: Final = """
redis.call('HSET', KEYS[1], 'holder', ARGV[1])
return redis.call('HGET', KEYS[1], 'state')
"""
# KEYS: progress, certificate; ARGV: who, progress, certificate or nothing, its time to live in ms (0 withdraws it).
# Gives 0, and does nothing, for who was taken over from.
_SAVE: Final = """
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'state', ARGV[2])
if ARGV[3] ~= '' then
  redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
elseif ARGV[4] == '0' then
  redis.call('DEL', KEYS[2])
end
return 1
"""


class _Progress(BaseModel):
    """What has been applied to the cache. It is kept in Redis, beside what it speaks of."""

    epoch: int
    spec_epochs: dict[str, int] = {}
    run_id: str
    timeline: str = ""
    term: int = 0
    kinds: list[str] = []
    """The kinds of keys that are kept fresh, by their patterns."""
    sequences: dict[str, int] | None = None
    """The number of the last event of each type; None until a heartbeat says where counting begins."""

    def certificate(self, as_of: datetime) -> Certificate:
        return Certificate(
            epoch=self.epoch,
            spec_epochs=self.spec_epochs,
            run_id=self.run_id,
            kinds=frozenset(self.kinds),
            as_of=as_of,
        )


@dataclass
class _Subscription:
    """What one channel brings. Its progress is read anew for each: another instance may have gone on meanwhile."""

    messages: asyncio.Queue[AbstractIncomingMessage] = field(default_factory=asyncio.Queue)
    holder: str = field(default_factory=lambda: secrets.token_hex(8))
    progress: _Progress | None = None
    left: list[tuple[Certificate, float]] = field(default_factory=list)
    """Epochs that readers may still be in, and until when."""


class _Event(BaseModel):
    """The part of every event that a cache needs, of kinds that this version does not know as well."""

    sequence: int
    occurred_at: Instant
    stale_keys: list[str]


@dataclass
class _Step:
    """What a batch of messages comes to, before any of it is done."""

    progress: _Progress
    keys: list[str] = field(default_factory=list)
    left: list[Certificate] = field(default_factory=list)
    why: list[Why] = field(default_factory=list)
    certificate: Certificate | None = None
    applied: list[_Event] = field(default_factory=list)
    """Events that made something stale."""


class _TakenOverError(Exception):
    """Another instance applies events now."""


class _DeclaredAnewError(ConnectionError):
    """A queue of an earlier version was in the way, and is not any more."""


class CacheInvalidator:
    """Removes from a Redis namespace what change events make stale, and certifies that nothing stale is left.

        async with CacheInvalidator(amqp_url, redis, queue="web.cache", namespace="web") as invalidator:
            cache = LeasedCache(redis, namespace="web", certificate=invalidator.certificate)

    Its queue is durable: events that come while nobody listens wait there. Any number of instances may share a queue
    and a namespace; one of them is served at a time.
    """

    def __init__(
        self,
        url: str,
        redis: Redis | RedisCluster,
        *,
        queue: str,
        namespace: str,
        bindings: Iterable[str] = ("#",),
        on_event: OnEvent | None = None,
        on_applied: Callable[[float, Sequence[str]], None] = lambda *_: None,
        on_new_epoch: Callable[[Why], None] = lambda _: None,
    ) -> None:
        """``bindings`` are routing keys of events, such as ``symbol.#``, or `KeySpec.events` of what is cached.

        Keys that depend on other events as well are not certified, so readers go around the cache for them.
        `cache.invalidated` comes in any case.

        ``on_event`` is called after the removal. ``on_applied`` is told, of each event that made something stale, how
        many seconds after the change it was gone, and which keys; ``on_new_epoch`` why everything was left behind.
        """
        self._redis: Any = redis
        self._queue = queue
        self._namespace = namespace
        self._bindings = (*bindings, CacheInvalidated.wire_name)
        self._on_event = on_event
        self._on_applied = on_applied
        self._on_new_epoch = on_new_epoch
        self._url = url
        self._link = Link(url, name=queue, setup=self._consume)
        self._watch = CertificateWatch(redis, namespace=namespace)
        self._task: asyncio.Task[None] | None = None
        self._subscription = _Subscription()
        self._is_held = False
        self._take = redis.register_script(_TAKE)
        self._save = redis.register_script(_SAVE)

    async def __aenter__(self) -> Self:
        try:
            await self._link.channel()
        except _DeclaredAnewError:
            await self._link.channel()
        self._task = asyncio.create_task(self.run(), name=f"invalidator {self._queue}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None  # noqa: S101 - made in __aenter__
        has_failed = self._task.done() and not self._task.cancelled()
        await end(self._task)
        await self.close()
        if has_failed and kind is None:
            self._task.result()

    async def close(self) -> None:
        """Close the connection; the queue stays and collects."""
        await self._link.close()

    def certificate(self) -> Certificate | None:
        """The certificate that is valid at this moment, whichever instance wrote it; a `LeasedCache` asks for it."""
        return None if self._is_held else self._watch.current()

    async def run(self) -> None:
        """Apply events until cancelled, reconnecting as often as need be.

        What it does not expect, as from ``on_event``, it logs, has another instance served if there is one, and
        begins anew; what was not acknowledged comes again.
        """
        watching = asyncio.create_task(
            self._again_and_again(self._watch.run), name=f"invalidator {self._queue} watches"
        )
        try:
            await self._again_and_again(self._apply_events)
        finally:
            await end(watching)

    async def _again_and_again(self, work: Callable[[], Awaitable[None]]) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            began = time.monotonic()
            try:
                await work()
            except (Exception, asyncio.CancelledError):
                heed_cancellation()
                log.exception("the invalidator of the queue %s failed; it begins anew", self._queue)
            if time.monotonic() - began > 2 * _LONGEST_PAUSE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            await asyncio.sleep(random.uniform(pause / 2, pause))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _apply_events(self) -> None:
        try:
            while True:
                try:
                    await self._link.channel()
                except BROKEN_LINK:
                    heed_cancellation()
                    await asyncio.sleep(random.uniform(0.1, 1))
                    continue
                await self._apply_next(self._subscription)
                heed_cancellation()
        except (Exception, asyncio.CancelledError):
            heed_cancellation()
            # With its channel open it would be served, and no other instance.
            self._is_held = False
            await self._link.close()
            raise

    async def _apply_next(self, subscription: _Subscription) -> None:
        """Apply what has arrived, or see whether the broker is there if nothing does."""
        try:
            async with asyncio.timeout(_SILENCE_SECONDS):
                batch = [await subscription.messages.get()]
        except TimeoutError:
            await self._ask()
            return
        while len(batch) < _PREFETCH and not subscription.messages.empty():
            batch.append(subscription.messages.get_nowait())
        is_applied = await self._apply(subscription, batch)
        heed_cancellation()
        if is_applied:
            await self._tell(batch)
            with suppress(*BROKEN_LINK), lost_links_as_errors():
                # If it is lost they come again, and removing keys twice does no harm.
                await batch[-1].ack(multiple=True)

    async def _ask(self) -> None:
        """A link that fell silent is noticed late by itself; where another instance is served, silence is usual."""
        try:
            channel = await self._link.channel()
            with lost_links_as_errors():
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await channel.declare_queue(self._queue, passive=True)
        except BROKEN_LINK:
            await self._link.close()  # the next one to need it opens a new one

    async def _apply(self, subscription: _Subscription, batch: list[AbstractIncomingMessage]) -> bool:
        """Whether the batch was applied; if not, it comes again, to this instance or another."""
        pause = 0.05
        while subscription is self._subscription and self._link.is_open:
            try:
                if subscription.progress is None:
                    subscription.progress = await self._so_far(subscription)
                await self._apply_to(subscription, subscription.progress, batch)
            except _TakenOverError:
                await self._link.close()
                return False
            except REDIS_AWAY:
                # The keys stay stale as long as Redis is away; the events are not done before they are gone.
                self._is_held = True
                await asyncio.sleep(random.uniform(pause / 2, pause))
                pause = min(pause * 2, 1.0)
            else:
                self._is_held = False
                return True
        self._is_held = False
        return False

    async def _so_far(self, subscription: _Subscription) -> _Progress:
        """Take over from whoever applied events before, where they stopped; from anew if that is not known."""
        held = await self._take(keys=[name_of_progress(self._namespace)], args=[subscription.holder])
        try:
            if held is not None:
                return _Progress.model_validate_json(held)
        except ValidationError:
            pass
        self._on_new_epoch("start")
        return _Progress(epoch=_next_epoch(0), run_id=await run_id_of(self._redis), kinds=self._kinds())

    def _kinds(self) -> list[str]:
        return _kinds_bound_by(self._bindings, tuple(SPECS.values()))

    async def _apply_to(
        self, subscription: _Subscription, before: _Progress, batch: list[AbstractIncomingMessage]
    ) -> None:
        step = _Step(before.model_copy(deep=True))
        kinds = self._kinds()
        if new := [kind for kind in kinds if kind not in before.kinds]:
            # Whoever applied events before did not look after these.
            _begin_epoch_of(step, *new)
        step.progress.kinds = kinds
        if any(message.exchange == HEARTBEATS.name for message in batch) and (
            (run_id := await run_id_of(self._redis)) != before.run_id
        ):
            step.progress.run_id = run_id
            _begin_epoch(step, "run_id")
        for message in batch:
            if message.exchange == HEARTBEATS.name:
                self._heed_heartbeat(step, message.body)
            else:
                self._heed_event(step, message)
        now = time.monotonic()
        left = [(epochs, until) for epochs, until in subscription.left if until > now]
        left += [(epochs, now + _SWITCH_SECONDS) for epochs in step.left]
        epochs = [step.progress.certificate(UNCERTIFIED.as_of), *(epochs for epochs, _ in left), UNCERTIFIED]
        await self._remove(step.keys, epochs)
        applied_at = datetime.now(UTC)
        if step.why:
            await self._remove_uncertified()
        await self._save_progress(subscription, step)
        subscription.progress, subscription.left = step.progress, left
        for why in step.why:
            self._on_new_epoch(why)
        for event in step.applied:
            self._on_applied((applied_at - event.occurred_at).total_seconds(), event.stale_keys)
        if step.certificate is not None or step.left:
            await self._watch.look()  # this instance's own readers follow at once

    def _heed_event(self, step: _Step, message: AbstractIncomingMessage) -> None:
        try:
            event = _Event.model_validate_json(message.body)
        except ValidationError:
            _begin_epoch(step, "unreadable")
            return
        kind, stale = message.routing_key or "", list(event.stale_keys)
        if (numbers := step.progress.sequences) is not None:
            last = numbers.get(kind, 0)
            numbers[kind] = max(event.sequence, last)  # a lower one is a repetition
            if event.sequence > last + 1:
                _begin_epoch(step, "gap")
        if message.headers.get("schema_version", _SCHEMA_VERSION) != _SCHEMA_VERSION:
            _begin_epoch(step, "unreadable")
        else:
            try:
                stale += _stale_keys_of_own_kinds(kind, message.body)
            except (ValidationError, KeyError, AttributeError) as error:
                what = error if isinstance(error, AttributeError) else type(error).__name__
                log.warning("which keys of one's own kinds %s makes stale cannot be told: %s", kind, what)
                _begin_epoch(step, "unreadable")
        if event.stale_keys:
            step.applied.append(event)
        for key in stale:
            if ANY not in key:
                step.keys.append(key)
            elif key in SPECS:
                _begin_epoch_of(step, key)
            else:
                _begin_epoch(step, "asked")

    def _heed_heartbeat(self, step: _Step, body: bytes) -> None:
        try:
            beat = Heartbeat.model_validate_json(body)
        except ValidationError:
            return  # no certificate, then
        progress = step.progress
        told = {kind: number for kind, number in beat.sequences.items() if _matches(kind, self._bindings)}
        if progress.timeline not in ("", beat.timeline):
            _begin_epoch(step, "timeline")
        elif beat.term < progress.term:
            return  # of an instance that does not know yet that it was relieved
        elif progress.sequences is not None and any(
            progress.sequences.get(kind, 0) < number for kind, number in told.items()
        ):
            _begin_epoch(step, "gap")
        if progress.sequences is None:
            # Nothing was certified under this epoch yet, so what was announced before is in all that it will hold.
            progress.sequences = told
        progress.timeline, progress.term = beat.timeline, beat.term
        if abs((datetime.now(UTC) - beat.as_of).total_seconds()) <= _MAX_LAG_SECONDS:
            step.certificate = progress.certificate(beat.as_of)

    async def _remove(self, keys: Iterable[str], epochs: Sequence[Certificate]) -> None:
        names = list(dict.fromkeys(name_of(self._namespace, key, epoch) for key in keys for epoch in epochs))
        for start in range(0, len(names), _NAMES_AT_ONCE):
            await self._redis.unlink(*names[start : start + _NAMES_AT_ONCE])

    async def _remove_uncertified(self) -> None:
        """Readers that ask for no certificate have no epoch that could be left behind."""
        pattern = name_of(self._namespace, "*")
        names = [name async for name in self._redis.scan_iter(match=pattern, count=1_000)]
        for start in range(0, len(names), _NAMES_AT_ONCE):
            await self._redis.unlink(*names[start : start + _NAMES_AT_ONCE])

    async def _save_progress(self, subscription: _Subscription, step: _Step) -> None:
        certificate = step.certificate.model_dump_json() if step.certificate is not None else ""
        lives = round(_CERTIFIED_SECONDS * 1_000) if certificate else 0 if step.why or step.left else -1
        is_ours = await self._save(
            keys=[name_of_progress(self._namespace), name_of_certificate(self._namespace)],
            args=[subscription.holder, step.progress.model_dump_json(), certificate, lives],
        )
        if not is_ours:
            raise _TakenOverError

    async def _tell(self, batch: list[AbstractIncomingMessage]) -> None:
        if self._on_event is None:
            return
        for message in batch:
            kind = EVENT_TYPES.get(message.routing_key or "") if message.exchange == EVENTS.name else None
            if kind is not None:
                with suppress(ValidationError):  # everything was left behind for it
                    await self._on_event(kind.model_validate_json(message.body))

    async def _consume(self, channel: AbstractChannel) -> None:
        # What an older channel delivered comes again on this one.
        self._subscription = subscription = _Subscription()
        await channel.set_qos(prefetch_count=_PREFETCH)
        try:
            queue = await channel.declare_queue(self._queue, durable=True, arguments={**INVALIDATION_QUEUE_ARGUMENTS})
        except ChannelPreconditionFailed:
            await self._remove_queue_of_earlier_version()
            raise _DeclaredAnewError(f"the queue {self._queue} has to be declared anew") from None
        for routing_key in self._bindings:
            await queue.bind(EVENTS.name, routing_key)
        await queue.bind(HEARTBEATS.name)
        await queue.consume(subscription.messages.put)

    async def _remove_queue_of_earlier_version(self) -> None:
        """It has other arguments and cannot be changed. As long as an earlier version consumes from it, it stays."""
        link = Link(self._url, name=f"{self._queue} anew")
        try:
            with lost_links_as_errors():
                channel = await link.channel()
                queue = await channel.declare_queue(self._queue, passive=True)
                if queue.declaration_result.consumer_count:
                    raise ConnectionError(f"the queue {self._queue} is in use by an earlier version; stop that first")
                await queue.delete(if_unused=False, if_empty=False)
        finally:
            await link.close()


def _begin_epoch(step: _Step, why: Why) -> None:
    """Leave behind all that is cached, and the certificate for it."""
    _leave(step)
    step.progress.epoch = _next_epoch(step.progress.epoch)
    step.progress.spec_epochs = {}
    step.progress.sequences = None
    step.why.append(why)


def _begin_epoch_of(step: _Step, *patterns: str) -> None:
    """Leave behind all keys of some kinds."""
    _leave(step)
    own = step.progress.spec_epochs
    for pattern in patterns:
        own[pattern] = _next_epoch(own.get(pattern, 0))


def _stale_keys_of_own_kinds(event: str, body: bytes) -> list[str]:
    """The service does not know kinds of keys that a subscriber declares, so its events do not list them."""
    own = [spec for spec in SPECS.values() if spec.pattern not in DECLARED_HERE and event in spec.events]
    changes = EVENT_TYPES[event].model_validate_json(body).changes if own else []
    return [key for change in changes for spec in own for key in spec.stale_keys(event, change.before, change.after)]


@lru_cache
def _kinds_bound_by(bindings: tuple[str, ...], specs: tuple[KeySpec, ...]) -> list[str]:
    """Of which kinds of keys all events come, by their patterns. One that nobody sends, as by a slip, does not."""
    return [
        spec.pattern
        for spec in specs
        if all(event in EVENT_TYPES and _matches(event, bindings) for event in spec.events)
    ]


def _leave(step: _Step) -> None:
    step.left.append(step.progress.certificate(UNCERTIFIED.as_of).model_copy(deep=True))
    step.certificate = None


def _next_epoch(last: int) -> int:
    """Higher than any before, also where Redis has forgotten which there were."""
    return max(last + 1, time.time_ns() // 1_000_000)


def _matches(routing_key: str, patterns: Iterable[str]) -> bool:
    """Whether a topic exchange brings what is sent under this key to a queue with one of these bindings."""
    words = routing_key.split(".")
    return any(_fits(words, pattern.split(".")) for pattern in patterns)


def _fits(words: Sequence[str], pattern: Sequence[str]) -> bool:
    match pattern:
        case []:
            return not words
        case ["#", *rest]:
            return any(_fits(words[start:], rest) for start in range(len(words) + 1))
        case [first, *rest]:
            return bool(words) and first in ("*", words[0]) and _fits(words[1:], rest)
    return False
