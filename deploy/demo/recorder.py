"""Writes down every change event, as any other service could: a queue of its own, bound to all of them."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from contracts.topology import EVENT_QUEUE_ARGUMENTS, EVENTS

_PREFETCH = 500


class Recorder:
    """The events that were delivered, each once, in the order in which they came first."""

    def __init__(self) -> None:
        self.deliveries = 0
        """How many there were; more than events if some were delivered again."""
        self.sequences: dict[str, int] = {}
        """The number of the last event heard, by type."""
        self._by_id: dict[str, dict[str, Any]] = {}
        self._changes: dict[str, int] = {}

    @property
    def events(self) -> list[dict[str, Any]]:
        """The bodies as JSON objects, read without the classes of the sender."""
        return list(self._by_id.values())

    def changes(self, kind: str) -> int:
        """How many changes events of this type have announced so far."""
        return self._changes.get(kind, 0)

    async def note(self, message: AbstractIncomingMessage) -> None:
        """Take down one delivery."""
        event = json.loads(message.body)
        self.deliveries += 1
        if event["event_id"] not in self._by_id:
            self._by_id[event["event_id"]] = event
            self.sequences[event["type"]] = event["sequence"]
            self._changes[event["type"]] = self.changes(event["type"]) + len(event["changes"])
        await message.ack()


@asynccontextmanager
async def recording(url: str, queue: str) -> AsyncIterator[Recorder]:
    """A recorder that hears everything from now on until the block ends; its queue stays."""
    recorder = Recorder()
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=_PREFETCH)
        bound = await channel.declare_queue(queue, durable=True, arguments=dict(EVENT_QUEUE_ARGUMENTS))
        await bound.bind(EVENTS.name, "#")
        await bound.consume(recorder.note)
        yield recorder
