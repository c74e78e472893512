"""Where a list was left off: the sort key of its last row, in a form that callers pass back without reading it."""

import binascii
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy import BigInteger, ColumnElement, literal, true, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from contracts.errors import ErrorCode, Refusal
from contracts.types import Instant

_BIGGEST: Final = 2**63 - 1
_INSTANT: Final[TypeAdapter[datetime]] = TypeAdapter(Instant)


def behind(
    cursor: str | None, *columns: InstrumentedAttribute[Any], newest_first: bool = False
) -> ColumnElement[bool]:
    """The rows that come after the one ``cursor`` was made from, in a list sorted by ``columns``; all without one.

    ``validation`` for a cursor that no list sorted like this has given.
    """
    if cursor is None:
        return true()
    types = [column.type for column in columns]
    place = tuple_(
        *(
            literal(value, BigInteger() if isinstance(value, int) else kind)
            for value, kind in zip(_read(cursor, [kind.python_type for kind in types]), types, strict=True)
        )
    )
    return tuple_(*columns) < place if newest_first else tuple_(*columns) > place


def next_after(rows: Sequence[Any], limit: int, *names: str) -> str | None:
    """The cursor that goes on after ``rows``, by the attributes they are sorted by; None if they were the last."""
    if len(rows) < limit:
        return None
    key = [getattr(rows[-1], name) for name in names]
    text = json.dumps([value.isoformat() if isinstance(value, datetime) else value for value in key])
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read(cursor: str, kinds: Sequence[type]) -> list[Any]:
    try:
        values = json.loads(urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
        return [_value(value, kind) for value, kind in zip(values, kinds, strict=True)]
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise Refusal(ErrorCode.VALIDATION, "is none that this lookup gave", field="cursor") from None


def _value(value: Any, kind: type) -> Any:
    if kind is datetime and isinstance(value, str):
        return _INSTANT.validate_python(datetime.fromisoformat(value))
    if (kind is int and isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _BIGGEST) or (
        kind is str and isinstance(value, str) and "\x00" not in value
    ):
        return value
    raise ValueError
