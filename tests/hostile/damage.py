"""Good messages, and what can be done to one: to its values, its bytes, its properties and its address."""

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from contracts.frames import properties, table
from tests.integration.test_near_valid import NASTY

_UNDECODABLE: Final = "undecodable"
"""Stands for bytes that are no UTF-8, which nobody lets one write as text."""


@dataclass(frozen=True)
class Sent:
    """A message of which everything can be wrong."""

    routing_key: str
    body: bytes
    damage: str = "none"
    message_id: str | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)
    """Properties by name."""
    is_lookup: bool = False

    def encoded(self) -> bytes:
        """Its properties as they travel."""
        head = properties(
            message_id=self.message_id, headers=table(dict(self.headers)) if self.headers else None, **self.others
        )
        return head.replace(_UNDECODABLE.encode(), b"\xff\xfe\xc0\xaf\xed\xa0\x80\xf5\xff\x80\x81")


def damaged(message: Sent, chance: random.Random) -> Sent:
    """The same with one or two things done to it."""
    for _ in range(chance.choice((1, 1, 1, 2))):
        name = chance.choice(_NAMES)
        message = replace(_DAMAGES[name](message, chance), damage=name)
    return message


def _in_value(message: Sent, chance: random.Random) -> Sent:
    """Something else, nothing, or one thing more, somewhere in the body."""
    try:
        body: Any = json.loads(message.body)
    except (ValueError, RecursionError):
        return message
    places = list(_places(body))
    if not places:
        return replace(message, body=json.dumps(chance.choice(NASTY)).encode())
    holder, name = chance.choice(places)
    how = chance.randrange(5)
    if how == 0:
        del holder[name]
    elif how == 1 and isinstance(holder, dict):
        holder[chance.choice(("", "a", "uid", "\0", "é", "__class__", "expected_version"))] = chance.choice(NASTY)
    elif how == 2 and isinstance(holder, dict):
        holder[chance.choice(("x" * 60, "\ud800", "\0", "Password", ""))] = holder.pop(name)
    else:
        holder[name] = chance.choice(NASTY)
    return replace(message, body=json.dumps(body, ensure_ascii=chance.random() < 0.9).encode(errors="surrogatepass"))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    inner = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for name, part in inner:
        yield value, name
        yield from _places(part)


def _number(message: Sent, chance: random.Random) -> Sent:
    """A number as no program should write one, instead of some value."""
    numbers = (
        b"1e400",
        b"-1e400",
        b"NaN",
        b"Infinity",
        b"9" * 5_000,
        b"0." + b"1" * 20_000,
        b"-0",
        b"1E-999999",
        b"0x1",
    )
    return _instead_of_a_value(message, chance, chance.choice((*numbers, b"01", b"1.", b".5", b"+1", b"1e", b"--1")))


def _text(message: Sent, chance: random.Random) -> Sent:
    """A text as no program should write one, instead of some value."""
    texts = (b'"\\ud800"', b'"\\u0000"', b'"\\x41"', b'"\xff\xfe"', b'"\xed\xa0\x80"', b'"\x00"', b'"\n"', b'"\\u12"')
    controls = b'"\\u001b[31m\\r\\nroot logged in\\u202e"'
    return _instead_of_a_value(
        message, chance, chance.choice((*texts, controls, b"'x'", b'"' + b"x" * 100_000 + b'"'))
    )


def _instead_of_a_value(message: Sent, chance: random.Random, raw: bytes) -> Sent:
    ends = [colon.end() for colon in re.finditer(b":", message.body)]
    if not ends:
        return replace(message, body=raw)
    start = chance.choice(ends)
    end = min((at for at in (message.body.find(c, start) for c in (b",", b"}")) if at >= 0), default=start)
    return replace(message, body=message.body[:start] + raw + message.body[end:])


def _bytes(message: Sent, chance: random.Random) -> Sent:
    """Bytes changed, lost, added, said twice, or in another encoding."""
    body = bytearray(message.body or b"{}")
    at = chance.randrange(len(body))
    how = chance.randrange(8)
    if how == 0:
        body[at] ^= 1 << chance.randrange(8)
    elif how == 1:
        del body[at:]
    elif how == 2:
        del body[at : at + chance.randint(1, 5)]
    elif how == 3:
        body[at:at] = chance.choice((b"\0", b"\xff", b"\xef\xbb\xbf", b'"', b"{", b"[", b"}", b"\\", b"//x\n"))
    elif how == 4:
        body += body[at:]
    elif how == 5:
        body = bytearray(
            body.decode(errors="replace").encode(chance.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7")))
        )
    elif how == 6:
        body = bytearray()
    else:
        body = bytearray(chance.randbytes(chance.choice((1, 16, 1_000))))
    return replace(message, body=bytes(body))


def _depth(message: Sent, chance: random.Random) -> Sent:
    """Nested as deep as nobody means."""
    deep = chance.choice((63, 64, 65, 1_000, 100_000))
    before, after = chance.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"[", b"")))
    inner = before * deep + b"1" + after * deep
    return _instead_of_a_value(message, chance, inner) if chance.random() < 0.7 else replace(message, body=inner)


