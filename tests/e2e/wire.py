"""The far side of the service, as someone sees it who has nothing but the protocols: AMQP, SQL, HTTP."""

import asyncio
import base64
import json
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import uuid4

import aio_pika
import asyncpg
from aio_pika import DeliveryMode
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import AMQPError
from redis.asyncio import Redis

from contracts.base import Command
from contracts.certificate import Certificate, name_of_certificate
from contracts.client import new_message_id
from contracts.topology import COMMANDS, EVENT_QUEUE_ARGUMENTS, EVENTS

DIRECT_REPLY = "amq.rabbitmq.reply-to"


@dataclass(frozen=True)
class Raw:
    """A message of which everything can be wrong."""

    routing_key: str
    body: bytes
    properties: Mapping[str, Any] = field(default_factory=dict)


def said(command: Command[Any] | dict[str, Any] | bytes, routing_key: str = "record_trade", **properties: Any) -> Raw:
    """A message as a decent client would send it, but for what is said otherwise."""
    body = command.model_dump_json(exclude_unset=True).encode() if isinstance(command, Command) else command
    decent = {
        "message_id": str(new_message_id()),
        "type": routing_key,
        "content_type": "application/json",
        "delivery_mode": DeliveryMode.PERSISTENT,
        "app_id": "a bot",
    }
    return Raw(
        routing_key,
        json.dumps(body).encode() if isinstance(body, dict) else body,
        {name: part for name, part in {**decent, **properties}.items() if part is not None},
    )


class Wire:
    """A publisher without manners, and the answers it gets."""

    def __init__(self, channel: AbstractChannel, replies: AbstractQueue) -> None:
        self._channel = channel
        self._replies = replies
        self._arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str) -> AsyncIterator[Self]:
        connection = await aio_pika.connect(url)
        async with connection:
            channel = await connection.channel()
            replies = await channel.get_queue(DIRECT_REPLY, ensure=False)
            wire = cls(channel, replies)
            await replies.consume(wire._arrived.put, no_ack=True)
            yield wire

    async def send(self, message: Raw) -> None:
        """Publish ``message`` to the commands, and wait for the confirm."""
        exchange = await self._channel.get_exchange(COMMANDS.name, ensure=False)
        await exchange.publish(aio_pika.Message(message.body, **message.properties), message.routing_key)

    async def ask(self, message: Raw, *, seconds: float = 10) -> dict[str, Any]:
        """Publish ``message`` with a reply address; gives the reply."""
        correlation_id = str(uuid4())
        properties = {**message.properties, "reply_to": DIRECT_REPLY, "correlation_id": correlation_id}
        await self.send(Raw(message.routing_key, message.body, properties))
        async with asyncio.timeout(seconds):
            while True:
                reply = await self._arrived.get()
                if reply.correlation_id == correlation_id:
                    answer: dict[str, Any] = json.loads(reply.body)
                    return answer


class Listener:
    """Everything that was announced since it began to listen, in the order it came; it outlives the broker."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.raw: list[bytes] = []
        self._news = asyncio.Event()
        self._listens = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def on(cls, url: str, *bindings: str, queue: str = "") -> AsyncIterator[Self]:
        """Listen to events with these routing keys, to all without one; a named queue is kept."""
        listener = cls()
        task = asyncio.create_task(listener._run(url, bindings or ("#",), queue))
        try:
            async with asyncio.timeout(10):
                await listener._listens.wait()
            yield listener
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self, url: str, bindings: Sequence[str], queue: str) -> None:
        while True:
            try:
                async with await aio_pika.connect(url, timeout=5) as connection:
                    await self._consume(connection, bindings, queue)
            except (AMQPError, OSError, TimeoutError):
                await asyncio.sleep(0.2)

    async def _consume(self, connection: AbstractConnection, bindings: Sequence[str], queue: str) -> None:
        closed = asyncio.Event()
        connection.close_callbacks.add(lambda *_: closed.set())
        channel = await connection.channel()
        await channel.set_qos(1_000)
        if queue:
            declared = await channel.declare_queue(queue, durable=True, arguments=dict(EVENT_QUEUE_ARGUMENTS))
        else:
            declared = await channel.declare_queue(exclusive=True)
        for routing_key in bindings:
            await declared.bind(EVENTS.name, routing_key)
        await declared.consume(self._hear)
        self._listens.set()
        await closed.wait()

    async def _hear(self, message: AbstractIncomingMessage) -> None:
        self.raw.append(message.body)
        self.heard.append(json.loads(message.body))
        self._news.set()
        with suppress(AMQPError, OSError):  # it comes again then
            await message.ack()

    async def until(self, seen: Callable[[list[dict[str, Any]]], bool], *, seconds: float = 10) -> None:
        """Return as soon as what was heard satisfies ``seen``."""
        async with asyncio.timeout(seconds):
            while not seen(self.heard):
                self._news.clear()
                await self._news.wait()

    @property
    def distinct(self) -> list[dict[str, Any]]:
        """The events in the order in which each was heard first, without the repetitions that are allowed."""
        return list({event["event_id"]: event for event in self.heard}.values())

    @property
    def changes(self) -> list[dict[str, Any]]:
        return [change for event in self.distinct for change in event["changes"]]


async def rows(database_url: str, query: str, *arguments: object) -> list[dict[str, Any]]:
    """What the database holds."""
    connection = await asyncpg.connect(database_url)
    try:
        return [dict(row) for row in await connection.fetch(query, *arguments)]
    finally:
        await connection.close()


async def value(database_url: str, query: str, *arguments: object) -> Any:
    """The first column of the only row."""
    [row] = await rows(database_url, query, *arguments)
    return next(iter(row.values()))


async def eventually(holds: Callable[[], Awaitable[Any]], *, seconds: float = 10, pause: float = 0.05) -> Any:
    """The first true answer of ``holds``; fails the test if there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        answer = await holds()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"did not come about within {seconds:g} s; last: {answer!r}")
        await asyncio.sleep(pause)


async def http(url: str) -> tuple[int, str]:
    """Status and text of a page."""
    return await asyncio.to_thread(_get, url)


async def ready(address: str) -> tuple[int, dict[str, Any]]:
    """What ``/health/ready`` says."""
    status, text = await http(f"{address}/health/ready")
    body: dict[str, Any] = json.loads(text)
    return status, body


async def management(url: str, path: str) -> Any:
    """What the broker's management interface, whose URL holds the login, says of itself."""
    parts = urlsplit(url)
    login = base64.b64encode(f"{parts.username}:{parts.password}".encode()).decode()
    address = f"http://{parts.hostname}:{parts.port}/api/{path}"
    request = urllib.request.Request(address, headers={"authorization": f"Basic {login}"})
    _, text = await asyncio.to_thread(_get, request)
    return json.loads(text)


def _get(page: str | urllib.request.Request) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(page, timeout=10) as answer:  # noqa: S310 - http, made by the tests
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def certified(redis_url: str, namespace: str = "persistence") -> Certificate:
    """The certificate of a cache whose invalidator is at work, and knows by now that it may be read."""
    async with Redis.from_url(redis_url) as redis:

        async def held() -> Certificate | None:
            body = await redis.get(name_of_certificate(namespace))
            return None if body is None else Certificate.model_validate_json(body)

        async def renewed() -> Certificate | None:
            found = await held()
            return found if found is not None and found.as_of > first.as_of else None

        first: Certificate = await eventually(held, seconds=20)
        second: Certificate = await eventually(renewed, seconds=20)
        return second
