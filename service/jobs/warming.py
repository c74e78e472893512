"""Fills the cache with the symbols that bots ask for, before they ask."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select

from contracts.base import Lookup, answer_adapter
from contracts.leased_cache import LeasedCache, Loaded
from contracts.symbol import GetDecimals, GetSymbol, GetSymbolById, GetSymbolsByExchange, SymbolView
from service.database import SessionMaker, current_snapshot
from service.jobs.scheduler import Run
from service.lookups import ANSWERS
from service.models import Exchange, Symbol
from service.repositories import SymbolRepository


async def warm(run: Run, cache: LeasedCache) -> None:
    """Warm the catalog exchange that was asked for, or every one that has an active account."""
    asked: int | None = run.parameters.get("cat_ex_id")
    async with run.step() as session:
        active = select(Exchange.cat_ex_id).where(Exchange.active).distinct().order_by(Exchange.cat_ex_id)
        catalogs = [asked] if asked is not None else list(await session.scalars(active))
    for cat_ex_id in catalogs:
        filled = await warm_catalog(run.sessions, cache, cat_ex_id)
        async with run.step():
            run.done["keys"] += filled


async def warm_catalog(sessions: SessionMaker, cache: LeasedCache, cat_ex_id: int) -> int:
    """Cache every answer about the symbols of a catalog exchange that is not cached; gives how many those were.

    Which keys there are is asked first, because a value may be stored only if it was loaded after its key was leased.
    """
    async with sessions() as session:
        listed = (
            await session.execute(select(Symbol.id, Symbol.symbol).where(Symbol.exchange_id == cat_ex_id))
        ).all()

    async def load(_: Sequence[str]) -> dict[str, Loaded]:
        async with sessions() as session:
            snapshot = await current_snapshot(session)
            symbols = await SymbolRepository(session).get_by_exchange_id(cat_ex_id)
        answers = _answers(cat_ex_id, [SymbolView.model_validate(symbol) for symbol in symbols])
        return {key: Loaded(answer, snapshot) for key, answer in answers.items()}

    questions = [
        GetSymbolsByExchange(cat_ex_id=cat_ex_id),
        *(q for row in listed for q in _questions(cat_ex_id, *row)),
    ]
    return await cache.fill([_key(question) for question in questions], load)


def _questions(cat_ex_id: int, symbol_id: int, symbol: str) -> list[Lookup[Any]]:
    """What is asked about one symbol, and answered under keys of its own."""
    return [
        GetSymbol(symbol=symbol, cat_ex_id=cat_ex_id),
        GetSymbolById(symbol_id=symbol_id),
        GetDecimals(symbol_id=symbol_id),
    ]


def _answers(cat_ex_id: int, symbols: Sequence[SymbolView]) -> dict[str, bytes]:
    """What those questions are answered with, by key."""
    answers: list[tuple[Lookup[Any], Any]] = [(GetSymbolsByExchange(cat_ex_id=cat_ex_id), symbols)]
    for symbol in symbols:
        by_name, by_id, decimals = _questions(cat_ex_id, symbol.symbol_id, symbol.symbol)
        answers += [(by_name, symbol), (by_id, symbol), (decimals, symbol.decimals)]
    return {_key(question): answer_adapter(type(question)).dump_json(answer) for question, answer in answers}


def _key(question: Lookup[Any]) -> str:
    key = ANSWERS[type(question)].key
    assert key is not None  # noqa: S101 - these are cached
    return str(key(question))
