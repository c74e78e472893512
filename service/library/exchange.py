"""Exchange accounts."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from contracts.base import refusal_of
from contracts.symbol import SymbolRules
from service.database import get_async_session
from service.models import Exchange
from service.repositories import ExchangeRepository, SymbolRepository

FetchSymbols = Callable[[Exchange], Awaitable[Iterable[Mapping[str, Any]]]]
"""Asks an exchange, by way of an account, what it lists."""


async def sync_exchange_data(exchange_id: int, fetch_exchange_symbols: FetchSymbols) -> dict[str, Any]:
    """Bring the catalog of an account to what the exchange lists: ``{created, updated, unchanged, errors}``.

    An error is ``{symbol, error}`` and holds up no other symbol. ``{error}`` if there is no such account. The
    exchange is asked while no transaction is open.
    """
    async with get_async_session() as session:
        exchange = await ExchangeRepository(session).get_by_id(exchange_id)
    if exchange is None:
        return {"error": "Exchange not found"}
    symbols = []
    errors = []
    for listed in await fetch_exchange_symbols(exchange):
        said = {name: value for name, value in listed.items() if name not in ("exchange_id", "cat_ex_id")}
        try:
            symbols.append(SymbolRules.model_validate(said).model_dump(exclude_unset=True))
        except ValidationError as error:
            errors.append({"symbol": listed.get("symbol", "unknown"), "error": str(refusal_of(error))})
    async with get_async_session() as session:
        done = await SymbolRepository(session).sync_exchange_symbols(exchange_id, symbols)
    errors += [{"symbol": symbols[place]["symbol"], "error": str(why)} for place, why in done.errors.items()]
    return {"created": done.created, "updated": done.updated, "unchanged": done.unchanged, "errors": errors}
