"""What every message is: commands, lookups, the views they answer with, and change events.

A subclass states its wire name; nothing is derived from a class name, so renaming a class cannot rename a message.
"""

import builtins
import json
import re
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from functools import cache
from typing import Any, ClassVar, Final, Generic, Literal, Self, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from contracts.cache_keys import stale_keys, stale_templates
from contracts.errors import ErrorCode, Refusal
from contracts.topology import MAX_JSON_DEPTH, Lane
from contracts.types import HALF_A_PAIR, WIRE, JsonNumber

R = TypeVar("R")
V = TypeVar("V", bound="View")

# Every message there is, by wire name; filled by the class statements themselves.
COMMAND_TYPES: Final[dict[str, "type[Command[Any]]"]] = {}
LOOKUP_TYPES: Final[dict[str, "type[Lookup[Any]]"]] = {}
EVENT_TYPES: Final[dict[str, "type[Event[Any]]"]] = {}


class Part(BaseModel):
    """A piece of a command: closed, so that a misspelt field is an error and not a silent nothing."""

    # A validation error must not print its input: a mistyped secret would end in a log.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Updates(Part):
    """What to change about a row: the fields that are named; those left out stay as they are."""

    never_null: ClassVar[frozenset[str]] = frozenset()
    """Fields that can be given another value and cannot be emptied."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("names no field to change")
        for name in sorted(self.never_null & self.model_fields_set):
            if getattr(self, name) is None:
                raise ValueError(f"{name} cannot be null")
        return self

    def values(self) -> dict[str, Any]:
        """The named fields and their new values."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}


class View(BaseModel):
    """A thing as the world sees it. Open for fields that a later version adds; holds no secret, ever."""

    model_config = ConfigDict(frozen=True, extra="ignore", from_attributes=True, hide_input_in_errors=True)


class Request(Part, Generic[R]):
    """A message that asks for something and may be answered with an ``R``."""

    wire_name: ClassVar[str]
    """The routing key it is published with."""

    @classmethod
    def answer_type(cls) -> Any:
        """The ``R`` of this request: a view, a list of views or a plain value."""
        for base in cls.__mro__:
            arguments = getattr(base, "__pydantic_generic_metadata__", {}).get("args")
            if arguments:
                return arguments[0]
        raise TypeError(f"{cls.__name__} does not say what it is answered with")


