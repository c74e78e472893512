"""The AsyncAPI document: all that a client in any language needs to speak with the service, made from the contracts.

It is written from the service's point of view, as AsyncAPI has it: the service receives commands and lookups, and
sends replies and events. AsyncAPI 3 has no place for AMQP's properties beyond a few bindings, so each message names
a schema of its properties under ``x-amqp-properties``.
"""

import inspect
import json
from functools import cache
from typing import Any, Final

from contracts import topology
from contracts.base import COMMAND_TYPES, EVENT_TYPES, LOOKUP_TYPES, Command, Event
from contracts.heartbeat import Heartbeat
from service.asyncapi import html, prose
from service.asyncapi.examples import example, example_of_event
from service.asyncapi.schemas import Schema, one_line, reply_name, schemas_of
from service.received import SCHEMA_VERSION, KindOfRequest

_BINDING_VERSION: Final = "0.3.0"
_REPLIES: Final = "replies"


@cache
def document() -> dict[str, Any]:
    """The description of every message, as AsyncAPI 3.0.0: one object for all callers, which nobody may change."""
    requests = [*COMMAND_TYPES.values(), *LOOKUP_TYPES.values()]
    events = list(EVENT_TYPES.values())
    schemas = schemas_of(requests, events) | prose.PROPERTIES
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Persistence",
            "version": f"{SCHEMA_VERSION}.0.0",
            "description": prose.DESCRIPTION,
            "tags": prose.TAGS,
        },
        "defaultContentType": "application/json",
        "servers": prose.SERVERS,
        "channels": {
            **{command: _channel(command, topology.COMMANDS) for command in COMMAND_TYPES},
            **{lookup: _channel(lookup, topology.LOOKUPS) for lookup in LOOKUP_TYPES},
            **{event: _channel(event, topology.EVENTS) for event in EVENT_TYPES},
            Heartbeat.wire_name: _channel(Heartbeat.wire_name, topology.HEARTBEATS),
            _REPLIES: _reply_channel(requests),
        },
        "operations": {
            **{request.wire_name: _receive(request) for request in requests},
            **{event.wire_name: _send(event) for event in events},
            Heartbeat.wire_name: _send(Heartbeat),
        },
        "components": {
            "messages": {
                **{request.wire_name: _request_message(request, schemas) for request in requests},
                **{reply_name(request): _reply_message(request, schemas) for request in requests},
                **{event.wire_name: _event_message(event, schemas) for event in events},
                Heartbeat.wire_name: _heartbeat_message(schemas),
            },
            "schemas": dict(sorted(schemas.items())),
            "correlationIds": prose.CORRELATION_IDS,
            "securitySchemes": prose.SECURITY_SCHEMES,
        },
        "x-subscriber-queue": prose.SUBSCRIBER_QUEUE,
        "x-limits": prose.LIMITS,
    }


def dumps(value: Any) -> str:
    """JSON text, its fields in the order they were put in."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@cache
def page() -> str:
    """The document as one HTML page that loads nothing."""
    return html.render(document())


def _channel(name: str, exchange: topology.Exchange) -> Schema:
    return {
        "address": name,
        "messages": {name: _component("messages", name)},
        "bindings": _exchange_binding(exchange.name, exchange.type),
    }


def _reply_channel(requests: list[KindOfRequest]) -> Schema:
    return {
        "address": None,
        "description": prose.REPLY_CHANNEL,
        "messages": {reply_name(request): _component("messages", reply_name(request)) for request in requests},
        "bindings": _exchange_binding("", "default"),
    }


def _exchange_binding(name: str, kind: str) -> Schema:
    exchange = {"name": name, "type": kind, "durable": True, "autoDelete": False}
    return {"amqp": {"is": "routingKey", "exchange": exchange, "bindingVersion": _BINDING_VERSION}}


def _receive(request: KindOfRequest) -> Schema:
    return {
        "action": "receive",
        **_operation(request.wire_name, tag=request.lane.value if issubclass(request, Command) else "lookups"),
        "bindings": _delivery_binding(persistent=issubclass(request, Command), ack=True),
        "reply": {
            # AsyncAPI has expressions for headers only; what is meant is the AMQP property of this name.
            "address": {"location": "$message.header#/reply_to", "description": prose.REPLY_ADDRESS},
            "channel": {"$ref": f"#/channels/{_REPLIES}"},
            "messages": [{"$ref": f"#/channels/{_REPLIES}/messages/{reply_name(request)}"}],
        },
    }


def _send(kind: type[Event[Any] | Heartbeat]) -> Schema:
    return {
        "action": "send",
        **_operation(kind.wire_name, tag="events"),
        "bindings": _delivery_binding(persistent=True, mandatory=False),
    }


def _operation(name: str, *, tag: str) -> Schema:
    return {
        "channel": {"$ref": f"#/channels/{name}"},
        "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}],
        "tags": [{"name": tag}],
    }


def _delivery_binding(*, persistent: bool, **more: bool) -> Schema:
    return {"amqp": {"deliveryMode": 2 if persistent else 1, **more, "bindingVersion": _BINDING_VERSION}}


def _request_message(request: KindOfRequest, schemas: dict[str, Schema]) -> Schema:
    return {
        **_message(request, "Command" if issubclass(request, Command) else "Lookup"),
        "correlationId": _component("correlationIds", "correlation_id"),
        "examples": [{"payload": example(schemas[request.__name__], schemas)}],
    }


def _event_message(event: type[Event[Any]], schemas: dict[str, Schema]) -> Schema:
    return {
        **_message(event, "Event"),
        "examples": [{"payload": example_of_event(event, schemas)}],
        "x-stale-keys": event.stale_key_templates(),
    }


def _heartbeat_message(schemas: dict[str, Schema]) -> Schema:
    examples = [{"payload": example(schemas[Heartbeat.__name__], schemas)}]
    return {**_message(Heartbeat, "Heartbeat"), "examples": examples}


def _message(kind: KindOfRequest | type[Event[Any] | Heartbeat], family: str) -> Schema:
    """What all but replies have in common; headers and properties are those of the family."""
    summary, _, description = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")
    return {
        "name": kind.wire_name,
        "summary": one_line(summary),
        **({"description": one_line(description)} if description else {}),
        "contentType": "application/json",
        "headers": _component("schemas", f"{family}Headers"),
        "payload": _component("schemas", kind.__name__),
        "bindings": {"amqp": {"messageType": kind.wire_name, "bindingVersion": _BINDING_VERSION}},
        "x-amqp-properties": _component("schemas", f"{family}Properties"),
    }


def _reply_message(request: KindOfRequest, schemas: dict[str, Schema]) -> Schema:
    payload = schemas[f"{request.__name__}Reply"]
    return {
        "name": reply_name(request),
        "summary": f"What {request.wire_name} is answered with.",
        "contentType": "application/json",
        "correlationId": _component("correlationIds", "correlation_id"),
        "payload": _component("schemas", f"{request.__name__}Reply"),
        "x-amqp-properties": _component("schemas", "ReplyProperties"),
        "examples": [
            {"name": name, "payload": example(choice, schemas)}
            for name, choice in zip(("done", "refused"), payload["oneOf"], strict=True)
        ],
    }


def _component(section: str, name: str) -> Schema:
    return {"$ref": f"#/components/{section}/{name}"}
