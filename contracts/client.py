"""Speak with the service: publish commands, and ask (extra ``client``)."""

import asyncio
import os
import random
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from uuid import UUID, uuid4

from aio_pika import DeliveryMode
from aio_pika.exceptions import PublishError
from aiormq.abc import DeliveredMessage
from pydantic import ValidationError

from contracts.amqp import BROKEN_LINK, ChannelNotFoundEntity, WireLink
from contracts.base import Command, ErrorBody, Lookup, Meta, Reply, Request, answer_adapter
from contracts.errors import ErrorCode, LoginRefused, NotConfirmed, Refusal, Unroutable
from contracts.frames import Message, properties, table
from contracts.topology import AFTER_HEADER, COMMANDS, FRESH_HEADER, LOOKUPS, MAX_COMMAND_BYTES
from contracts.wire import Wire

R = TypeVar("R")

_REPLY_TO: Final = "amq.rabbitmq.reply-to"
_HEADERS: Final = {"schema_version": 1}
_PLAIN_HEADERS: Final = table(_HEADERS)

# A confirm that takes longer is taken for a dead link, and the message is sent again on a new one.
_ATTEMPT_SECONDS: Final = 10.0
# Who waited for less than this has learnt nothing about the link.
_TOO_SOON_SECONDS: Final = 0.1

_CLOSED: Final = "the client was closed"


