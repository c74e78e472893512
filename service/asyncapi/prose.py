"""What the document says in words: how to publish, to ask and to subscribe, and headers and properties."""

import inspect
from typing import Any, Final

from contracts import topology
from contracts.topology import (
    COMMANDS,
    EVENTS,
    HEARTBEATS,
    LOOKUP_QUEUE,
    LOOKUPS,
    MAX_COMMAND_BYTES,
    MAX_JSON_DEPTH,
    REMEMBERED_DAYS,
    Lane,
)
from contracts.types import MAX_NUMBER_DIGITS
from service.asyncapi.schemas import attribute_texts
from service.received import SCHEMA_VERSION

_LOOKUP_SECONDS: Final = next(
    queue.arguments["x-message-ttl"] // 1_000 for queue in topology.QUEUES if queue.name == LOOKUP_QUEUE
)

_LANES: Final = attribute_texts(Lane)

DESCRIPTION: Final = inspect.cleandoc(f"""
    The service keeps what trading bots do. It takes commands and lookups from RabbitMQ (AMQP 0-9-1), stores in
    PostgreSQL, and announces every change as an event. Operations are written from its side: what it receives, a
    client publishes; what it sends, a client consumes.

    ## The way of a message

    A client publishes a command to `{COMMANDS.name}`, and from the broker's confirm on it is safe in a durable
    queue. The service carries it out exactly once per `message_id`, in one transaction with the change events it
    causes, and answers after the commit if asked to. Each event then goes to `{EVENTS.name}` at least once, the
    changes of a row in the order of their versions, so that other services can drop what they had cached of it.

    ## Publish a command

    - Put the channel into confirm mode and publish to the channel's exchange with its address as routing key, with
      `mandatory`. A returned message means that no service has ever been started at this broker; a nack, or no
      confirm, that the command may not be stored: send it again under the same `message_id`.
    - `message_id` is a UUID of your own making, best of version 7, and the same for every resend. A repeated one has
      no second effect and is answered as the first was, with `meta.duplicate`; with another body it is refused
      (`conflict`). This
      holds for at least {REMEMBERED_DAYS} days. A command that is sent again later is carried out again, unless
      something in it is unique for ever, such as `ex_trade_id` on an account or `client_order_id`.
    - The body is the JSON object of the command's schema, without an envelope, of at most {MAX_COMMAND_BYTES:,}
      bytes, nested at most {MAX_JSON_DEPTH} deep, in UTF-8. Fields that the schema does not know and names that stand
      twice are refused.
    - Commands of one lane and one connection are carried out in the order they were published.
    - A command that cannot succeed is put among the service's dead letters, announced by `command.rejected`, and
      answered with an error.

    ## Get an answer

    - Consume `amq.rabbitmq.reply-to` without acknowledgements first, then publish on the same channel with `reply_to`
      set to that name and a `correlation_id` of your own, which the reply repeats. A queue of your own does as well;
      names that begin with `persistence.` or `amq.` are refused, those that the broker generated are not.
    - Lookups go to `{LOOKUPS.name}` and always have a `reply_to`. One that was not answered within
      {_LOOKUP_SECONDS} seconds never will be; ask again.
    - A reply is `ok` with `data`, or not `ok` with an `error`. Ask again only if the error is `retryable`, or if no
      reply came in time.

    ## Subscribe to events

    - Declare a queue of your own with the settings under `x-subscriber-queue`, under a name that no other service
      uses, and bind it to `{EVENTS.name}` by the addresses you want; `symbol.*` takes all of symbols, `#` all.
      Consume it with acknowledgements, and acknowledge what you have applied.
    - An event may come twice: `event_id` tells. `sequence` counts the events of one type without gaps, and a
      change's `version` the changes of its row; an older version than the one you have is to be ignored.
    - Drop the `stale_keys` from your cache. They are logical keys such as those under `x-stale-keys`; in their
      parameters `%`, `:`, `{{`, `}}` and `*` are percent-encoded. Where a part is `*`, as in `exchange:params:*`, all
      keys of that kind are stale. Read no more of an event than you need, and let fields that you do not know pass.
    - Who must know that no event is late or lost binds the same queue to `{HEARTBEATS.name}` too. A heartbeat comes
      behind the events it speaks of; a cache that has not seen one with a fresh `as_of` may be stale.

    ## Numbers and times

    - Money and amounts have the format `decimal`: digits in a string, such as `"0.00141342"`, that come back as they
      were sent. At most 38 digits are taken, 18 of them behind the point. A JSON number is taken too, if it has at
      most {MAX_NUMBER_DIGITS} significant digits. NaN and infinity are refused.
    - Times are ISO 8601 with an offset on the way in, and in UTC on the way out.
""")

TAGS: Final[list[dict[str, str]]] = [
    *(
        {
            "name": lane.value,
            "description": f"Commands that wait in `{lane.queue}`. {_LANES.get(lane.name, '')}".strip(),
        }
        for lane in Lane
    ),
    {"name": "lookups", "description": "Questions about what is stored. They change nothing."},
    {"name": "events", "description": "What was changed, for whoever wants to know."},
]

SERVERS: Final[dict[str, Any]] = {
    "broker": {
        "host": "{host}",
        "pathname": "/{vhost}",
        "protocol": "amqp",
        "protocolVersion": "0.9.1",
        "description": "RabbitMQ. Who runs the service knows its address, and whether it wants TLS (amqps).",
        "variables": {
            "host": {"description": "Name and port of the broker.", "examples": ["broker.example:5672"]},
            "vhost": {"description": "Virtual host, percent-encoded.", "default": "%2F"},
        },
        "security": [{"$ref": "#/components/securitySchemes/login"}],
    }
}

