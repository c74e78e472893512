"""Symbols in the database."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import exists, func, or_, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.errors import ErrorCode, Refusal
from contracts.symbol import SymbolCreated, SymbolDeleted, SymbolsChanged, SymbolUpdated, SymbolView
from service.cache import cache_manager
from service.cursor import behind
from service.models import CatExchange, DryTrade, Exchange, Feed, Order, Position, Symbol, Trade
from service.outbox import record
from service.repositories.base import BaseRepository, check_version, differing, exact, moves_key

# asyncpg binds at most 32,767 parameters in a statement, and a symbol has fifteen.
_ROWS_PER_INSERT = 1_000

_USUAL_DECIMALS: Final = 8

# Rows of one INSERT name the same columns; these stand in for what a symbol leaves out.
_UNSAID: Final[dict[str, Any]] = {
    **dict.fromkeys(("ticker", "base", "quote", "tick_size", "step_size", "min_size", "max_size")),
    "decimals": _USUAL_DECIMALS,
    "status": "active",
    "updateframe": "1h",
    "backtest": False,
    "futures": False,
    "only_ticker": False,
}


# What keeps a symbol from being deleted, and how one says so.
_NEEDED_BY: Final[dict[str, Any]] = {
    "orders": Order,
    "trades": Trade,
    "dry trades": DryTrade,
    "positions": Position,
    "bots that listen to it": Feed,
}


class Synced(NamedTuple):
    """What a synchronization did, and what it refused by place in the list."""

    created: int
    updated: int
    unchanged: int
    errors: dict[int, Refusal]


class SymbolRepository(BaseRepository[Symbol]):
    """Symbols by id and by name on a catalog exchange."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, Symbol)

    async def create(self, data: dict[str, Any]) -> Symbol:
        """The symbol, listed if it was not. See `add_symbol`."""
        return await self.add_symbol(data)

    async def update(self, id: int, updates: dict[str, Any], *, expected_version: int | None = None) -> Symbol:  # noqa: A002
        """The symbol with ``updates`` applied. See `update_symbol`."""
        return await self.update_symbol(id, updates, expected_version=expected_version)

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
        values = _columns(data)
        symbol = await self._locked(symbol_id, "symbol_id", whole=moves_key(Symbol, values))
        check_version(symbol, expected_version)
        if not differing(symbol, values):
            return symbol
        before = SymbolView.model_validate(symbol)
        for name, value in values.items():
            setattr(symbol, name, value)
        await self.session.flush()
        record(self.session, SymbolUpdated, before=before, after=SymbolView.model_validate(symbol))
        return symbol

    async def delete(self, id: int) -> None:  # noqa: A002 - the name callers know
        """Take the symbol off its list. See `delete_symbol`."""
        await self.delete_symbol(id)

    async def delete_symbol(self, symbol_id: int, *, expected_version: int | None = None) -> Symbol:
        """The symbol as it was, deleted together with its ticks.

        ``not_found`` without such a symbol, ``conflict`` while an order, a trade or a position is about it, a bot
        listens to it, or it is not at ``expected_version``.
        """
        symbol = await self._locked(symbol_id, "symbol_id", whole=True)
        check_version(symbol, expected_version)
        needed = (
            await self.session.execute(
                select(*(exists().where(model.symbol_id == symbol_id).label(n) for n, model in _NEEDED_BY.items()))
            )
        ).one()
        if reasons := [name for name, is_needed in zip(_NEEDED_BY, needed, strict=True) if is_needed]:
            raise Refusal(ErrorCode.CONFLICT, f"the symbol has {' and '.join(reasons)}", field="symbol_id")
        await self.session.delete(symbol)
        await self.session.flush()
        record(self.session, SymbolDeleted, before=SymbolView.model_validate(symbol))
        return symbol

    async def remove_symbol(self, symbol_id: int) -> Symbol:
        """The symbol as it was. See `delete_symbol`."""
        return await self.delete_symbol(symbol_id)

    async def sync_exchange_symbols(self, ex_id: int, symbols: Sequence[dict[str, Any]]) -> Synced:
        """Bring the catalog of an account to ``symbols``: those it lacks are listed, the others changed.

        A symbol that the list names again with other content is refused; ``not_found`` without such an account.
        Three statements for any number up to a thousand.
        """
        # Whoever lists a symbol there waits for this lock, so what is read below stays complete.
        catalog = await self.session.scalar(
            select(CatExchange.cat_ex_id)
            .join(Exchange, Exchange.cat_ex_id == CatExchange.cat_ex_id)
            .where(Exchange.ex_id == ex_id)
            .with_for_update(of=CatExchange)
        )
        if catalog is None:
            raise Refusal(ErrorCode.NOT_FOUND, f"there is no exchange account {ex_id}", field="ex_id")
        wanted, errors = _each_once([exact(dict(symbol)) for symbol in symbols])
        names = sorted(wanted)
        listed = {
            symbol.symbol: symbol
            for symbol in await self.session.scalars(
                select(Symbol)
                .where(Symbol.exchange_id == catalog, Symbol.symbol.in_(names))
                .order_by(Symbol.id)
                .with_for_update(key_share=True)
                .execution_options(populate_existing=True)
            )
        }
        before = {name: SymbolView.model_validate(symbol) for name, symbol in listed.items()}
        rows = [
            {**(_said(listed[name]) if name in listed else _UNSAID), **wanted[name], "exchange_id": catalog}
            for name in names
            if name not in listed or differing(listed[name], wanted[name])
        ]
        for start in range(0, len(rows), _ROWS_PER_INSERT):
            for symbol in await self._upsert(rows[start : start + _ROWS_PER_INSERT]):
                view = SymbolView.model_validate(symbol)
                record(self.session, SymbolsChanged, before=before.get(symbol.symbol), after=view)
        created = len(wanted) - len(listed)
        return Synced(created, len(rows) - created, len(wanted) - len(rows), errors)

    async def _upsert(self, rows: list[dict[str, Any]]) -> Sequence[Symbol]:
        upsert = insert(Symbol).values(rows)
        written = {name: upsert.excluded[name] for name in _UNSAID}
        stored = await self.session.scalars(
            upsert.on_conflict_do_update(
                index_elements=["cat_ex_id", "symbol"],
                set_={**written, "row_version": Symbol.row_version + 1, "updated_at": func.now()},
            ).returning(Symbol),
            execution_options={"populate_existing": True},
        )
        return stored.all()

    async def get_all(
        self,
        exchange_name: str | None = None,
        active_only: bool = False,
        limit: int | None = None,
        *,
        cursor: str | None = None,
    ) -> list[Symbol]:
        """The symbols of all exchanges, or of the catalog exchange of that name, by id."""
        symbols = select(Symbol).where(behind(cursor, Symbol.id)).order_by(Symbol.id).limit(limit)
        if exchange_name is not None:
            symbols = symbols.join(Symbol.cat_exchange).where(CatExchange.name == exchange_name)
        if active_only:
            symbols = symbols.where(Symbol.status == "active")
        return list(await self.session.scalars(symbols))

    async def search_symbols(self, query: str, cat_ex_id: int | None = None, limit: int = 100) -> list[Symbol]:
        """Symbols with that text in their name, ticker, base or quote currency, in any case, by name."""
        texts = (Symbol.symbol, Symbol.ticker, Symbol.base, Symbol.quote)
        found = select(Symbol).where(or_(*(text.icontains(query, autoescape=True) for text in texts)))
        if cat_ex_id is not None:
            found = found.where(Symbol.exchange_id == cat_ex_id)
        return list(await self.session.scalars(found.order_by(Symbol.symbol, Symbol.id).limit(limit)))

    @cache_manager.cache_on_symbol_methods
    async def get_by_symbol(self, symbol: str, cat_ex_id: int) -> Symbol | None:
        """The symbol of that name on a catalog exchange, or None."""
        return await self.session.scalar(
            select(Symbol).where(Symbol.symbol == symbol, Symbol.exchange_id == cat_ex_id)
        )

    @cache_manager.cache_on_symbol_methods
    async def get_by_exchange_id(self, cat_ex_id: int) -> list[Symbol]:
        """All symbols of a catalog exchange by name."""
        return list(
            await self.session.scalars(select(Symbol).where(Symbol.exchange_id == cat_ex_id).order_by(Symbol.symbol))
        )

    async def get_id_by_symbol(self, symbol: str, cat_ex_id: int) -> int | None:
        """The id of that symbol, or None."""
        found = await self.get_by_symbol(symbol, cat_ex_id)
        return None if found is None else found.id

    @cache_manager.cache_on_symbol_methods
    async def get_decimals(self, symbol_id: int) -> int | None:
        """Decimal places of the symbol's prices, or None without such a symbol."""
        return await self.session.scalar(select(Symbol.decimals).where(Symbol.id == symbol_id))

    async def get_symbol_decimals(self, symbol: str, cat_ex_id: int) -> int:
        """Decimal places of the prices of the symbol of that name; 8 for one that is not listed."""
        found = await self.get_by_symbol(symbol, cat_ex_id)
        return _USUAL_DECIMALS if found is None else found.decimals

    async def symbol_exists(self, symbol: str, cat_ex_id: int) -> bool:
        """Whether a catalog exchange lists the symbol."""
        return await self.get_id_by_symbol(symbol, cat_ex_id) is not None


def _columns(data: dict[str, Any]) -> dict[str, Any]:
    """The manual says ``exchange_id`` for the catalog exchange, messages say ``cat_ex_id``; the column is one."""
    return {("exchange_id" if name == "cat_ex_id" else name): value for name, value in exact(data).items()}


def _key(symbol: dict[str, Any]) -> tuple[int, str]:
    return symbol["exchange_id"], symbol["symbol"]


def _said(symbol: Symbol) -> dict[str, Any]:
    """What a symbol was said to be, apart from its name and exchange."""
    return {name: getattr(symbol, name) for name in _UNSAID}


def _each_once(symbols: Sequence[Mapping[str, Any]]) -> tuple[dict[str, dict[str, Any]], dict[int, Refusal]]:
    """The symbols by name, and a refusal by place for each that says of a name what an earlier one does not."""
    wanted: dict[str, dict[str, Any]] = {}
    errors: dict[int, Refusal] = {}
    for place, symbol in enumerate(symbols):
        first = wanted.setdefault(symbol["symbol"], dict(symbol))
        if first != symbol:
            errors[place] = Refusal(
                ErrorCode.CONFLICT, "stands in the list before with other content", field="symbol"
            )
    return wanted, errors
