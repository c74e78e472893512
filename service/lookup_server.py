"""Answers lookups, from the cache where it can."""

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import structlog
from aiormq.abc import DeliveredMessage
from prometheus_client import Counter, Histogram

from contracts.amqp import BROKEN_LINK, lost_links_as_errors
from contracts.base import LOOKUP_TYPES, ErrorBody, Lookup, Reply, answer_adapter
from contracts.errors import ErrorCode, Refusal
from contracts.leased_cache import LeasedCache, Loaded
from contracts.topology import AFTER_HEADER, FRESH_HEADER
from service.consumers import read_delivery
from service.database import SessionMaker, current_snapshot
from service.errors import is_transient, refusal_for
from service.lookups import ANSWERS
from service.observability import LOOKUP_SECONDS, LOOKUPS_ANSWERED
from service.publisher import Addressed, Publisher
from service.received import Received
from service.registry import Answer
from service.senders import Senders
from service.unit_of_work import UnitOfWork

log = structlog.get_logger()

_AT_ONCE: Final = 100
"""Lookups that may be at the database at the same time; more would only wait for its connections."""
_NOTHING: Final = b"null"
_TOKEN: Final = re.compile(r"[0-9]{1,20}").fullmatch
_OPEN_AT_MOST: Final = 1_000
"""Lookups that may be taken before some of them are answered."""


@dataclass(slots=True)
class _Asked:
    """A question on its way to its answer."""

    received: Received
    at: float
    lookup: Lookup[Any] | None = None

    @property
    def name(self) -> str:
        return self.received.command if self.received.command in LOOKUP_TYPES else "unknown"


