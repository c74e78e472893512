"""The value types of the wire: what a number, a text or an instant may be.

Money travels as a string and is a `Decimal` end to end. A JSON number is taken too, as long as it has no more
than 15 significant digits: up to there a double holds it exactly enough to print the same digits again.
"""

import re
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from decimal import Decimal, InvalidOperation
from math import isfinite
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, Strict, ValidationInfo, WithJsonSchema

WIRE: Final = {"wire": True}
"""Validation context of bodies that came over the wire, where a float has already lost digits."""

MAX_NUMBER_DIGITS: Final = 15
"""Significant digits that every IEEE double keeps."""


_MAX_DIGITS: Final = 200
"""More than any amount has, and than a product or a mean of two has."""
_PLAIN: Final = re.compile(r"-?[0-9]{1,38}(\.[0-9]{1,18})?").fullmatch
_TOO_LONG: Final = "should have no more than 38 digits, 18 of them behind the point"


class JsonNumber(Decimal):
    """A number literal of a JSON text, digit by digit as it was written there."""


def significant_digits(number: Decimal) -> int:
    """How many digits stand between the first and the last one that is not zero."""
    return len("".join(map(str, number.as_tuple().digits)).strip("0")) or 1


def _to_decimal(value: Any, info: ValidationInfo) -> Decimal:
    if type(value) is str and _PLAIN(value):
        return Decimal(value)  # nearly always
    number = _read(value, info)
    if not number.is_finite():
        raise ValueError("must be finite; NaN and infinity are refused")
    # Before any digit is written: "1e999999999" is short to say and a gigabyte to spell out.
    exponent = number.as_tuple().exponent
    if abs(number.adjusted()) > _MAX_DIGITS or (isinstance(exponent, int) and abs(exponent) > _MAX_DIGITS):
        raise ValueError(_TOO_LONG)
    # An exponent ("1E+3") is a way of writing: the value is stored and sent in plain digits.
    return Decimal(format(number, "f"))


def _read(value: Any, info: ValidationInfo) -> Decimal:
    if isinstance(value, str):
        if len(value) > _MAX_DIGITS:
            raise ValueError(_TOO_LONG)
        try:
            number = Decimal(value)
        except InvalidOperation:
            raise ValueError('is not a decimal number; send digits as a string, for example "0.00141342"') from None
        if "_" in value:
            raise ValueError("is not a decimal number; underscores are not allowed")
    elif isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError("must be a decimal number in a string")  # noqa: TRY004 - pydantic reports ValueError only
    elif isinstance(value, float):
        if info.context is not None and info.context.get("wire"):
            raise ValueError("is a number whose digits are lost; send it as a string")
        number = _few_digits(JsonNumber(repr(value)))
    elif isinstance(value, int):
        number = _few_digits(JsonNumber(value))
    else:
        number = _few_digits(value) if isinstance(value, JsonNumber) else value
    return number


def _few_digits(number: JsonNumber) -> Decimal:
    if number.is_finite() and significant_digits(number) > MAX_NUMBER_DIGITS:
        raise ValueError(f"has more than {MAX_NUMBER_DIGITS} significant digits; send it as a string")
    return Decimal(number)


def _plain_digits(number: Decimal) -> str:
    return format(number, "f")


_DECIMAL = (
    BeforeValidator(_to_decimal),
    PlainSerializer(_plain_digits, return_type=str, when_used="json"),
)
_DECIMAL_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "string", "pattern": r"^-?\d{1,38}(\.\d{1,18})?$"}, {"type": "number"}],
    "description": "A decimal number as a string. A JSON number is taken if it has at most 15 significant digits.",
}

ExactDecimal = Annotated[Decimal, *_DECIMAL, WithJsonSchema({"type": "string"})]
"""A number the service sends: every digit it has, as a string."""

Amount = Annotated[Decimal, Field(max_digits=38, decimal_places=18), *_DECIMAL, WithJsonSchema(_DECIMAL_SCHEMA)]
"""Any amount of money or goods, negative ones included: at most 38 digits, 18 of them behind the point."""

NonNegative = Annotated[
    Decimal, Field(max_digits=38, decimal_places=18, ge=0), *_DECIMAL, WithJsonSchema(_DECIMAL_SCHEMA)
]
"""An amount of zero or more."""

Positive = Annotated[
    Decimal, Field(max_digits=38, decimal_places=18, gt=0), *_DECIMAL, WithJsonSchema(_DECIMAL_SCHEMA)
]
"""An amount above zero: a size, or a price in quote currency for one unit of base currency."""


