"""Symbols in the database."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.errors import ErrorCode, Refusal
from contracts.symbol import SymbolCreated, SymbolUpdated, SymbolView
from service.models import CatExchange, Symbol
from service.outbox import record
from service.repositories.base import BaseRepository, check_version, differing

# asyncpg binds at most 32,767 parameters in a statement, and a symbol has fifteen.
_ROWS_PER_INSERT = 1_000

# Rows of one INSERT name the same columns; these stand in for what a symbol leaves out.
_UNSAID: Final[dict[str, Any]] = {
    **dict.fromkeys(("ticker", "base", "quote", "tick_size", "step_size", "min_size", "max_size")),
    "decimals": 8,
    "status": "active",
    "updateframe": "1h",
    "backtest": False,
    "futures": False,
    "only_ticker": False,
}


class SymbolRepository(BaseRepository[Symbol]):
    """Symbols by id and by name on a catalog exchange."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, Symbol)

    async def add_symbol(self, symbol_data: dict[str, Any]) -> Symbol:
        """The symbol, listed if it was not. ``conflict`` if it is listed with other content."""
        [outcome] = await self.add_symbols([symbol_data])
        if isinstance(outcome, Refusal):
            raise outcome
        symbol, _ = outcome
        return symbol

    async def add_symbols(self, symbols: Sequence[dict[str, Any]]) -> list[tuple[Symbol, bool] | Refusal]:
        """For each one the symbol and whether it is new, or why it was refused; in the order given.

        Takes ``cat_ex_id``, or ``exchange_id`` for it. Three statements for any number up to a thousand.
        """
        wanted = [_columns(symbol) for symbol in symbols]
        catalogs = set(
            await self.session.scalars(
                select(CatExchange.cat_ex_id).where(
                    CatExchange.cat_ex_id.in_({symbol["exchange_id"] for symbol in wanted})
                )
            )
        )
        # Sorted, so that two writers of the same symbols wait for each other instead of deadlocking.
        rows = {_key(symbol): symbol for symbol in reversed(wanted) if symbol["exchange_id"] in catalogs}
        new = await self._insert([rows[key] for key in sorted(rows)])
        listed = await self._listed(list(rows))
        for key in new:
            record(self.session, SymbolCreated, after=SymbolView.model_validate(listed[key]))
        outcomes: list[tuple[Symbol, bool] | Refusal] = []
        for symbol in wanted:
            key = _key(symbol)
            if key not in listed:
                outcomes.append(
                    Refusal(ErrorCode.NOT_FOUND, f"there is no catalog exchange {key[0]}", field="cat_ex_id")
                )
            elif fields := differing(listed[key], symbol):
                outcomes.append(
                    Refusal(ErrorCode.CONFLICT, f"is listed with another {', '.join(fields)}", field="symbol")
                )
            else:
                outcomes.append((listed[key], key in new))
                new.discard(key)
        return outcomes

    async def _insert(self, rows: list[dict[str, Any]]) -> set[tuple[int, str]]:
        new: set[tuple[int, str]] = set()
        for start in range(0, len(rows), _ROWS_PER_INSERT):
            chunk = [_UNSAID | row for row in rows[start : start + _ROWS_PER_INSERT]]
            inserted = await self.session.execute(
                insert(Symbol)
                .values(chunk)
                .on_conflict_do_nothing(index_elements=["cat_ex_id", "symbol"])
                .returning(Symbol.exchange_id, Symbol.symbol)
            )
            new |= {(row.exchange_id, row.symbol) for row in inserted}
        return new

    async def _listed(self, keys: list[tuple[int, str]]) -> dict[tuple[int, str], Symbol]:
        if not keys:
            return {}
        found = await self.session.scalars(select(Symbol).where(tuple_(Symbol.exchange_id, Symbol.symbol).in_(keys)))
        return {(symbol.exchange_id, symbol.symbol): symbol for symbol in found}

    async def update_symbol(
        self, symbol_id: int, data: dict[str, Any], *, expected_version: int | None = None
    ) -> Symbol:
        """The symbol with ``data`` applied; no new version and no event if nothing differs.

        ``not_found`` without such a symbol, ``conflict`` if it is not at ``expected_version``.
        """
        symbol = await self._locked(symbol_id, "symbol_id")
        check_version(symbol, expected_version)
        values = _columns(data)
        if not differing(symbol, values):
            return symbol
        before = SymbolView.model_validate(symbol)
        for name, value in values.items():
            setattr(symbol, name, value)
        await self.session.flush()
        record(self.session, SymbolUpdated, before=before, after=SymbolView.model_validate(symbol))
        return symbol

    async def get_by_symbol(self, symbol: str, cat_ex_id: int) -> Symbol | None:
        """The symbol of that name on a catalog exchange, or None."""
        return await self.session.scalar(
            select(Symbol).where(Symbol.symbol == symbol, Symbol.exchange_id == cat_ex_id)
        )

    async def get_by_exchange_id(self, cat_ex_id: int) -> list[Symbol]:
        """All symbols of a catalog exchange by name."""
        return list(
            await self.session.scalars(select(Symbol).where(Symbol.exchange_id == cat_ex_id).order_by(Symbol.symbol))
        )

    async def get_id_by_symbol(self, symbol: str, cat_ex_id: int) -> int | None:
        """The id of that symbol, or None."""
        return await self.session.scalar(
            select(Symbol.id).where(Symbol.symbol == symbol, Symbol.exchange_id == cat_ex_id)
        )

    async def get_decimals(self, symbol_id: int) -> int | None:
        """Decimal places of the symbol's prices, or None without such a symbol."""
        return await self.session.scalar(select(Symbol.decimals).where(Symbol.id == symbol_id))

    async def symbol_exists(self, symbol: str, cat_ex_id: int) -> bool:
        """Whether a catalog exchange lists the symbol."""
        return await self.get_id_by_symbol(symbol, cat_ex_id) is not None


def _columns(data: dict[str, Any]) -> dict[str, Any]:
    """The manual says ``exchange_id`` for the catalog exchange, messages say ``cat_ex_id``; the column is one."""
    return {("exchange_id" if name == "cat_ex_id" else name): value for name, value in data.items()}


def _key(symbol: dict[str, Any]) -> tuple[int, str]:
    return symbol["exchange_id"], symbol["symbol"]