def _twice(message: Sent, chance: random.Random) -> Sent:
    """A name that stands there twice, with the same value or with another one."""
    body = message.body
    start = body.find(b'"')
    end = body.find(b":", start)
    if start < 0 or end < 0:
        return replace(message, body=body + body)
    value = chance.choice((b"1", b'"x"', b"null"))
    return replace(message, body=b"{" + body[start:end] + b":" + value + b"," + body[1:])


def _size(message: Sent, chance: random.Random) -> Sent:
    """Larger than what may be sent, or just not; seldom, for it takes long."""
    if chance.random() > 0.02:
        return _bytes(message, chance)
    return replace(
        message, body=message.body + b" " * (1024 * 1024 - len(message.body) + chance.choice((0, 1, 1_000)))
    )


def _identity(message: Sent, chance: random.Random) -> Sent:
    """No id, one that is none, or one that says too much."""
    ids = ("x", "0" * 36, "not-a-uuid", "é" * 100, "x" * 255, "\0", "{" + "0" * 32 + "}", "urn:uuid:" + "1" * 32)
    return replace(message, message_id=chance.choice((None, "", _UNDECODABLE, *ids)))


def _headers(message: Sent, chance: random.Random) -> Sent:
    """Headers that are many, deep, long, or mean something else."""
    nested: Any = {"a": 1}
    for _ in range(30):
        nested = {"a": nested}
    headers: tuple[Mapping[str, Any], ...] = (
        {f"h{n}": n for n in range(2_000)},
        {"deep": nested, "list": [[[[1]]]]},
        {"long": "x" * 64_000},
        {"schema_version": chance.choice((0, 2, -1, 10**15, "1", None, 1.5, [1], True))},
        {
            "producer": chance.choice(("x", 1, None, "0" * 32)),
            "producer_sequence": chance.choice((0, -1, 2**62, "1")),
        },
        {"x-replay": True, "fresh": "yes", "x-death": [{"count": 10**9}]},
        {"": "", "é": "\0", _UNDECODABLE: _UNDECODABLE, "d": 1e38},
    )
    return replace(message, headers=chance.choice(headers))


def _property(message: Sent, chance: random.Random) -> Sent:
    """A property that means something else, or nothing."""
    wrong: tuple[tuple[str, Any], ...] = (
        (
            "content_type",
            chance.choice(("text/plain", "application/xml", "", "APPLICATION/JSON; charset=x", _UNDECODABLE)),
        ),
        (
            "reply_to",
            chance.choice(("persistence.events|x", "a|b|c", "amq.topic", "", "\0", "x" * 255, _UNDECODABLE)),
        ),
        ("message_type", chance.choice(("record_trade", "nothing", "x" * 255, _UNDECODABLE))),
        ("correlation_id", chance.choice(("", "\0", "x" * 255, "é\n\x1b[31m", _UNDECODABLE))),
        ("timestamp", chance.choice((0, 1, 2**63 - 1, 253402300799, 10**12))),
        ("app_id", chance.choice(("", "\0", "x" * 255, _UNDECODABLE))),
        ("delivery_mode", 1),
    )
    return replace(message, others=dict(message.others) | dict((chance.choice(wrong),)))


def _address(message: Sent, chance: random.Random) -> Sent:
    """A routing key that is nobody's, or somebody else's."""
    keys = (
        "",
        "#",
        "*",
        "record_trade.x",
        "x" * 255,
        "nothing_is_called_so",
        "RECORD_TRADE",
        "save_bot_log",
        "é",
        "a b\n",
    )
    return replace(message, routing_key=chance.choice(keys))


_DAMAGES: Final[Mapping[str, Callable[[Sent, random.Random], Sent]]] = {
    "a value": _in_value,
    "a number": _number,
    "a text": _text,
    "bytes": _bytes,
    "depth": _depth,
    "a name twice": _twice,
    "size": _size,
    "id": _identity,
    "headers": _headers,
    "a property": _property,
    "address": _address,
}
# Values most: of them there are the most kinds.
_NAMES: Final = (*_DAMAGES, *["a value"] * 8)
