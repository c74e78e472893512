"""Symbols: the trading pairs of a catalog exchange."""

from typing import Annotated, Literal

from pydantic import Field

from contracts.base import Command, Event, Lookup, Part, Updates, View
from contracts.types import STORABLE, Cursor, ExactDecimal, Flag, Id, Limit, Positive, SymbolName

Decimals = Annotated[int, Field(strict=True, ge=0, le=18)]
Ticker = Annotated[str, Field(min_length=1, max_length=40), STORABLE]
Currency = Annotated[str, Field(min_length=1, max_length=20), STORABLE]
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


class SymbolRules(Part):
    """What an exchange says of a symbol that it lists."""

    symbol: SymbolName
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
    updateframe: Annotated[str, Field(min_length=1, max_length=4), STORABLE] = "1h"
    backtest: Flag = False
    futures: Flag = False
    only_ticker: Flag = False


class SymbolFields(SymbolRules):
    """What one says of a symbol to list it."""

    cat_ex_id: Id


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
    updateframe: Annotated[str, Field(min_length=1, max_length=4), STORABLE] | None = None
    backtest: Flag | None = None
    futures: Flag | None = None
    only_ticker: Flag | None = None


class UpdateSymbol(Command[SymbolView], name="update_symbol"):
    """Change a symbol. ``conflict`` if its name is taken there or ``expected_version`` is not its version."""

    symbol_id: Id
    updates: SymbolUpdates
    expected_version: Id | None = None


class DeleteSymbol(Command[SymbolView], name="delete_symbol"):
    """Take a symbol off the list of its exchange, with its ticks; answered with what it was.

    ``conflict`` while an order, a trade, a dry trade or a position is about it or a bot listens to it, or if
    ``expected_version`` is not its version.
    """

    symbol_id: Id
    expected_version: Id | None = None


class SymbolSyncError(View):
    """A symbol of a synchronization that was left as it is, and why."""

    index: int
    """Its place in the list, from 0."""
    symbol: str
    code: str
    error: str


class SymbolsSynced(View):
    """What a synchronization did."""

    created: int
    updated: int
    unchanged: int
    """Listed before with the same content."""
    errors: list[SymbolSyncError]


class SyncExchangeSymbols(Command[SymbolsSynced], name="sync_exchange_symbols"):
    """Bring the symbols of the exchange of an account to what the exchange says, in one transaction.

    Those it does not list yet are listed; of the others the fields named here are set. Symbols that are not named
    stay as they are.
    """

    ex_id: Id
    """A user's account; the symbols are those of its catalog exchange."""
    symbols: Annotated[list[SymbolRules], Field(min_length=1, max_length=2_000)]


class GetSymbol(Lookup[SymbolView | None], name="get_symbol"):
    """A symbol by its name on a catalog exchange; null if it is not listed there."""

    symbol: SymbolName
    cat_ex_id: Id


class GetSymbolById(Lookup[SymbolView | None], name="get_symbol_by_id"):
    """A symbol by its id; null if there is none."""

    symbol_id: Id


class GetIdBySymbol(Lookup[int | None], name="get_id_by_symbol"):
    """The id of the symbol of that name on a catalog exchange; null if it is not listed there."""

    symbol: SymbolName
    cat_ex_id: Id


class SymbolsPage(View):
    """Some symbols by id."""

    symbols: list[SymbolView]
    next_cursor: str | None
    """Give it as ``cursor`` to get what follows; null once a page is not full."""


class GetAllSymbols(Lookup[SymbolsPage], name="get_all_symbols"):
    """The symbols of all exchanges, or of one, by id."""

    exchange_name: Annotated[str, Field(min_length=1, max_length=50), STORABLE] | None = None
    """The name of a catalog exchange."""
    active_only: Flag = False
    """Leave out those halted or delisted."""
    limit: Limit = 1_000
    cursor: Cursor | None = None


class SearchSymbols(Lookup[list[SymbolView]], name="search_symbols"):
    """Symbols with a text in their name, ticker, base or quote currency, in any case, by name.

    ``%`` and ``_`` stand for themselves.
    """

    query: Annotated[str, Field(min_length=1, max_length=40), STORABLE]
    cat_ex_id: Id | None = None
    limit: Limit = 100


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


class SymbolCreated(Event[SymbolView], name="symbol.created", key=("symbol_id",)):
    """Symbols were listed."""


class SymbolUpdated(Event[SymbolView], name="symbol.updated", key=("symbol_id",)):
    """A symbol's name, exchange or rules changed."""


class SymbolDeleted(Event[SymbolView], name="symbol.deleted", key=("symbol_id",)):
    """A symbol was taken off the list of its exchange."""


class SymbolsChanged(Event[SymbolView], name="symbols.changed", key=("symbol_id",)):
    """A synchronization listed symbols (without an image before) and changed others."""
