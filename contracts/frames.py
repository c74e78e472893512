"""Frames of AMQP 0-9-1, read and written by hand (extra ``client``).

pamqp takes three times as long for the few frames that deliveries and publishes are made of. All others are left to
it. The layout is that of the specification, sections 2.3.5 and 4.2; tests/unit/test_frames.py compares with pamqp.
"""

import struct
from functools import cache, lru_cache
from typing import Any, Final, NamedTuple

import pamqp.decode
import pamqp.encode
import pamqp.frame
from aiormq import spec
from aiormq.connection import ReceivedFrame
from pamqp.constants import FRAME_BODY, FRAME_END, FRAME_HEADER, FRAME_METHOD
from pamqp.header import ContentHeader

FRAME_HEAD: Final = struct.Struct(">BHI")
"""Kind, channel and size of what follows."""
FRAME_END_BYTES: Final = 1
FRAME_OVERHEAD: Final = FRAME_HEAD.size + FRAME_END_BYTES

_END: Final = bytes((FRAME_END,))
_METHOD: Final = struct.Struct(">HH")
_DELIVER: Final = _METHOD.pack(60, 60)
_ACK: Final = _METHOD.pack(60, 80)
_PUBLISH: Final = _METHOD.pack(60, 40) + struct.pack(">H", 0)
"""Class and method of each, and of the last the field that the specification reserves."""
_TAG: Final = struct.Struct(">QB")
"""Delivery tag and a flag: delivered again, or up to this one."""
_CONTENT: Final = struct.Struct(">HHQH")
"""Class, weight, body size, and which properties follow."""
_CONTENT_HEAD: Final = struct.Struct(">HHQ")
_FLAGS: Final = struct.Struct(">H")
_FLAGS_END: Final = FRAME_HEAD.size + _CONTENT.size - 1
_SECONDS: Final = struct.Struct(">Q")
_SHORT_BYTES: Final = 255


class Message(NamedTuple):
    """What is to be published."""

    exchange: str
    routing_key: str
    properties: bytes
    """As `properties` gives them."""
    body: bytes
    mandatory: bool = False
    message_id: str = ""
    """The one among the properties: by it the broker names a message that no queue wants."""


def publish(channel: int, message: Message, *, frame_max: int) -> list[bytes]:
    """The bytes that publish a message, in parts: the body is not copied."""
    size = len(message.body)
    head = _CONTENT_HEAD.pack(spec.Basic.frame_id, 0, size) + message.properties
    parts = [
        _publish(channel, message.exchange, message.routing_key, message.mandatory),
        FRAME_HEAD.pack(FRAME_HEADER, channel, len(head)),
        head,
    ]
    room = frame_max - FRAME_OVERHEAD
    for start in range(0, size, room):
        part = message.body if size <= room else message.body[start : start + room]
        parts += (_END, FRAME_HEAD.pack(FRAME_BODY, channel, len(part)), part)
    parts.append(_END)
    return parts


