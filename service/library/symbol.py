"""Symbols."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog
from pydantic import TypeAdapter, ValidationError

from contracts import cache_keys
from contracts.base import refusal_of
from contracts.cache_store import REDIS_AWAY
from contracts.errors import ErrorCode, Refusal
from contracts.symbol import SymbolFields, SymbolView
from service.cache import cache_manager, detached
from service.database import build_session_maker, get_async_session
from service.engine import get_engine
from service.errors import is_transient
from service.jobs.warming import warm_catalog
from service.models import Symbol
from service.repositories import SymbolRepository

log = structlog.get_logger()

_SYMBOLS = TypeAdapter(list[SymbolView])
_LAST_KNOWN_SECONDS = 7 * 86_400


async def bulk_create_symbols(symbols_data: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """List many symbols at once: ``{created, existing, failed, failures}``, a failure being ``{data, error}``.

    One that is refused does not hold up the others; ``existing`` were listed before with the same content.
    """
    wanted: list[tuple[Mapping[str, Any], dict[str, Any]]] = []
    failures = []
    for data in symbols_data:
        try:
            fields = {("cat_ex_id" if name == "exchange_id" else name): value for name, value in data.items()}
            wanted.append((data, SymbolFields.model_validate(fields).model_dump(exclude_unset=True)))
        except ValidationError as error:
            failures.append({"data": data, "error": str(refusal_of(error))})
    async with get_async_session() as session:
        outcomes = await SymbolRepository(session).add_symbols([symbol for _, symbol in wanted])
    created = existing = 0
    for (data, _), outcome in zip(wanted, outcomes, strict=True):
        if isinstance(outcome, Refusal):
            failures.append({"data": data, "error": str(outcome)})
        elif outcome[1]:
            created += 1
        else:
            existing += 1
    return {"created": created, "existing": existing, "failed": len(failures), "failures": failures}


async def warm_symbol_cache(exchange_id: int) -> int:
    """Cache the list of a catalog exchange and each of its symbols; gives the number of symbols.

    A few statements and a few round trips to Redis for any number of them.
    """
    # Not sessions of `get_async_session`, which would ask the cache.
    await cache_manager.certificate.look_if_due()
    filled = await warm_catalog(build_session_maker(get_engine()), cache_manager.values, exchange_id)
    async with get_async_session() as session:
        symbols = await SymbolRepository(session).get_by_exchange_id(exchange_id)
    log.info("cache_warmed", cat_ex_id=exchange_id, symbols=len(symbols), answers=filled)
    return len(symbols)


async def get_symbols_with_fallback(exchange_id: int) -> list[Symbol]:
    """The symbols of a catalog exchange; with the database away, as this function has seen them last.

    Last means within a week, by whatever process. ``unavailable`` if they cannot be had either way: an empty list
    means that there are none.
    """
    try:
        async with get_async_session() as session:
            symbols = await SymbolRepository(session).get_by_exchange_id(exchange_id)
    except Exception as error:
        if not is_transient(error):
            raise
        log.warning("database_away", cat_ex_id=exchange_id, error=type(error).__name__, answer="last known")
        return await _last_known(exchange_id)
    with suppress(*REDIS_AWAY):
        copy = _SYMBOLS.dump_json(_SYMBOLS.validate_python(symbols))
        await cache_manager.redis_client.set(_name_of_last_known(exchange_id), copy, ex=_LAST_KNOWN_SECONDS)
    return symbols


async def _last_known(cat_ex_id: int) -> list[Symbol]:
    copy = None
    with suppress(*REDIS_AWAY):
        copy = await cache_manager.redis_client.get(_name_of_last_known(cat_ex_id))
    if copy is None:
        raise Refusal(ErrorCode.UNAVAILABLE, "neither the database nor Redis has the symbols", retryable=True)
    return [detached(Symbol, view) for view in _SYMBOLS.validate_json(copy)]


def _name_of_last_known(cat_ex_id: int) -> str:
    """Beside the cache, of which nothing is given out that may be stale."""
    return f"{cache_manager.settings.cache_namespace}:last_known:{cache_keys.symbols_of_exchange(cat_ex_id)}"
