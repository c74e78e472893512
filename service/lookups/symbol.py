"""Lookups of symbols, all of them cached."""

from contracts import cache_keys
from contracts.symbol import GetDecimals, GetSymbol, GetSymbolsByExchange, SymbolExists, SymbolView
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