def new_message_id() -> UUID:
    """A UUID of version 7 (RFC 9562): it begins with the time in milliseconds, so ids made later sort later."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | int.from_bytes(os.urandom(10), "big")
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    return UUID(int=(value & ~(0x3 << 62)) | (0x2 << 62))


class PersistenceClient:
    """A bot's or service's side of the conversation; one instance serves any number of tasks.

    It connects at the first use and again whenever the link broke, so it survives a restart of the broker. Once it
    is closed it stays so: whatever is asked of it then raises ``ConnectionError``.

        async with PersistenceClient("amqp://...") as client:
            await client.publish(RecordTrade(...))
            symbol = await client.lookup(GetSymbol(symbol="BTC/USDT", cat_ex_id=1))
    """

    def __init__(
        self,
        url: str,
        *,
        app_id: str = "persistence-client",
        user_id: str | None = None,
        confirm_timeout: float = 30.0,
        answer_timeout: float = 5.0,
    ) -> None:
        """``url`` is ``amqp://user:password@host:port/vhost``, or ``amqps://``; ValueError if it is none.

        ``confirm_timeout`` and ``answer_timeout`` are seconds; each call can be given its own, of which 0 means not
        to wait. ``user_id`` must be the login of ``url``: the broker refuses any other.
        """
        self._app_id = app_id
        self._user_id = user_id
        self._confirm_timeout = confirm_timeout
        self._answer_timeout = answer_timeout
        self._link = WireLink(url, name=app_id, setup=self._consume_replies)
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._is_closed = False

    async def __aenter__(self) -> Self:
        self._check()
        await self._link.channel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection for good. Calls that are still under way end with ``ConnectionError``."""
        self._is_closed = True
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionError(_CLOSED))
        await self._link.close()

    def _check(self) -> None:
        if self._is_closed:
            raise ConnectionError(_CLOSED)

    async def publish(
        self,
        command: Command[Any],
        *,
        message_id: UUID | None = None,
        headers: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> UUID:
        """Hand a command to the broker, for good; gives its message id.

        When this returns, the broker has stored the command and the service will carry it out exactly once or put
        it among the dead letters. Broken links are repaired and the same message is sent again under the same id
        until ``timeout`` (seconds) is over. Raises `NotConfirmed` then (whether it was stored is unknown, and
        publishing it again under the same ``message_id`` is safe), and without waiting `Unroutable` if there is no
        service, `LoginRefused` if the broker refuses user or password, and `Refusal` for a command that is too large.
        """
        message_id = message_id or new_message_id()
        message = self._message(COMMANDS.name, command.wire_name, _body(command), message_id, headers=headers)
        await self._hand_over(message, _given(timeout, self._confirm_timeout))
        return message_id

    async def publish_bytes(
        self,
        name: str,
        body: bytes,
        *,
        message_id: UUID,
        headers: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> None:
        """Hand over a command as it was written down earlier, byte by byte; otherwise as `publish`."""
        message = self._message(COMMANDS.name, name, body, message_id, headers=headers)
        await self._hand_over(message, _given(timeout, self._confirm_timeout))

    async def call(
        self,
        command: Command[R],
        *,
        message_id: UUID | None = None,
        headers: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> R:
        """Publish a command and wait until it is carried out; gives its answer.

        Raises `Refusal` with the service's code and field if it is refused, and with code ``timeout`` if no answer
        came within ``timeout`` seconds; the command may still be carried out then, and calling again with the same
        ``message_id`` gives the answer without a second effect.
        """
        answer, _ = await self.call_with_meta(command, message_id=message_id, headers=headers, timeout=timeout)
        return answer

    async def call_with_meta(
        self,
        command: Command[R],
        *,
        message_id: UUID | None = None,
        headers: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> tuple[R, Meta]:
        """As `call`, with the reply's meta: whether it is a duplicate, the row's version, the commit token."""
        return await self._ask(
            command, COMMANDS.name, message_id or new_message_id(), headers, _given(timeout, self._answer_timeout)
        )

    async def lookup(
        self, lookup: Lookup[R], *, fresh: bool = False, after: str | None = None, timeout: float | None = None
    ) -> R:
        """The answer to a question. Any number may be asked at once.

        ``fresh`` has it read from the database instead of the service's cache, which may hear of a change later than
        the caller: whoever keeps the answer in a cache of its own needs that, or its cache may keep an older one.
        With ``after``, the commit token of a command's reply or of an event, the answer shows what was stored then.
        Raises `Refusal`, with code ``timeout`` if no answer came within ``timeout`` seconds.
        """
        headers = {**({FRESH_HEADER: True} if fresh else {}), **({AFTER_HEADER: after} if after else {})}
        answer, _ = await self._ask(lookup, LOOKUPS.name, uuid4(), headers, _given(timeout, self._answer_timeout))
        return answer

    async def _ask(
        self, request: Request[R], exchange: str, message_id: UUID, headers: Mapping[str, Any] | None, timeout: float
    ) -> tuple[R, Meta]:
        """The answer to a request, which is handed over again under the same ids if the link breaks meanwhile."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        correlation_id = str(uuid4())
        is_command = isinstance(request, Command)
        message = self._message(
            exchange,
            request.wire_name,
            _body(request),
            message_id,
            headers=headers,
            reply=correlation_id,
            expiration=None if is_command else timeout,
        )
        try:
            while True:
                reply = self._waiting[correlation_id] = loop.create_future()
                asked_at = loop.time()
                # A question that gets lost is not answered: no need to wait for its confirm.
                await self._hand_over(message, max(deadline - asked_at, 0.001), confirm=is_command)
                try:
                    async with asyncio.timeout_at(deadline):
                        body = await reply
                except ConnectionResetError:
                    continue  # the reply queue died with the link
                except TimeoutError:
                    await self._doubt_link(asked_at)
                    raise
                return _read(request, body)
        except (TimeoutError, NotConfirmed):
            raise Refusal(
                ErrorCode.TIMEOUT, f"no answer to {request.wire_name} within {timeout:g} s", retryable=True
            ) from None
        finally:
            self._waiting.pop(correlation_id, None)

    async def _doubt_link(self, asked_at: float) -> None:
        """Have a new link opened if the broker has not even confirmed what was sent since then."""
        if self._link.opened is not None and self._link.opened.heard_at < asked_at and _is_long_ago(asked_at):
            await self._link.close()

    def _message(
        self,
        exchange: str,
        name: str,
        body: bytes,
        message_id: UUID,
        *,
        headers: Mapping[str, Any] | None,
        reply: str | None = None,
        expiration: float | None = None,
    ) -> Message:
        head = properties(
            content_type="application/json",
            headers=table({**_HEADERS, **headers}) if headers else _PLAIN_HEADERS,
            # Only a question is worth nothing after a while.
            delivery_mode=DeliveryMode.PERSISTENT if expiration is None else DeliveryMode.NOT_PERSISTENT,
            correlation_id=reply,
            reply_to=_REPLY_TO if reply else None,
            expiration=expiration,
            message_id=str(message_id),
            message_type=name,
            user_id=self._user_id,
            app_id=self._app_id,
        )
        return Message(exchange, name, head, body, mandatory=True, message_id=str(message_id))

    async def _hand_over(self, message: Message, timeout: float, *, confirm: bool = True) -> None:
        """Return when the broker has a message, for good if that is to be confirmed; tried again until then."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        pause = 0.05
        while True:
            self._check()
            begun_at = loop.time()
            try:
                async with asyncio.timeout_at(min(deadline, begun_at + _ATTEMPT_SECONDS)):
                    wire = await self._link.channel()
                    await wire.room()
                    if confirm:
                        await wire.publish_confirmed([message])
                    else:
                        wire.publish(message)
            except (PublishError, ChannelNotFoundEntity):
                raise _unroutable(message.routing_key) from None
            except LoginRefused:
                raise
            except BROKEN_LINK as error:
                if isinstance(error, TimeoutError) and _is_long_ago(begun_at):
                    await self._link.close()
                if loop.time() + pause >= deadline:
                    raise NotConfirmed(
                        f"{message.routing_key} {message.message_id} was not confirmed within {timeout:g} s: "
                        f"{type(error).__name__}"
                    ) from error
                # Full jitter on a doubling base, so that bots do not come back all at once.
                await asyncio.sleep(random.uniform(0, pause))
                pause = min(pause * 2, 1.0)
            else:
                return

    async def _consume_replies(self, wire: Wire) -> None:
        await wire.subscribe(_REPLY_TO, self._receive, on_return=self._come_back)
        wire.closing.add_done_callback(self._fail_waiting)

    def _receive(self, message: DeliveredMessage) -> None:
        future = self._waiting.get(message.header.properties.correlation_id or "")
        if future is not None and not future.done():
            future.set_result(message.body)

    def _come_back(self, message: DeliveredMessage) -> None:
        future = self._waiting.get(message.header.properties.correlation_id or "")
        if future is not None and not future.done():
            future.set_exception(_unroutable(message.routing_key or ""))

    def _fail_waiting(self, closing: asyncio.Future[Any]) -> None:
        reason = None if closing.cancelled() else closing.exception()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(
                    # What was asked named an exchange that is not there.
                    Unroutable(f"{reason}; start the service there once, it declares everything")
                    if isinstance(reason, ChannelNotFoundEntity)
                    else ConnectionResetError("the link to the broker was lost")
                )


def _given(timeout: float | None, default: float) -> float:
    return default if timeout is None else timeout


def _is_long_ago(moment: float) -> bool:
    return asyncio.get_running_loop().time() - moment >= _TOO_SOON_SECONDS


def _unroutable(routing_key: str) -> Unroutable:
    return Unroutable(f"the broker has no queue for {routing_key}; start the service there once, it declares them")


def _body(request: Request[Any]) -> bytes:
    body = request.model_dump_json(exclude_unset=True).encode()
    if len(body) > MAX_COMMAND_BYTES:
        raise Refusal(
            ErrorCode.VALIDATION, f"is {len(body)} bytes; at most {MAX_COMMAND_BYTES} are taken", field="body"
        )
    return body


def _read(request: Request[R], body: bytes) -> tuple[R, Meta]:
    reply = Reply.model_validate_json(body)
    if not reply.ok:
        error = reply.error or ErrorBody(code=ErrorCode.INTERNAL, message="the service gave no reason")
        raise Refusal(error.code, error.message, field=error.field, retryable=error.retryable)
    try:
        # Read as JSON, where strings stand for numbers and instants.
        answer: R = answer_adapter(type(request)).validate_python(reply.data)
    except ValidationError as error:
        raise Refusal(ErrorCode.INTERNAL, f"the answer to {request.wire_name} cannot be read: {error}") from None
    return answer, reply.meta
