"""Keep a Redis cache free of stale keys (extras ``client`` and ``cache``)."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from pydantic import BaseModel, ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from contracts.amqp import BROKEN_LINK, Link, lost_links_as_errors
from contracts.base import EVENT_TYPES, Event
from contracts.cache import CacheInvalidated
from contracts.certificate import name_of
from contracts.topology import EVENT_QUEUE_ARGUMENTS, EVENTS

OnEvent = Callable[[Event[Any]], Awaitable[None]]

_PREFETCH: Final = 200
_ASK_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 2.0


class CacheInvalidator:
    """Removes from a Redis namespace what change events make stale, and acknowledges only when it is gone.

    Its queue is durable: events that come while nobody listens wait there.

        async with CacheInvalidator(amqp_url, redis, queue="web.cache", namespace="web"):
            ...
    """

    def __init__(
        self,
        url: str,
        redis: Redis,
        *,
        queue: str,
        namespace: str,
        bindings: Sequence[str] = ("#",),
        on_event: OnEvent | None = None,
    ) -> None:
        """``bindings`` are routing keys of events, such as ``symbol.#``; ``on_event`` is called after the removal.

        `cache.invalidated` is listened to in any case.
        """
        self._redis = redis
        self._queue = queue
        self._namespace = namespace
        self._bindings = bindings
        self._on_event = on_event
        self._link = Link(url, name=queue, setup=self._consume)
        self._task: asyncio.Task[None] | None = None
        self._is_held = False
        self._missed = 0
        self._answered = 0.0
        """When the question was asked that the broker has answered last."""
        self._messages: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        await self._link.channel()
        self._task = asyncio.create_task(self.run(), name=f"invalidator {self._queue}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.close()

    async def close(self) -> None:
        """Close the connection; the queue stays and collects."""
        await self._link.close()

    @property
    def is_current(self) -> bool:
        """Whether every event that has arrived at the queue was applied, as far as can be known here.

        False while the broker or Redis is away and until what was missed meanwhile is made up for; a reader goes
        around the cache then.
        """
        unheard = asyncio.get_running_loop().time() - self._answered
        is_heard = unheard < _ASK_SECONDS + _ANSWER_SECONDS + 1
        return self._link.is_open and is_heard and not self._is_held and self._missed <= 0

    async def run(self) -> None:
        """Apply events until cancelled, reconnecting as often as need be."""
        asking = asyncio.create_task(self._ask(), name=f"invalidator {self._queue} asks")
        try:
            await self._apply_all()
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _ask(self) -> None:
        """See that the broker is there: a link that fell silent brings no events, and is noticed late."""
        while True:
            asked = asyncio.get_running_loop().time()
            try:
                channel = await self._link.channel()
                with lost_links_as_errors():
                    async with asyncio.timeout(_ANSWER_SECONDS):
                        await channel.declare_queue(self._queue, passive=True)
            except BROKEN_LINK:
                await self._link.close()  # the next one to need it opens a new one
            else:
                self._answered = asked
            await asyncio.sleep(_ASK_SECONDS)

    async def _apply_all(self) -> None:
        while True:
            try:
                await self._link.channel()
                async with asyncio.timeout(1):
                    message = await self._messages.get()
            except TimeoutError:
                continue
            except BROKEN_LINK:
                await asyncio.sleep(random.uniform(0.1, 1))
                continue
            await self._apply(message)

    async def _apply(self, message: AbstractIncomingMessage) -> None:
        pause = 0.05
        stale_keys = _stale_keys(message.body)
        while True:
            try:
                await self._remove(stale_keys)
            except (RedisError, OSError, TimeoutError):
                # The keys stay stale as long as Redis is away; the event is not done before they are gone.
                self._is_held = True
                await asyncio.sleep(random.uniform(0, pause))
                pause = min(pause * 2, 1.0)
                continue
            break
        self._is_held = False
        self._missed -= 1
        kind = EVENT_TYPES.get(message.routing_key or "")
        if self._on_event is not None and kind is not None:
            await self._on_event(kind.model_validate_json(message.body))
        with suppress(*BROKEN_LINK), lost_links_as_errors():
            # If it is lost it comes again, and removing keys twice does no harm.
            await message.ack()

    async def _remove(self, stale_keys: list[str] | None) -> None:
        if stale_keys is None:
            await self._remove_all()
        elif stale_keys:
            await self._redis.unlink(*(name_of(self._namespace, key) for key in stale_keys))

    async def _remove_all(self) -> None:
        """An event that cannot be read may have made anything stale."""
        pattern = name_of(self._namespace, "*")
        names = [name async for name in self._redis.scan_iter(match=pattern, count=1_000)]
        if names:
            await self._redis.unlink(*names)

    async def _consume(self, channel: AbstractChannel) -> None:
        # What an older channel delivered comes again on this one.
        self._messages = asyncio.Queue()
        await channel.set_qos(prefetch_count=_PREFETCH)
        queue = await channel.declare_queue(self._queue, durable=True, arguments=dict(EVENT_QUEUE_ARGUMENTS))
        self._missed = queue.declaration_result.message_count or 0
        for routing_key in (*self._bindings, CacheInvalidated.wire_name):
            await queue.bind(EVENTS.name, routing_key)
        await queue.consume(self._messages.put)


class _Stale(BaseModel):
    """The part of every event that a cache needs, of kinds that this version does not know as well."""

    stale_keys: list[str]


def _stale_keys(body: bytes) -> list[str] | None:
    """What the event makes stale, or None if it cannot be read."""
    try:
        return _Stale.model_validate_json(body).stale_keys
    except ValidationError:
        return None
