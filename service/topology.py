"""Declares exchanges, queues and bindings at the broker, as the contracts describe them."""

from aio_pika.abc import AbstractChannel

from contracts.base import COMMAND_TYPES, LOOKUP_TYPES
from contracts.topology import BACKSTOP_BINDINGS, COMMANDS, EXCHANGES, LOOKUP_QUEUE, LOOKUPS, QUEUES, Binding


def bindings() -> list[Binding]:
    """Every binding: commands to their lanes, lookups to theirs, strays to where they are refused."""
    return [
        *(Binding(COMMANDS.name, command.lane.queue, name) for name, command in COMMAND_TYPES.items()),
        *(Binding(LOOKUPS.name, LOOKUP_QUEUE, name) for name in LOOKUP_TYPES),
        *BACKSTOP_BINDINGS,
    ]


async def declare(channel: AbstractChannel) -> None:
    """Make everything exist. What exists already stays; a different definition of it is an error of the broker."""
    for exchange in EXCHANGES:
        await channel.declare_exchange(exchange.name, exchange.type, durable=True, arguments=exchange.arguments)
    for queue in QUEUES:
        await channel.declare_queue(queue.name, durable=True, arguments=queue.arguments)
    for binding in bindings():
        queue_ = await channel.get_queue(binding.queue, ensure=False)
        await queue_.bind(binding.exchange, binding.routing_key)