class LookupServer:
    """Reads a question, gives an answer; never writes."""

    def __init__(
        self,
        sessions: SessionMaker,
        cache: LeasedCache,
        publisher: Publisher,
        answers: Mapping[type[Lookup[Any]], Answer] = ANSWERS,
        *,
        require_user: bool = False,
        senders: Senders | None = None,
        on_hit: Callable[[str, Lookup[Any]], None] = lambda *_: None,
    ) -> None:
        """With ``require_user`` secrets are given only to askers whose login the broker has checked.

        ``on_hit`` is told of each question that is answered out of the cache, and under which key.
        """
        self._sessions = sessions
        self._cache = cache
        self._publisher = publisher
        self._answers = answers
        self._require_user = require_user
        self._senders = senders or Senders()
        self._on_hit = on_hit
        self._loading = asyncio.Semaphore(_AT_ONCE)
        self._arrived: list[_Asked] = []
        self._newest: DeliveredMessage | None = None
        self._answering: asyncio.Task[None] | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._is_finished = False

    def take(self, delivery: DeliveredMessage) -> None:
        """Begin to answer a delivery. Nothing is awaited."""
        if self._is_finished:
            return
        self._newest = delivery
        self._arrived.append(_Asked(read_delivery(delivery), time.perf_counter()))
        if self._answering is None or self._answering.done():
            self._answering = asyncio.create_task(self._answer_what_arrives())

    async def finish(self) -> None:
        """Take no more, and return when every lookup taken so far is answered."""
        self._is_finished = True
        while self._answering is not None and not self._answering.done():
            await asyncio.wait([self._answering])
        while self._open:
            await asyncio.wait(self._open)

    async def _answer_what_arrives(self) -> None:
        """Answer what has arrived together out of the cache, while the next ones collect.

        Acknowledged is in one frame all that was taken. That is before it is answered, since a lookup that gets lost
        is asked again; but not while so many are open that taking more would only pile them up.
        """
        while self._arrived and self._newest is not None:
            asked, self._arrived = self._arrived, []
            newest = self._newest
            await self._answer_together(asked)
            while len(self._open) > _OPEN_AT_MOST:
                await asyncio.wait(self._open, return_when=asyncio.FIRST_COMPLETED)
            with suppress(*BROKEN_LINK), lost_links_as_errors():
                await newest.channel.basic_ack(newest.delivery_tag or 0, multiple=True, wait=False)

    async def _answer_together(self, asked: Sequence[_Asked]) -> None:
        """Answer at once what is cached, and begin to load the rest, once for all who asked for the same."""
        keys = [self._key_at_hand(each) for each in asked]
        cached = await self._cache.cached([key for key in keys if key is not None])
        answers = []
        missing: dict[str, list[_Asked]] = {}
        for each, key in zip(asked, keys, strict=True):
            if key is None:
                self._begin([each])
            elif key not in cached:
                missing.setdefault(key, []).append(each)
            else:
                if each.lookup is not None:
                    self._on_hit(key, each.lookup)
                if each.received.answerable is not None:
                    reply = _done(each, cached[key] or _NOTHING)
                    answers.append(Addressed(each.received.answerable, each.received.correlation_id, reply))
        for same in missing.values():
            self._begin(same)
        if answers:
            await self._publisher.answer(answers)

    def _begin(self, same: Sequence[_Asked]) -> None:
        answering = asyncio.create_task(self._answer_alike(same))
        self._open.add(answering)
        answering.add_done_callback(self._open.discard)

    def _key_at_hand(self, asked: _Asked) -> str | None:
        """Under which key the answer may be cached; None if it takes more than that to answer."""
        headers = asked.received.headers
        if self._senders.are_limited or headers.get(FRESH_HEADER) is True or AFTER_HEADER in headers:
            return None
        try:
            lookup = self._read(asked)
            answer = self._answers[type(lookup)]
            return None if lookup.restricted or answer.key is None else answer.key(lookup)
        except Exception:  # noqa: BLE001 - who answers it alone says what is wrong with it
            return None

    async def _answer_alike(self, same: Sequence[_Asked]) -> None:
        """Answer who asked for the same before it was begun to be loaded."""
        first, *others = same
        outcome, reply = await self._reply(first)
        for other in others:
            LOOKUPS_ANSWERED.labels(lookup=other.name, outcome=outcome).inc()
        await self._publisher.answer(
            [
                Addressed(each.received.answerable, each.received.correlation_id, reply)
                for each in same
                if each.received.answerable is not None
            ]
        )

    async def reply(self, received: Received) -> bytes:
        """The reply to a question, whatever becomes of it."""
        _, reply = await self._reply(_Asked(received, time.perf_counter()))
        return reply

    async def _reply(self, asked: _Asked) -> tuple[str, bytes]:
        """The reply, and what to count it as."""
        received = asked.received
        try:
            lookup = self._read(asked)
            await self._judge_sender(received, lookup)
            after = _token(received)
            data = await self.answer(lookup, fresh=received.headers.get(FRESH_HEADER) is True, after=after)
        except Exception as error:  # noqa: BLE001 - every question gets an answer
            refusal = _refusal(received, error)
            LOOKUPS_ANSWERED.labels(lookup=asked.name, outcome=refusal.code.value).inc()
            body = ErrorBody(
                code=refusal.code, message=refusal.message, field=refusal.field, retryable=refusal.retryable
            )
            return refusal.code.value, Reply(ok=False, error=body).model_dump_json(exclude_none=True).encode()
        if lookup.restricted and data != b"null":
            log.info(
                "credentials_given_out",
                lookup=asked.name,
                about=lookup.model_dump(mode="json", exclude={"public_key"}),
                user_id=received.user_id,
                app_id=received.app_id,
            )
        return "ok", _done(asked, data)

    def _read(self, asked: _Asked) -> Lookup[Any]:
        """The question in a message; raises `Refusal` that names what is wrong."""
        if asked.lookup is None:
            kind = LOOKUP_TYPES.get(asked.received.command)
            require_user = self._require_user and kind is not None and kind.restricted
            lookup = asked.received.read_as(LOOKUP_TYPES, require_user=require_user)
            assert isinstance(lookup, Lookup)  # noqa: S101 - the table holds nothing else
            asked.lookup = lookup
        return asked.lookup

    async def _judge_sender(self, received: Received, lookup: Lookup[Any]) -> None:
        if not self._senders.are_limited:
            return
        async with self._sessions() as session:
            [refusal] = await self._senders.judge(session, [(received.user_id, lookup)])
        if refusal is not None:
            raise refusal

    async def answer(self, lookup: Lookup[Any], *, fresh: bool = False, after: str | None = None) -> bytes:
        """The answer as JSON. A ``fresh`` one is never older than the question, one ``after`` a commit shows it."""
        answer = self._answers[type(lookup)]
        if answer.source is not None and answer.derive is not None:
            source = answer.source(lookup)
            value = answer_adapter(type(source)).validate_json(await self.answer(source, fresh=fresh, after=after))
            derived = answer.derive(value)
            if isinstance(derived, Lookup):
                return await self.answer(derived, fresh=fresh, after=after)
            return _dump(lookup, derived)
        key = answer.key(lookup) if answer.key is not None else None
        if key is None or fresh:
            data = (await self._load(lookup, answer)).value
        else:
            data = await self._cache.get(key, lambda: self._load(lookup, answer, is_cached=True), after=after)
        return _NOTHING if data is None else data

    async def _load(self, lookup: Lookup[Any], answer: Answer, *, is_cached: bool = False) -> Loaded:
        assert answer.load is not None  # noqa: S101 - what is not derived is loaded
        async with self._loading, self._sessions() as session:
            # A transaction of its own, begun now: what it reads is not older than the question.
            if answer.connects:
                await session.connection(execution_options={"postgresql_readonly": True})
            snapshot = await current_snapshot(session) if is_cached else ""
            found = await answer.load(lookup, UnitOfWork(session))
            return Loaded(None if found is None else _dump(lookup, found), snapshot)


def _token(received: Received) -> str | None:
    """The commit that the answer has to show."""
    token = received.headers.get(AFTER_HEADER)
    if token is not None and not (isinstance(token, str) and _TOKEN(token)):
        raise Refusal(ErrorCode.VALIDATION, "is not a commit token, which consists of digits", field=AFTER_HEADER)
    return token


def _done(asked: _Asked, data: bytes) -> bytes:
    """The reply that is the answer, as the bytes it is: it is neither read nor written again."""
    answered, seconds = _metrics(asked.name)
    answered.inc()
    seconds.observe(time.perf_counter() - asked.at)
    return b'{"ok":true,"data":' + data + b',"meta":{}}'


@cache
def _metrics(name: str) -> tuple[Counter, Histogram]:
    return LOOKUPS_ANSWERED.labels(lookup=name, outcome="ok"), LOOKUP_SECONDS.labels(lookup=name)


def _dump(lookup: Lookup[Any], value: Any) -> bytes:
    return answer_adapter(type(lookup)).dump_json(value)


def _refusal(received: Received, error: Exception) -> Refusal:
    if (refusal := refusal_for(error)) is not None:
        return refusal
    if is_transient(error):
        log.warning("lookup_unavailable", lookup=received.command, error=type(error).__name__)
        return Refusal(ErrorCode.UNAVAILABLE, "the database does not answer; ask again", retryable=True)
    log.error("lookup_failed", lookup=received.command, exc_info=error)
    return Refusal(ErrorCode.INTERNAL, "the service failed on this lookup; its log says where")
