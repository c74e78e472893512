"""Read deliveries whatever their properties hold.

pamqp decodes properties inside the connection's reader and raises for text that is no UTF-8, for timestamps beyond
the calendar and for headers nested very deep. The broker takes such messages, so one of them would break the
connection at every delivery and with it every lane. Here decoding never fails; what could not be read is refused
later, like any other bad input, with the message kept.
"""

import struct
from datetime import datetime
from typing import Any, Final

from pamqp import decode

UNREADABLE_HEADERS: Final = "x-unreadable-headers"
"""Stands in for headers that could not be decoded."""


def _short_str(value: bytes) -> tuple[int, str]:
    length = value[0] if value else 0
    return length + 1, value[1 : length + 1].decode(errors="replace")


def _timestamp(value: bytes) -> tuple[int, datetime | None]:
    try:
        return decode.timestamp(value)
    except (ValueError, OverflowError, OSError):
        return 8, None


def _table(value: bytes) -> tuple[int, dict[str, Any]]:
    try:
        length, table = decode.field_table(value)
    except (ValueError, OverflowError, RecursionError, KeyError):
        (size,) = struct.unpack(">I", value[:4])
        return size + 4, {UNREADABLE_HEADERS: True}
    return length, dict(table)


def install() -> None:
    """Have pamqp decode tolerantly from now on, in this process."""
    decode.METHODS["shortstr"] = _short_str
    decode.METHODS["timestamp"] = _timestamp
    decode.TABLE_MAPPING[b"T"] = _timestamp
    decode.METHODS["table"] = _table