def _to_double(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError("must be a number")  # noqa: TRY004 - pydantic reports ValueError only
    try:
        return float(value)
    except OverflowError:
        raise ValueError("is out of the range of numbers") from None


Statistic = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_to_double)]
"""A ratio or a mean, of which a double holds enough; never money."""


def _only_text_or_instant(value: Any) -> Any:
    if not isinstance(value, str | datetime):
        raise ValueError('must be an ISO 8601 instant with an offset, for example "2019-10-11T00:00:11.620Z"')  # noqa: TRY004
    return value


def _to_utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError('has no offset; say "Z" or "+02:00", a naive time is ambiguous')
    try:
        instant = value.astimezone(UTC)
    except OverflowError:
        raise ValueError("is out of the range of dates") from None
    if not MINYEAR < instant.year < MAXYEAR:
        # Drivers take the first and the last moment for infinity, and others overflow in the next time zone.
        raise ValueError(f"is not in the years {MINYEAR + 1} to {MAXYEAR - 1}")
    return instant


Instant = Annotated[datetime, BeforeValidator(_only_text_or_instant), AfterValidator(_to_utc)]
"""A moment in UTC. An offset is required on the way in."""


HALF_A_PAIR: Final = "holds half of a surrogate pair, which is no character"


def _storable(value: str) -> str:
    if "\x00" in value:
        raise ValueError("holds a NUL character, which PostgreSQL cannot store")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(HALF_A_PAIR) from None
    return value


def _storable_throughout(value: Any) -> Any:
    """A JSON value whose texts the database can hold, and whose numbers are what JSON calls so."""
    if isinstance(value, str):
        return _storable(value)
    if isinstance(value, dict):
        return {_storable(name): _storable_throughout(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_storable_throughout(part) for part in value]
    if isinstance(value, float | Decimal):
        number = float(value)
        if not isfinite(number):
            raise ValueError("holds a number that is out of range")
        return number
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_storable_throughout)]
"""Any JSON object that the database can hold."""

Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=0, le=2**31 - 1)]
Id = Annotated[int, Strict(), Field(ge=1, le=2**31 - 1)]
"""The id of a configured thing: user, account, symbol, bot."""
LedgerId = Annotated[int, Strict(), Field(ge=1, le=2**63 - 1)]
"""The id of a row that is written all day: order, trade, log entry."""
Limit = Annotated[int, Strict(), Field(ge=1, le=1_000)]
"""How many rows of a list to give at most."""

STORABLE: Final = AfterValidator(_storable)
"""What makes a text one that the database can hold. Stands behind its length, which is told in characters only so."""
Text = Annotated[str, STORABLE]
Name = Annotated[str, Field(min_length=1, max_length=50), STORABLE]
Cursor = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[A-Za-z0-9_-]+$")]
"""Where a list goes on: the ``next_cursor`` of the answer before, as it is."""
Mail = Annotated[str, Field(min_length=3, max_length=80, pattern=r"^[^@\s]+@[^@\s]+$"), STORABLE]
SymbolName = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[^a-z\s\x00-\x1f]+$"), STORABLE]
"""A trading pair as the exchange writes it, such as ``BTC/USDT`` or ``BTC/USDT:USDT``; never lower case, so that a
symbol cannot collide with the words of a cache key."""


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


# How exchanges and older bots write the same states.
_STATUS_SYNONYMS: Final = {
    "new": "pending",
    "cancel": "cancelled",
    "canceled": "cancelled",
    "closed": "filled",
    "partial": "partially_filled",
    "partially filled": "partially_filled",
}


def _canonical_status(value: Any) -> Any:
    word = _lower(value)
    return _STATUS_SYNONYMS.get(word, word) if isinstance(word, str) else word


PositionSide = Annotated[Literal["long", "short", "flat"], BeforeValidator(_lower)]
Side = Annotated[Literal["buy", "sell"], BeforeValidator(_lower)]
OrderType = Annotated[
    Literal["market", "limit", "stop", "stop_limit", "take_profit", "take_profit_limit", "trailing_stop"],
    BeforeValidator(_lower),
]
OrderStatus = Annotated[
    Literal["pending", "open", "partially_filled", "filled", "cancelled", "rejected", "expired"],
    BeforeValidator(_canonical_status),
]
"""Where an order stands. Spellings of exchanges ("New", "canceled") are taken for the word they mean."""
Role = Literal["ADMIN", "USER"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

Page = Annotated[int, Strict(), Field(ge=1, le=1_000_000)]
"""The number of a page, from 1."""