@lru_cache(maxsize=1_024)
def _publish(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    method = _PUBLISH + _short(exchange, "exchange") + _short(routing_key, "routing key") + bytes((mandatory,))
    return FRAME_HEAD.pack(FRAME_METHOD, channel, len(method)) + method + _END


def properties(
    *,
    content_type: str | None = None,
    headers: bytes | None = None,
    delivery_mode: int | None = None,
    correlation_id: str | None = None,
    reply_to: str | None = None,
    expiration: float | None = None,
    message_id: str | None = None,
    timestamp: int | None = None,
    message_type: str | None = None,
    user_id: str | None = None,
    app_id: str | None = None,
) -> bytes:
    """The properties of a message; ``headers`` as `table` gives them, ``expiration`` and ``timestamp`` in seconds.

    Raises ValueError for a text of more than 255 bytes.
    """
    expires_after = None if expiration is None else str(round(expiration * 1_000))
    given = (
        (15, _text(content_type, "content_type")),
        (13, headers),
        (12, None if delivery_mode is None else bytes((delivery_mode,))),
        (10, _text(correlation_id, "correlation_id")),
        (9, _text(reply_to, "reply_to")),
        (8, _text(expires_after, "expiration")),
        (7, _text(message_id, "message_id")),
        (6, None if timestamp is None else _SECONDS.pack(timestamp)),
        (5, _text(message_type, "type")),
        (4, _text(user_id, "user_id")),
        (3, _text(app_id, "app_id")),
    )
    flags = 0
    values = []
    for bit, value in given:
        if value is not None:
            flags |= 1 << bit
            values.append(value)
    return _FLAGS.pack(flags) + b"".join(values)


def table(headers: dict[str, Any]) -> bytes:
    """Headers as they stand among the properties."""
    return pamqp.encode.field_table(headers)


def _text(text: str | None, name: str) -> bytes | None:
    return _short(text, name) if text else None


def _short(text: str, name: str) -> bytes:
    encoded = text.encode()
    if len(encoded) > _SHORT_BYTES:
        raise ValueError(f"{name} is {len(encoded)} bytes long; AMQP takes {_SHORT_BYTES}")
    return bytes((len(encoded),)) + encoded


class _Properties:
    """What `spec.Basic.Properties` is to a reader; those that a message does not have need not be set."""

    content_type = content_encoding = correlation_id = reply_to = expiration = None
    message_id = message_type = user_id = app_id = headers = None
    delivery_mode = priority = timestamp = None
    cluster_id = ""


def decoded(frame: bytes) -> ReceivedFrame:
    """What `pamqp.frame.unmarshal` gives, faster for the frames that begin a delivery and for confirms."""
    kind, channel, length = FRAME_HEAD.unpack_from(frame)
    if frame[-1] == FRAME_END:
        if kind == FRAME_METHOD:
            if frame.startswith(_DELIVER, FRAME_HEAD.size):
                return length, channel, _deliver(frame)
            if frame.startswith(_ACK, FRAME_HEAD.size):
                return length, channel, _ack(frame)
        elif kind == FRAME_HEADER and length >= _CONTENT.size and not frame[_FLAGS_END] & 1:
            return length, channel, _content(frame)
    return pamqp.frame.unmarshal(frame)


def _deliver(frame: bytes) -> spec.Basic.Deliver:
    deliver = spec.Basic.Deliver.__new__(spec.Basic.Deliver)
    deliver.consumer_tag, place = _short_text(frame, FRAME_HEAD.size + _METHOD.size)
    deliver.delivery_tag, redelivered = _TAG.unpack_from(frame, place)
    deliver.redelivered = bool(redelivered)
    deliver.exchange, place = _short_text(frame, place + _TAG.size)
    deliver.routing_key, _ = _short_text(frame, place)
    return deliver


def _ack(frame: bytes) -> spec.Basic.Ack:
    ack = spec.Basic.Ack.__new__(spec.Basic.Ack)
    ack.delivery_tag, multiple = _TAG.unpack_from(frame, FRAME_HEAD.size + _METHOD.size)
    ack.multiple = bool(multiple)
    return ack


def _content(frame: bytes) -> ContentHeader:
    header = ContentHeader.__new__(ContentHeader)
    header.class_id, header.weight, header.body_size, flags = _CONTENT.unpack_from(frame, FRAME_HEAD.size)
    found = _Properties()
    place = FRAME_HEAD.size + _CONTENT.size
    value: Any
    for name, kind in _present(flags):
        if kind == "shortstr":
            value, place = _short_text(frame, place)
        else:
            # Looked up each time, because the service puts functions of its own there.
            used, value = pamqp.decode.METHODS[kind](frame[place:-1])
            place += used
        setattr(found, name, value)
    header.properties = found  # type: ignore[assignment]
    return header


@cache
def _present(flags: int) -> list[tuple[str, str]]:
    """Names and kinds of the properties that follow these flags."""
    kind = spec.Basic.Properties
    return [(name, kind.amqp_type(name)) for name, flag in kind.flags.items() if flags & flag]


def _short_text(frame: bytes, place: int) -> tuple[str, int]:
    end = place + 1 + frame[place]
    return frame[place + 1 : end].decode(errors="replace"), end
