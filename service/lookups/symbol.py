"""Lookups of symbols, most of them cached."""

from contracts import cache_keys
from contracts.symbol import (
    GetAllSymbols,
    GetDecimals,
    GetIdBySymbol,
    GetSymbol,
    GetSymbolById,
    GetSymbolsByExchange,
    SearchSymbols,
    SymbolExists,
    SymbolsPage,
    SymbolView,
)
from service.cursor import next_after
from service.registry import LookupTable
from service.unit_of_work import UnitOfWork

lookups = LookupTable()


@lookups.answers(GetSymbol, cached_under=lambda lookup: cache_keys.symbol(lookup.symbol, lookup.cat_ex_id))
async def get_symbol(lookup: GetSymbol, reads: UnitOfWork) -> SymbolView | None:
    symbol = await reads.symbols.get_by_symbol(lookup.symbol, lookup.cat_ex_id)
    return None if symbol is None else SymbolView.model_validate(symbol)


@lookups.answers(GetSymbolsByExchange, cached_under=lambda lookup: cache_keys.symbols_of_exchange(lookup.cat_ex_id))
async def get_symbols_by_exchange(lookup: GetSymbolsByExchange, reads: UnitOfWork) -> list[SymbolView]:
    return [SymbolView.model_validate(symbol) for symbol in await reads.symbols.get_by_exchange_id(lookup.cat_ex_id)]


@lookups.answers(GetDecimals, cached_under=lambda lookup: cache_keys.symbol_decimals(lookup.symbol_id))
async def get_decimals(lookup: GetDecimals, reads: UnitOfWork) -> int | None:
    return await reads.symbols.get_decimals(lookup.symbol_id)


@lookups.derives(SymbolExists, lambda lookup: GetSymbol(symbol=lookup.symbol, cat_ex_id=lookup.cat_ex_id))
def symbol_exists(symbol: SymbolView | None) -> bool:
    return symbol is not None


@lookups.answers(GetSymbolById, cached_under=lambda lookup: cache_keys.symbol_by_id(lookup.symbol_id))
async def get_symbol_by_id(lookup: GetSymbolById, reads: UnitOfWork) -> SymbolView | None:
    symbol = await reads.symbols.get_by_id(lookup.symbol_id)
    return None if symbol is None else SymbolView.model_validate(symbol)


@lookups.derives(GetIdBySymbol, lambda lookup: GetSymbol(symbol=lookup.symbol, cat_ex_id=lookup.cat_ex_id))
def get_id_by_symbol(symbol: SymbolView | None) -> int | None:
    return None if symbol is None else symbol.symbol_id


# What everybody asks for at the start is cached: all symbols, from the first on. A part of them is not.
@lookups.answers(
    GetAllSymbols, cached_under=lambda lookup: cache_keys.all_symbols() if lookup == GetAllSymbols() else None
)
async def get_all_symbols(lookup: GetAllSymbols, reads: UnitOfWork) -> SymbolsPage:
    symbols = await reads.symbols.get_all(**lookup.model_dump())
    return SymbolsPage(
        symbols=[SymbolView.model_validate(symbol) for symbol in symbols],
        next_cursor=next_after(symbols, lookup.limit, "symbol_id"),
    )


@lookups.answers(SearchSymbols)
async def search_symbols(lookup: SearchSymbols, reads: UnitOfWork) -> list[SymbolView]:
    return [SymbolView.model_validate(symbol) for symbol in await reads.symbols.search_symbols(**lookup.model_dump())]
