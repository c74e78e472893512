"""Speak with the service: publish commands, and ask (extra ``client``)."""

import asyncio
import os
import random
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from uuid import UUID, uuid4

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import DeliveryError, PublishError
from pydantic import ValidationError

from contracts.amqp import BROKEN_LINK, ChannelNotFoundEntity, Link, lost_links_as_errors
from contracts.base import Command, ErrorBody, Lookup, Meta, Reply, Request, answer_adapter
from contracts.errors import ErrorCode, NotConfirmed, Refusal, Unroutable
from contracts.topology import COMMANDS, FRESH_HEADER, LOOKUPS, MAX_COMMAND_BYTES

R = TypeVar("R")

_REPLY_TO: Final = "amq.rabbitmq.reply-to"

# A confirm that takes longer is taken for a dead link, and the message is sent again on a new one.
_ATTEMPT_SECONDS: Final = 10.0


def new_message_id() -> UUID:
    """A UUID of version 7 (RFC 9562): it begins with the time in milliseconds, so ids made later sort later."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | int.from_bytes(os.urandom(10), "big")
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    return UUID(int=(value & ~(0x3 << 62)) | (0x2 << 62))


class PersistenceClient:
    """A bot's or service's side of the conversation; one instance serves any number of tasks.

    It connects at the first use and again whenever the link broke, so it survives a restart of the broker.

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
        """``confirm_timeout`` and ``answer_timeout`` are seconds; each call can be given its own.

        ``user_id`` must be the login of ``url``: the broker refuses any other.
        """
        self._app_id = app_id
        self._user_id = user_id
        self._confirm_timeout = confirm_timeout
        self._answer_timeout = answer_timeout
        self._link = Link(url, name=app_id, setup=self._consume_replies)
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._in_flight: set[str] = set()

    async def __aenter__(self) -> Self:
        await self._link.channel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Calls that still wait for an answer end with ``ConnectionError``."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionError("the client was closed"))
        await self._link.close()

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
        publishing it again under the same ``message_id`` is safe), `Unroutable` if there is no service, and
        `Refusal` for a command that is too large.
        """
        message_id = message_id or new_message_id()
        await self._send(command, message_id, headers=headers, reply=None, timeout=timeout or self._confirm_timeout)
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
        message = self._message(name, body, message_id, headers=headers, persistent=True)
        await self._in_turn(message, COMMANDS.name, name, timeout or self._confirm_timeout)

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
        message_id = message_id or new_message_id()
        return await self._ask(command, message_id, headers=headers, timeout=timeout or self._answer_timeout)

    async def lookup(self, lookup: Lookup[R], *, fresh: bool = False, timeout: float | None = None) -> R:
        """The answer to a question. Any number may be asked at once.

        ``fresh`` has it read from the database instead of the service's cache, which may hear of a change later than
        the caller: whoever keeps the answer in a cache of its own needs that, or its cache may keep an older one.
        Raises `Refusal`, with code ``timeout`` if no answer came within ``timeout`` seconds.
        """
        headers = {FRESH_HEADER: True} if fresh else None
        answer, _ = await self._ask(lookup, uuid4(), headers=headers, timeout=timeout or self._answer_timeout)
        return answer

    async def _ask(
        self, request: Request[R], message_id: UUID, *, headers: Mapping[str, Any] | None, timeout: float
    ) -> tuple[R, Meta]:
        correlation_id = str(uuid4())
        deadline = time.monotonic() + timeout
        try:
            while True:
                reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
                self._waiting[correlation_id] = reply
                left = max(deadline - time.monotonic(), 0.001)
                await self._send(request, message_id, headers=headers, reply=correlation_id, timeout=left)
                try:
                    async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                        body = await reply
                except ConnectionError:
                    continue  # the reply queue died with the link; ask again under the same id
                return _answer(request, body)
        except (TimeoutError, NotConfirmed):
            raise Refusal(
                ErrorCode.TIMEOUT, f"no answer to {request.wire_name} within {timeout:g} s", retryable=True
            ) from None
        finally:
            self._waiting.pop(correlation_id, None)

    async def _send(
        self,
        request: Request[Any],
        message_id: UUID,
        *,
        headers: Mapping[str, Any] | None,
        reply: str | None,
        timeout: float,
    ) -> None:
        body = request.model_dump_json(exclude_unset=True).encode()
        if len(body) > MAX_COMMAND_BYTES:
            raise Refusal(
                ErrorCode.VALIDATION, f"is {len(body)} bytes; at most {MAX_COMMAND_BYTES} are taken", field="body"
            )
        is_command = isinstance(request, Command)
        message = self._message(request.wire_name, body, message_id, headers=headers, persistent=is_command)
        if reply:
            message.reply_to, message.correlation_id = _REPLY_TO, reply
        if not is_command:
            message.expiration = timeout
        await self._in_turn(message, COMMANDS.name if is_command else LOOKUPS.name, request.wire_name, timeout)

    def _message(
        self, name: str, body: bytes, message_id: UUID, *, headers: Mapping[str, Any] | None, persistent: bool
    ) -> Message:
        return Message(
            body,
            content_type="application/json",
            message_id=str(message_id),
            type=name,
            app_id=self._app_id,
            user_id=self._user_id,
            headers={"schema_version": 1, **(headers or {})},
            delivery_mode=DeliveryMode.PERSISTENT if persistent else DeliveryMode.NOT_PERSISTENT,
        )

    async def _in_turn(self, message: Message, exchange: str, routing_key: str, timeout: float) -> None:
        message_id = message.message_id or ""
        while message_id in self._in_flight:  # noqa: ASYNC110 - rare, and over within a confirm
            # The broker's answers name the message id: two of one id in flight could not be told apart.
            await asyncio.sleep(0.005)
        self._in_flight.add(message_id)
        try:
            await self._confirmed(message, exchange, routing_key, timeout)
        finally:
            self._in_flight.discard(message_id)

    async def _confirmed(self, message: Message, exchange: str, routing_key: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        pause = 0.05
        while True:
            left = deadline - time.monotonic()
            try:
                async with asyncio.timeout(min(max(left, 0), _ATTEMPT_SECONDS)):
                    channel = await self._link.channel()
                    with lost_links_as_errors():
                        target = await channel.get_exchange(exchange, ensure=False)
                        await target.publish(message, routing_key, mandatory=True)
            except (PublishError, ChannelNotFoundEntity):
                raise Unroutable(
                    f"the broker has no queue for {routing_key}; start the service there once, it declares them"
                ) from None
            except (DeliveryError, *BROKEN_LINK) as error:
                if isinstance(error, TimeoutError):
                    await self._link.close()
                if time.monotonic() + pause >= deadline:
                    raise NotConfirmed(
                        f"{routing_key} {message.message_id} was not confirmed within {timeout:g} s: "
                        f"{type(error).__name__}"
                    ) from error
                # Full jitter on a doubling base, so that bots do not come back all at once.
                await asyncio.sleep(random.uniform(0, pause))
                pause = min(pause * 2, 1.0)
            else:
                return

    async def _consume_replies(self, channel: AbstractChannel) -> None:
        queue = await channel.get_queue(_REPLY_TO, ensure=False)
        await queue.consume(self._receive, no_ack=True)
        channel.close_callbacks.add(self._fail_waiting)

    async def _receive(self, message: AbstractIncomingMessage) -> None:
        future = self._waiting.get(message.correlation_id or "")
        if future is not None and not future.done():
            future.set_result(message.body)

    def _fail_waiting(self, *_: object) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionError("the link to the broker was lost"))


def _answer(request: Request[R], body: bytes) -> tuple[R, Meta]:
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
