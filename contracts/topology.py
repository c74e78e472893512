"""Exchanges, queues and bindings as data: the service declares them, clients and documents read them.

Commands of three lanes travel in three queues, so that a storm of logs cannot hold up a trade. What no lane knows
ends in `UNROUTED`, where the service refuses it with a reason instead of the broker dropping it.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal


class Lane(StrEnum):
    """A queue of commands and the consumer behind it."""

    TRADING = "trading"
    """Orders, trades, balances, positions."""
    BOT_LOGS = "bot_logs"
    CONFIG = "config"
    """Everything else: users, accounts, symbols, bots."""

    @property
    def queue(self) -> str:
        return f"persistence.{self.value}"


@dataclass(frozen=True)
class Exchange:
    name: str
    type: Literal["topic", "direct", "fanout"]
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Queue:
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Binding:
    exchange: str
    queue: str
    routing_key: str


COMMANDS: Final = Exchange("persistence.commands", "topic", {"alternate-exchange": "persistence.unrouted"})
LOOKUPS: Final = Exchange("persistence.lookups", "direct", {"alternate-exchange": "persistence.unknown_lookups"})
EVENTS: Final = Exchange("persistence.events", "topic")
HEARTBEATS: Final = Exchange("persistence.heartbeats", "fanout")
"""How far the events are, once a second; apart from them, so that who listens to all events hears of changes only."""
UNROUTED_EXCHANGE: Final = Exchange("persistence.unrouted", "fanout")
UNKNOWN_LOOKUPS_EXCHANGE: Final = Exchange("persistence.unknown_lookups", "fanout")
DEAD_LETTERS_EXCHANGE: Final = Exchange("persistence.dead_letters", "fanout")

EXCHANGES: Final = (
    UNROUTED_EXCHANGE,
    UNKNOWN_LOOKUPS_EXCHANGE,
    DEAD_LETTERS_EXCHANGE,
    COMMANDS,
    LOOKUPS,
    EVENTS,
    HEARTBEATS,
)

# A queue that holds commands survives its broker, refuses rather than drops when full, and hands what the broker
# itself gives up on to the backstop, confirmed. The delivery limit is far above what restarts can add up to. With
# several instances one of them gets all that a queue holds, so that the order of each bot's messages is kept; the
# broker turns to another when that one is gone.
_COMMAND_QUEUE: Final = {
    "x-queue-type": "quorum",
    "x-dead-letter-exchange": DEAD_LETTERS_EXCHANGE.name,
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
    "x-delivery-limit": 100,
    "x-single-active-consumer": True,
}

UNROUTED_QUEUE: Final = "persistence.unrouted"
LOOKUP_QUEUE: Final = "persistence.lookups"
DEAD_LETTER_QUEUE: Final = "persistence.dead_letters"

QUEUES: Final = (
    Queue(DEAD_LETTER_QUEUE, {"x-queue-type": "quorum"}),
    *(Queue(lane.queue, _COMMAND_QUEUE) for lane in Lane),
    Queue(UNROUTED_QUEUE, _COMMAND_QUEUE),
    # A lookup nobody answers within half a minute has no caller left.
    Queue(LOOKUP_QUEUE, {"x-queue-type": "classic", "x-message-ttl": 30_000}),
)

BACKSTOP_BINDINGS: Final = (
    Binding(UNROUTED_EXCHANGE.name, UNROUTED_QUEUE, ""),
    Binding(UNKNOWN_LOOKUPS_EXCHANGE.name, LOOKUP_QUEUE, ""),
    Binding(DEAD_LETTERS_EXCHANGE.name, DEAD_LETTER_QUEUE, ""),
)

EVENT_QUEUE_ARGUMENTS: Final = {"x-queue-type": "quorum"}
"""How a subscriber's own durable queue is declared."""

INVALIDATION_QUEUE_ARGUMENTS: Final[dict[str, str | bool]] = {
    **EVENT_QUEUE_ARGUMENTS,
    "x-single-active-consumer": True,
}
"""How a queue is declared whose events have to be applied in order, by one instance at a time."""

FRESH_HEADER: Final = "fresh"
"""A lookup with this header set to true is answered from the database, around the service's cache."""

AFTER_HEADER: Final = "after"
"""A lookup with a commit token in this header shows what that transaction stored."""

REMEMBERED_DAYS: Final = 7
"""How long the service knows a message id again, at least."""

MAX_COMMAND_BYTES: Final = 1024 * 1024
MAX_JSON_DEPTH: Final = 64
MAX_CHANGES_PER_EVENT: Final = 500
MAX_EVENT_BYTES: Final = 512 * 1024