SECURITY_SCHEMES: Final = {"login": {"type": "userPassword", "description": "A login of the broker, by SASL PLAIN."}}

CORRELATION_IDS: Final = {
    "correlation_id": {
        # AsyncAPI has expressions for headers only.
        "location": "$message.header#/correlation_id",
        "description": "The AMQP property correlation_id, not a header. A reply repeats the one of its request.",
    }
}

REPLY_ADDRESS: Final = (
    "The AMQP property reply_to, not a header: amq.rabbitmq.reply-to, or the name of a queue of the caller's own."
)
REPLY_CHANNEL: Final = "The caller's own reply address, reached through the broker's default exchange."

SUBSCRIBER_QUEUE: Final = {
    "durable": True,
    "exclusive": False,
    "auto_delete": False,
    "arguments": topology.EVENT_QUEUE_ARGUMENTS,
}

LIMITS: Final = {
    "command_bytes": MAX_COMMAND_BYTES,
    "json_depth": MAX_JSON_DEPTH,
    "changes_per_event": topology.MAX_CHANGES_PER_EVENT,
    "number_digits": MAX_NUMBER_DIGITS,
}


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, **more}


def _object(required: tuple[str, ...], **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


_SCHEMA_VERSION: Final = {
    "type": "integer",
    "const": SCHEMA_VERSION,
    "default": SCHEMA_VERSION,
    "description": "The version of the bodies; any other is refused with `unsupported_version`.",
}
_TRACEPARENT: Final = _text("W3C Trace Context.", pattern="^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")
_CONTENT_TYPE: Final = _text("May be left out. `content_encoding` must be.", const="application/json")
_TYPE: Final = _text("The message's name, the same as its routing key; may be left out.")
_CORRELATION_ID: Final = _text("Repeated in the reply, to tell replies apart.")
_USER_ID: Final = _text("The login of the connection; the broker refuses any other.")
_APP_ID: Final = _text("Which program sends it, for the record.")
_MILLISECONDS: Final = "^[0-9]+$"

# Headers and AMQP properties of the four families of messages, as JSON Schemas.
_OF_LOOKUPS: Final[dict[str, Any]] = {
    topology.FRESH_HEADER: {
        "type": "boolean",
        "default": False,
        "description": "Answer from the database, around the service's cache: for whoever caches the answer.",
    },
    topology.AFTER_HEADER: {
        "type": "string",
        "pattern": "^[0-9]{1,20}$",
        "description": "A reply's `commit_token` or an event's `transaction`: the answer shows what was stored then.",
    },
}

PROPERTIES: Final[dict[str, dict[str, Any]]] = {
    "CommandHeaders": _object(
        (),
        schema_version=_SCHEMA_VERSION,
        traceparent=_TRACEPARENT,
        partition_key=_text("The bot's id as text. Where lanes are split, messages of one key keep their order."),
        producer=_text("Who counts, where producer_sequence is given.", format="uuid"),
        producer_sequence={
            "type": "integer",
            "minimum": 1,
            "description": (
                "The number of the command among all that the producer ever sent, without a gap. One that is missing "
                "for 30 s is announced by producer.gap_found."
            ),
        },
    ),
    "CommandProperties": _object(
        ("message_id", "delivery_mode"),
        message_id=_text("The idempotency key: new for each command, the same for each resend.", format="uuid"),
        type=_TYPE,
        content_type=_CONTENT_TYPE,
        delivery_mode={"const": 2, "description": "Persistent."},
        reply_to=_text(f"Where the answer goes; without it there is none. {REPLY_ADDRESS}"),
        correlation_id=_CORRELATION_ID,
        user_id=_text(f"{_USER_ID['description']} Required where the service admits authenticated senders only."),
        app_id=_APP_ID,
        expiration=_text(
            "Milliseconds after which a command still waiting in its queue is not carried out but given up to the "
            "broker's dead letters. Best left out.",
            pattern=_MILLISECONDS,
        ),
    ),
    "LookupHeaders": _object(
        (),
        schema_version=_SCHEMA_VERSION,
        traceparent=_TRACEPARENT,
        **_OF_LOOKUPS,
    ),
    "LookupProperties": _object(
        ("reply_to",),
        reply_to=_text(REPLY_ADDRESS),
        correlation_id=_CORRELATION_ID,
        type=_TYPE,
        content_type=_CONTENT_TYPE,
        delivery_mode={"const": 1, "default": 1, "description": "Not persistent."},
        user_id=_USER_ID,
        app_id=_APP_ID,
        expiration=_text("Milliseconds that you are going to wait for the answer.", pattern=_MILLISECONDS),
    ),
    "ReplyProperties": _object(
        ("content_type",),
        content_type=_text("Always set.", const="application/json"),
        correlation_id=_text("That of the request, if it had one."),
    ),
    "HeartbeatHeaders": _object(("schema_version",), schema_version=_SCHEMA_VERSION),
    "HeartbeatProperties": _object(
        ("type", "content_type", "app_id"),
        type=_text("Always set.", const="heartbeat"),
        content_type=_text("Always set.", const="application/json"),
        app_id=_text("The service.", const="persistence"),
    ),
    "EventHeaders": _object(("schema_version",), schema_version=_SCHEMA_VERSION),
    "EventProperties": _object(
        ("message_id", "type", "content_type", "delivery_mode", "timestamp", "app_id"),
        message_id=_text("The same as `event_id` in the body.", format="uuid"),
        type=_text("The event's name, the same as its routing key."),
        content_type=_text("Always set.", const="application/json"),
        delivery_mode={"const": 2, "description": "Persistent."},
        timestamp={"type": "integer", "description": "When it happened, in seconds since 1970-01-01 UTC."},
        app_id=_text("The service.", const="persistence"),
    ),
}
