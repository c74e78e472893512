"""Symbols: the trading pairs of a catalog exchange."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from contracts import cache_keys
from contracts.base import Command, Event, Lookup, Part, Updates, View
from contracts.types import ExactDecimal, Flag, Id, Positive, SymbolName, Text

Decimals = Annotated[int, Field(strict=True, ge=0, le=18)]
Ticker = Annotated[Text, Field(min_length=1, max_length=40)]
Currency = Annotated[Text, Field(min_length=1, max_length=20)]
Status = Literal["active", "halted", "delisted"]


class SymbolView(View):
    """A trading pair with the rules its exchange sets."""

    symbol_id: Id
    symbol: str
    cat_ex_id: Id
    ticker: str | None
    base: str | None
    quote: str | None
    decimals: int
    tick_size: ExactDecimal | None
    step_size: ExactDecimal | None
    min_size: ExactDecimal | None
    max_size: ExactDecimal | None
    status: Status
    updateframe: str
    backtest: bool
    futures: bool
    only_ticker: bool
    row_version: int


class SymbolFields(Part):
    """What one says of a symbol to list it."""

    symbol: SymbolName
    cat_ex_id: Id
    ticker: Ticker | None = None
    base: Currency | None = None
    quote: Currency | None = None
    decimals: Decimals = 8
    """Decimal places of a price."""
    tick_size: Positive | None = None
    """The smallest step of a price."""
    step_size: Positive | None = None
    """The smallest step of a size."""
    min_size: Positive | None = None
    max_size: Positive | None = None
    status: Status = "active"
    updateframe: Annotated[Text, Field(min_length=1, max_length=4)] = "1h"
    backtest: Flag = False
    futures: Flag = False
    only_ticker: Flag = False


class AddSymbol(SymbolFields, Command[SymbolView], name="add_symbol"):
    """List a symbol on a catalog exchange.

    The same symbol again is answered with the stored one (``meta.duplicate``); with other content it is a
    ``conflict``. ``not_found`` if there is no such exchange.
    """


class SymbolFailure(View):
    """A symbol of a list that was refused, and why."""

    index: int
    """Its place in the list, from 0."""
    symbol: str
    code: str
    message: str


class SymbolsAdded(View):
    """What became of a list of symbols."""

    created: int
    existing: int
    """Listed before with the same content."""
    failed: int
    failures: list[SymbolFailure]
    symbols: list[SymbolView]
    """Those listed now, new or not, in the order of the list."""


class AddSymbols(Command[SymbolsAdded], name="add_symbols"):
    """List many symbols at once; one that is refused does not hold up the others."""

    symbols: Annotated[list[SymbolFields], Field(min_length=1, max_length=2_000)]


class SymbolUpdates(Updates):
    """The fields to change; those left out stay as they are."""

    never_null = frozenset(
        {"symbol", "cat_ex_id", "decimals", "status", "updateframe", "backtest", "futures", "only_ticker"}
    )

    symbol: SymbolName | None = None
    cat_ex_id: Id | None = None
    ticker: Ticker | None = None
    base: Currency | None = None
    quote: Currency | None = None
    decimals: Decimals | None = None
    tick_size: Positive | None = None
    step_size: Positive | None = None
    min_size: Positive | None = None
    max_size: Positive | None = None
    status: Status | None = None
    updateframe: Annotated[Text, Field(min_length=1, max_length=4)] | None = None
    backtest: Flag | None = None
    futures: Flag | None = None
    only_ticker: Flag | None = None


class UpdateSymbol(Command[SymbolView], name="update_symbol"):
    """Change a symbol. ``conflict`` if its name is taken there or ``expected_version`` is not its version."""

    symbol_id: Id
    updates: SymbolUpdates
    expected_version: Id | None = None


class GetSymbol(Lookup[SymbolView | None], name="get_symbol"):
    """A symbol by its name on a catalog exchange; null if it is not listed there."""

    symbol: SymbolName
    cat_ex_id: Id


class GetSymbolsByExchange(Lookup[list[SymbolView]], name="get_symbols_by_exchange"):
    """All symbols of a catalog exchange by name; empty if there are none."""

    cat_ex_id: Id


class SymbolExists(Lookup[bool], name="symbol_exists"):
    """Whether a catalog exchange lists a symbol."""

    symbol: SymbolName
    cat_ex_id: Id


class GetDecimals(Lookup[int | None], name="get_decimals"):
    """Decimal places of a symbol's prices; null if there is no such symbol."""

    symbol_id: Id


def _keys(image: SymbolView) -> Iterable[str]:
    return (
        cache_keys.symbol(image.symbol, image.cat_ex_id),
        cache_keys.symbols_of_exchange(image.cat_ex_id),
        cache_keys.symbol_decimals(image.symbol_id),
    )


class SymbolCreated(Event[SymbolView], name="symbol.created", key=("symbol_id",)):
    """Symbols were listed."""

    @classmethod
    def keys_of(cls, image: SymbolView) -> Iterable[str]:
        return _keys(image)


class SymbolUpdated(Event[SymbolView], name="symbol.updated", key=("symbol_id",)):
    """A symbol's name, exchange or rules changed."""

    @classmethod
    def keys_of(cls, image: SymbolView) -> Iterable[str]:
        return _keys(image)
