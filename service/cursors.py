"""Cursors: where a list goes on, as a text that only the service reads."""

import base64
import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from contracts.errors import ErrorCode, Refusal

K = TypeVar("K", bound=tuple[Any, ...])


def cursor_after(*keys: Any) -> str:
    """The cursor of what comes after the row that these values order."""
    return (
        base64.urlsafe_b64encode(json.dumps(keys, separators=(",", ":"), default=str).encode()).rstrip(b"=").decode()
    )


def keys_in(cursor: str, shape: type[K]) -> K:
    """The values that `cursor_after` was given; raises `Refusal` for a cursor it did not make."""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        return TypeAdapter(shape).validate_json(text, strict=True)
    except (ValueError, ValidationError):
        raise Refusal(
            ErrorCode.VALIDATION, "is none of ours; send back next_cursor as it came", field="cursor"
        ) from None