class Command(Request[R], Generic[R]):
    """An order to change something; takes effect exactly once per ``message_id``."""

    lane: ClassVar[Lane]

    def __init_subclass__(cls, *, name: str | None = None, lane: Lane = Lane.CONFIG, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is not None:
            cls.wire_name = name
            cls.lane = lane
            _register(COMMAND_TYPES, name, cls)


class Lookup(Request[R], Generic[R]):
    """A question about what is stored; changes nothing."""

    restricted: ClassVar[bool]
    """Whether the answer holds secrets, so that the service may want to know who asks."""

    def __init_subclass__(cls, *, name: str | None = None, restricted: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is not None:
            cls.wire_name = name
            cls.restricted = restricted
            _register(LOOKUP_TYPES, name, cls)


class Change(BaseModel, Generic[V]):
    """One row before and after. ``version`` counts the row's changes from 1 on."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    key: dict[str, Any]
    """The primary key columns and their values."""
    version: int
    before: V | None = None
    after: V | None = None
    changed: list[str] = []
    """Names of the fields that differ; all of them for a new or a deleted row."""


class Event(BaseModel, Generic[V]):
    """Changes of one type that one transaction made, in order.

    Delivered at least once: ``event_id`` tells a repeated delivery. Per row the versions arrive in order.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    wire_name: ClassVar[str]
    """The routing key, ``<entity>.<verb>``."""
    key_fields: ClassVar[tuple[str, ...]]

    event_id: UUID
    type: str
    sequence: int
    """Counts the events of this type without gaps, so that a subscriber notices a lost one."""
    occurred_at: datetime
    transaction: str
    """The transaction's id in the database, the same that the command's reply carries as ``commit_token``."""
    causation_ids: list[UUID]
    """Message ids of the commands that caused it."""
    changes: list[Change[V]]
    stale_keys: list[str]
    """Logical cache keys whose value these changes made wrong; ``*`` for a part stands for all keys of a kind."""

    def __init_subclass__(cls, *, name: str | None = None, key: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is not None:
            cls.wire_name = name
            cls.key_fields = key
            _register(EVENT_TYPES, name, cls)

    @classmethod
    def view_type(cls) -> builtins.type[V]:
        """The view that ``before`` and ``after`` hold."""
        for base in cls.__mro__:
            arguments = getattr(base, "__pydantic_generic_metadata__", {}).get("args")
            if arguments:
                view: builtins.type[V] = arguments[0]
                return view
        raise TypeError(f"{cls.__name__} does not say whose change it is")

    @classmethod
    def stale_keys_of(cls, changes: Iterable[Change[V]]) -> list[str]:
        """Logical cache keys that ``changes`` make stale, each once, as `contracts.cache_keys` declares it."""
        found = (key for change in changes for key in stale_keys(cls.wire_name, change.before, change.after))
        return list(dict.fromkeys(found))

    @classmethod
    def stale_key_templates(cls) -> list[str]:
        """What these keys look like, with fields of the view in braces."""
        return stale_templates(cls.wire_name)


def _register(registry: dict[str, Any], name: str, message: type) -> None:
    if name in registry:
        raise TypeError(f"{name!r} is taken by {registry[name].__name__}")
    registry[name] = message


class Meta(BaseModel):
    """What a reply says beside its answer."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    duplicate: bool = False
    """The same message id was handled before; this is the answer it got then."""
    version: int | None = None
    """The version of the row that was written, where it has one."""
    commit_token: str | None = None
    """The transaction that stored it; the event that announces it carries the same one.

    A lookup with it as ``after`` shows what was stored.
    """
    cache: Literal["pending"] | None = None
    """Set if cached answers may be older than this for a moment, until the event is applied: Redis did not answer."""


class ErrorBody(BaseModel):
    """Why the answer is no."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    code: ErrorCode
    message: str
    field: str | None = None
    retryable: bool = False


class Reply(BaseModel):
    """The answer to a request: data, or an error with a code."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    ok: bool
    data: Any = None
    error: ErrorBody | None = None
    meta: Meta = Meta()


class Duplicates(Exception):  # noqa: N818 - never leaves this module
    pass


def decode(message: type[Part], body: bytes) -> Any:
    """The message in ``body``; raises `Refusal` that names the field and the reason.

    The common case is one pass of pydantic. Only a body that this pass refuses is read again, number by number:
    to accept short JSON numbers as money, or to say precisely what is wrong.
    """
    if (depth := nesting(body)) > MAX_JSON_DEPTH:
        raise Refusal(
            ErrorCode.VALIDATION, f"JSON is nested {depth} deep; at most {MAX_JSON_DEPTH} is read", field="body"
        )
    try:
        fast = message.model_validate_json(body, context=WIRE)
    except ValidationError:
        pass
    else:
        if len(_NAME.findall(body)) == len(fast.model_fields_set):
            return fast
        # More names than fields: nested ones, or one that stands there twice, of which pydantic takes the last.
    try:
        fields = json.loads(
            body,
            parse_int=_whole_number,
            parse_float=JsonNumber,
            parse_constant=JsonNumber,
            object_pairs_hook=_without_duplicates,
        )
        return message.model_validate(fields, context=WIRE)
    except ValidationError as error:
        raise refusal_of(error) from None
    except Duplicates as error:
        raise Refusal(ErrorCode.VALIDATION, "stands there twice", field=_readable(str(error))) from None
    except (ValueError, RecursionError) as error:
        # JSONDecodeError and UnicodeDecodeError are both ValueErrors; their texts say where, not what.
        raise Refusal(ErrorCode.VALIDATION, f"is not JSON: {error}", field="body") from None


def _readable(name: str) -> str:
    """A name that a sender made up, so that tables and logs can hold it: short, and all of it text."""
    return name[:200].encode(errors="backslashreplace").decode().replace("\0", "\\x00")


def refusal_of(error: ValidationError) -> Refusal:
    """The first thing wrong with a message, without the input itself, which may be a secret."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = _readable(".".join(str(part) for part in first["loc"])) or "body"
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        reason = "is not a field of this message"
    elif first["type"] == "string_unicode":
        reason = HALF_A_PAIR
    return Refusal(ErrorCode.VALIDATION, reason, field=field)


def nesting(body: bytes) -> int:
    """How deep objects and arrays are nested, counted without building anything."""
    if body.count(b"{") + body.count(b"[") <= MAX_JSON_DEPTH:
        return 0  # cannot be too deep, and this is what nearly every message looks like
    depth = deepest = 0
    in_string = escaped = False
    for byte in body:
        if in_string:
            if escaped:
                escaped = False
            elif byte == _BACKSLASH:
                escaped = True
            elif byte == _QUOTE:
                in_string = False
        elif byte == _QUOTE:
            in_string = True
        elif byte in b"{[":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"}]":
            depth -= 1
    return deepest


_LONG_INTEGER: Final = 100
_NAME: Final = re.compile(rb'"\s*:')
_QUOTE: Final = ord('"')
_BACKSLASH: Final = ord("\\")


def _whole_number(digits: str) -> int | JsonNumber:
    """Python refuses to read very long integers, without a word on the field; its validator finds the words."""
    return int(digits) if len(digits) < _LONG_INTEGER else JsonNumber(digits)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise Duplicates(next(name for name, count in counts.items() if count > 1))
    return fields


@cache
def answer_adapter(request: type[Request[Any]]) -> TypeAdapter[Any]:
    """Reads and writes the answers of ``request``."""
    return TypeAdapter(request.answer_type())
