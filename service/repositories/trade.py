"""Trades in the database."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from math import ceil
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Row, Select, TextClause, func, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.errors import ErrorCode, Refusal
from contracts.topology import MAX_CHANGES_PER_EVENT
from contracts.trade import (
    ClearedDryTrades,
    DryTradeCleared,
    DryTradeRecorded,
    DryTradeView,
    RecordDryTrade,
    RecordTrade,
    TradeDeleted,
    TradeFields,
    TradeRecorded,
    TradeUpdated,
    TradeView,
)
from service.cursor import behind
from service.errors import is_transient, refusal_for
from service.inbox import Sent
from service.models import Bot, DryTrade, Order, Trade
from service.outbox import cause, record
from service.repositories.base import BaseRepository, check_version, delete_by_owner, differing, exact, in_utc, locked
from service.repositories.ownership import Parties, catalog_of, check_order
from service.repositories.trade_statements import (
    RECORD_NEW,
    RECORD_NEW_DRY,
    bot_stats,
    price_stats,
    user_count,
    user_stats,
    user_summary,
)

# Wide enough that the product of two amounts of 38 digits loses none.
_EXACT: Final = Context(prec=80)


# What a trade of a list may say.
_STATED: Final = tuple(TradeFields.model_fields)
_COMPUTED: Final = frozenset({"roi", "roi_pct"})
_ROWS_PER_STATEMENT: Final = MAX_CHANGES_PER_EVENT


class TradePage(NamedTuple):
    """Some trades out of ``total``."""

    trades: list[Trade]
    page: int
    page_size: int
    total: int

    @property
    def pages(self) -> int:
        return ceil(self.total / self.page_size)


class TradeRepository(BaseRepository[Trade]):
    """The ledger of executions."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, Trade)

    async def create(self, data: dict[str, Any]) -> Trade:
        """The trade, stored if it was not stored before. See `record_trade`."""
        trade, _ = await self.record_trade(data)
        return trade

    async def update(self, id: int, updates: dict[str, Any], *, expected_version: int | None = None) -> Trade:  # noqa: A002
        """The trade with another roi. See `update_trade`."""
        return await self.update_trade(id, updates, expected_version=expected_version)

    async def delete(self, id: int) -> None:  # noqa: A002 - the name callers know
        """Take back a trade that was put on record by hand. See `delete_trade`."""
        await self.delete_trade(id)

    async def record_trade(self, data: dict[str, Any]) -> tuple[Trade, bool]:
        """The trade, and whether it is new.

        With ``ex_trade_id`` it is stored once for ever per account: ``conflict`` if it is known with other content.
        ``not_found`` or ``forbidden`` for a bot, account, symbol or order that does not exist or belong.
        """
        data = {name: value for name, value in exact(data).items() if value is not None}
        parties = Parties(data.get("bot_id"), data["uid"], data["ex_id"], data["symbol_id"])
        catalog = await catalog_of(self.session, parties)
        if "order_id" in data:
            await check_order(self.session, data["order_id"], parties)
        trade = await self.session.scalar(
            insert(Trade)
            .values({**data, "cat_ex_id": catalog, "cost": _EXACT.multiply(data["size"], data["price"])})
            .on_conflict_do_nothing(
                index_elements=["ex_id", "ex_trade_id"], index_where=Trade.ex_trade_id.is_not(None)
            )
            .returning(Trade)
        )
        if trade is not None:
            record(self.session, TradeRecorded, after=TradeView.model_validate(trade))
            return trade, True
        existing = await self.get_by_ex_trade_id(data["ex_id"], data["ex_trade_id"])
        assert existing is not None  # noqa: S101 - it is what the insert met, and trades stay
        _check_same(existing, data)
        return existing, False

    async def record_new(self, trades: Sequence[RecordTrade], sent: Sent) -> dict[int, int]:
        """Store and announce those of ``trades`` that are new and in order, in one statement and one event.

        Gives the id of each by its position. The others are left alone: known ones, and those that `record_trade`
        would refuse. ``sent`` are the messages they came in.
        """
        rows = f"[{','.join(trade.model_dump_json(exclude_none=True) for trade in trades)}]"
        return await self._store_new(RECORD_NEW, rows, sent)

    async def record_trades(self, trades: Sequence[Mapping[str, Any]]) -> list[tuple[int, bool] | Refusal]:
        """For each trade its id and whether it is new, or why it was refused, in the order given.

        Two statements for any number up to 500, and some more for each that is refused.
        """
        outcomes: list[tuple[int, bool] | Refusal] = []
        for start in range(0, len(trades), _ROWS_PER_STATEMENT):
            chunk = trades[start : start + _ROWS_PER_STATEMENT]
            outcomes += await self._record_chunk([_stated(trade) for trade in chunk])
        return outcomes

    async def save_trades(self, trades: Sequence[Mapping[str, Any] | Trade]) -> list[Trade]:
        """The trades as they are on record, those stored before included, in the order given.

        Takes dictionaries or `Trade` objects. Raises the first refusal, as `record_trades` gives it.
        """
        said = [_values_of(trade) if isinstance(trade, Trade) else trade for trade in trades]
        ids = []
        for outcome in await self.record_trades(said):
            if isinstance(outcome, Refusal):
                raise outcome
            ids.append(outcome[0])
        stored = {
            trade.trade_id: trade
            for start in range(0, len(ids), _ROWS_PER_STATEMENT)
            for trade in await self.session.scalars(
                select(Trade).where(Trade.trade_id.in_(ids[start : start + _ROWS_PER_STATEMENT]))
            )
        }
        return [stored[trade_id] for trade_id in ids]

    async def _record_chunk(self, trades: list[dict[str, Any]]) -> list[tuple[int, bool] | Refusal]:
        new = await self._new_among(trades)
        rest = [trade for place, trade in enumerate(trades) if place not in new]
        known = await self._known(rest)
        outcomes: list[tuple[int, bool] | Refusal] = []
        for place, trade in enumerate(trades):
            if place in new:
                outcomes.append((new[place], True))
            elif (existing := known.get((trade.get("ex_id"), trade.get("ex_trade_id")))) is not None:
                outcomes.append(_as_known(existing, trade))
            else:
                outcomes.append(await self._alone(trade))
        return outcomes

    async def _new_among(self, trades: list[dict[str, Any]]) -> dict[int, int]:
        """The ids of those that were stored, by place; none of them if one cannot even be read."""
        message_id = cause(self.session)
        sent = Sent([] if message_id is None else [message_id] * len(trades))
        try:
            async with self.session.begin_nested():
                return await self._store_new(RECORD_NEW, json.dumps(trades, default=_as_text), sent)
        except DBAPIError as error:
            if is_transient(error):
                raise
            return {}

    async def _store_new(self, statement: TextClause, rows: str, sent: Sent) -> dict[int, int]:
        stored = await self.session.execute(statement, sent.parameters(rows))
        return {row[0]: row[1] for row in stored}

    async def _known(self, trades: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, Any], Trade]:
        keys = [(trade["ex_id"], trade["ex_trade_id"]) for trade in trades if {"ex_id", "ex_trade_id"} <= set(trade)]
        if not keys:
            return {}
        found = await self.session.scalars(select(Trade).where(tuple_(Trade.ex_id, Trade.ex_trade_id).in_(keys)))
        return {(trade.ex_id, trade.ex_trade_id): trade for trade in found}

    async def _alone(self, trade: dict[str, Any]) -> tuple[int, bool] | Refusal:
        """What becomes of a trade that is carried out by itself; a refusal takes back what it did."""
        try:
            async with self.session.begin_nested():
                stored, is_new = await self.record_trade(trade)
        except (Refusal, DBAPIError) as error:
            refusal = refusal_for(error)
            if refusal is None:
                raise
            return refusal
        return stored.trade_id, is_new

    async def link(self, trade: Trade, order: Order, said: Mapping[str, Any]) -> tuple[Trade, bool]:
        """A trade on record as one of ``order``, and whether it was none before.

        ``conflict`` if it is on record for another order or differs from what is ``said`` of it.
        """
        if trade.order_id not in (None, order.order_id):
            raise Refusal(ErrorCode.CONFLICT, "is a trade of another order", field="ex_trade_id")
        _check_same(trade, {name: value for name, value in said.items() if value is not None})
        if trade.order_id is not None:
            return trade, False
        before = TradeView.model_validate(trade)
        trade.order_id = order.order_id
        trade.row_version += 1
        await self.session.flush()
        record(self.session, TradeRecorded, before=before, after=TradeView.model_validate(trade))
        return trade, True

    async def update_trade(
        self, trade_id: int, updates: dict[str, Any], *, expected_version: int | None = None
    ) -> Trade:
        """The trade with another ``roi`` or ``roi_pct``, which are computed about it; what was traded is a fact.

        ``not_found`` without such a trade, ``conflict`` if it is not at ``expected_version``, ``validation`` for
        any other field.
        """
        if facts := sorted(updates.keys() - _COMPUTED):
            raise Refusal(ErrorCode.VALIDATION, "is a fact of the ledger and is not changed", field=facts[0])
        trade = await self._locked(trade_id, "trade_id")
        check_version(trade, expected_version)
        values = exact(updates)
        if not differing(trade, values):
            return trade
        before = TradeView.model_validate(trade)
        for name, value in values.items():
            setattr(trade, name, value)
        trade.row_version += 1
        await self.session.flush()
        record(self.session, TradeUpdated, before=before, after=TradeView.model_validate(trade))
        return trade

    async def delete_trade(self, trade_id: int, *, expected_version: int | None = None) -> Trade:
        """The trade as it was, taken back: one that was put on record by hand.

        ``not_found`` without such a trade; ``conflict`` for one that an exchange knows or that fills an order,
        or that is not at ``expected_version``.
        """
        trade = await self._locked(trade_id, "trade_id")
        check_version(trade, expected_version)
        if trade.ex_trade_id is not None:
            raise Refusal(ErrorCode.CONFLICT, "is on record at the exchange too, and stays", field="trade_id")
        if trade.order_id is not None:
            raise Refusal(ErrorCode.CONFLICT, f"fills order {trade.order_id}, and stays", field="trade_id")
        before = TradeView.model_validate(trade)
        await self.session.delete(trade)
        await self.session.flush()
        record(self.session, TradeDeleted, before=before)
        return trade

    async def save_dry_trade(self, data: dict[str, Any]) -> DryTrade:
        """A new dry trade.

        ``not_found`` or ``forbidden`` for a bot, account or symbol that does not exist or belong.
        """
        data = {name: value for name, value in exact(data).items() if value is not None}
        parties = Parties(data["bot_id"], data["uid"], data["ex_id"], data["symbol_id"])
        catalog = await catalog_of(self.session, parties)
        cost = _EXACT.multiply(data["size"], data["price"])
        dry_trade = (
            await self.session.scalars(
                insert(DryTrade).values({**data, "cat_ex_id": catalog, "cost": cost}).returning(DryTrade)
            )
        ).one()
        record(self.session, DryTradeRecorded, after=DryTradeView.model_validate(dry_trade))
        return dry_trade

    async def record_new_dry(self, dry_trades: Sequence[RecordDryTrade], sent: Sent) -> dict[int, int]:
        """Store and announce those of ``dry_trades`` that are in order, as `record_new` does."""
        rows = f"[{','.join(dry_trade.model_dump_json(exclude_none=True) for dry_trade in dry_trades)}]"
        return await self._store_new(RECORD_NEW_DRY, rows, sent)

    async def delete_dry_trades(self, bot_id: int) -> int:
        """How many dry trades the bot had; all are gone. ``not_found`` without such a bot."""
        # Whoever records one waits for this lock, so none is left behind with a lower id than the last one deleted.
        await locked(self.session, Bot, bot_id, "bot_id", whole=True)
        return (await self.clear_dry_trades(DryTrade.bot_id == bot_id)).get(bot_id, 0)

    async def clear_dry_trades(self, which: ColumnElement[bool], *, ex_id: int | None = None) -> dict[int, int]:
        """Delete dry trades of bots that the caller has locked as a whole, or of the account ``ex_id``.

        Gives how many there were of each bot. As many statements for many bots as for one.
        """
        cleared = await delete_by_owner(self.session, DryTrade.dry_trade_id, DryTrade.bot_id, which)
        for bot_id, gone in cleared.items():
            image = ClearedDryTrades(bot_id=bot_id, ex_id=ex_id, last_dry_trade_id=gone.last, count=gone.number)
            record(self.session, DryTradeCleared, before=image)
        return {bot_id: gone.number for bot_id, gone in cleared.items()}

    async def get_by_ex_trade_id(self, ex_id: int, ex_trade_id: str) -> Trade | None:
        """The trade that the exchange calls ``ex_trade_id``, or None."""
        return await self.session.scalar(select(Trade).where(Trade.ex_id == ex_id, Trade.ex_trade_id == ex_trade_id))

    async def get_dry_trade(self, dry_trade_id: int) -> DryTrade | None:
        """The dry trade with this id, or None."""
        return await self.session.get(DryTrade, dry_trade_id)

    async def get_live_trades(
        self,
        user_id: int | None = None,
        symbol_id: int | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        *,
        bot_id: int | None = None,
        ex_id: int | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> list[Trade]:
        """Trades that match all that is given, newest first; from ``start_date`` on, before ``end_date``."""
        given = {Trade.uid: user_id, Trade.symbol_id: symbol_id, Trade.bot_id: bot_id, Trade.ex_id: ex_id}
        trades = self._newest(cursor).where(
            *(column == value for column, value in given.items() if value is not None)
        )
        if start_date is not None:
            trades = trades.where(Trade.timestamp >= in_utc(start_date))
        if end_date is not None:
            trades = trades.where(Trade.timestamp < in_utc(end_date))
        return list(await self.session.scalars(trades.limit(limit)))

    async def get_bot_trades(
        self, bot_id: int, *, dry: bool = False, limit: int = 100
    ) -> list[Trade] | list[DryTrade]:
        """A bot's trades, or its dry ones, newest first."""
        if dry:
            return await self.get_dry_trades(bot_id, limit)
        return await self.get_live_trades(bot_id=bot_id, limit=limit)

    async def get_symbol_trades(self, symbol_id: int, limit: int = 100) -> list[Trade]:
        """Trades of a symbol, newest first."""
        return await self.get_live_trades(symbol_id=symbol_id, limit=limit)

    async def get_trades(
        self,
        ex_id: int,
        symbol_id: int | None = None,
        limit: int = 100,
        *,
        last: bool = False,
        uncalculated: bool = False,
    ) -> list[Trade]:
        """Trades on an account, newest first: the newest alone, or those whose roi nobody has computed yet."""
        trades = self._newest(None).where(Trade.ex_id == ex_id)
        if symbol_id is not None:
            trades = trades.where(Trade.symbol_id == symbol_id)
        if uncalculated:
            trades = trades.where(Trade.roi.is_(None))
        return list(await self.session.scalars(trades.limit(1 if last else limit)))

    async def get_last_trade(self, ex_id: int) -> Trade | None:
        """The newest trade on an account, or None."""
        return next(iter(await self.get_trades(ex_id, last=True)), None)

    async def get_dry_trades(
        self,
        bot_id: int,
        limit: int = 100,
        *,
        symbol_id: int | None = None,
        ex_id: int | None = None,
        cursor: str | None = None,
    ) -> list[DryTrade]:
        """A bot's dry trades that match all that is given, newest first."""
        given = {DryTrade.bot_id: bot_id, DryTrade.symbol_id: symbol_id, DryTrade.ex_id: ex_id}
        return list(
            await self.session.scalars(
                select(DryTrade)
                .where(
                    *(column == value for column, value in given.items() if value is not None),
                    behind(cursor, DryTrade.timestamp, DryTrade.dry_trade_id, newest_first=True),
                )
                .order_by(DryTrade.timestamp.desc(), DryTrade.dry_trade_id.desc())
                .limit(limit)
            )
        )

    async def get_last_dry_trade(
        self, bot_id: int, symbol_id: int | None = None, ex_id: int | None = None
    ) -> DryTrade | None:
        """A bot's newest dry trade, of that symbol and account where they are given, or None."""
        return next(iter(await self.get_dry_trades(bot_id, 1, symbol_id=symbol_id, ex_id=ex_id)), None)

    async def get_trades_by_user(self, uid: int, limit: int = 100, *, cursor: str | None = None) -> list[Trade]:
        """A user's newest trades, newest first."""
        return await self.get_live_trades(uid, limit=limit, cursor=cursor)

    async def get_trades_paginated(
        self, uid: int, page: int = 1, page_size: int = 100, *, cursor: str | None = None
    ) -> TradePage:
        """A page of a user's trades, newest first, with how many there are in all.

        With a ``cursor`` it is the page behind the one that gave it, whatever ``page`` says.
        """
        total = await self.session.scalar(user_count(uid))
        offset = (page - 1) * page_size if cursor is None else 0
        trades = self._newest(cursor).where(Trade.uid == uid).limit(page_size).offset(offset)
        return TradePage(list(await self.session.scalars(trades)), page, page_size, total or 0)

    async def get_user_trading_stats(self, uid: int) -> Row[Any]:
        """Count, volumes and prices over all trades of a user, in one query."""
        return (await self.session.execute(user_stats(uid))).one()

    async def get_trade_stats(self, bot_id: int, days: int = 30, *, dry: bool = False) -> Row[Any]:
        """The same over the trades of a bot in the last ``days``, or its dry ones, and how many of them won."""
        since = func.now() - timedelta(days=days)
        return (await self.session.execute(bot_stats(DryTrade if dry else Trade, bot_id, since))).one()

    async def get_user_trading_summary(self, uid: int) -> dict[str, Any] | None:
        """A user with what bots and trades add up to, in one query; None without such a user."""
        row = (await self.session.execute(user_summary(uid))).mappings().one_or_none()
        return None if row is None else {"user" if name == "User" else name: value for name, value in row.items()}

    async def get_symbol_price_stats(
        self, start_date: datetime | None = None, symbol_id: int | None = None
    ) -> Sequence[Row[Any]]:
        """Median and deviation of the prices of each symbol traded since ``start_date``, or in the last 30 days."""
        start = in_utc(start_date) if start_date is not None else datetime.now(UTC) - timedelta(days=30)
        return (await self.session.execute(price_stats(start, symbol_id))).all()

    @staticmethod
    def _newest(cursor: str | None) -> Select[Trade]:
        return (
            select(Trade)
            .where(behind(cursor, Trade.timestamp, Trade.trade_id, newest_first=True))
            .order_by(Trade.timestamp.desc(), Trade.trade_id.desc())
        )


def _check_same(trade: Trade, data: Mapping[str, Any]) -> None:
    if fields := differing(trade, dict(data)):
        raise Refusal(ErrorCode.CONFLICT, f"is on record with another {', '.join(fields)}", field="ex_trade_id")


def _as_known(trade: Trade, data: Mapping[str, Any]) -> tuple[int, bool] | Refusal:
    try:
        _check_same(trade, data)
    except Refusal as refusal:
        return refusal
    return trade.trade_id, False


def _stated(trade: Mapping[str, Any]) -> dict[str, Any]:
    """What a trade says of itself; raises TypeError for a name that no trade has."""
    if unknown := set(trade) - set(_STATED):
        raise TypeError(f"a trade has no {', '.join(sorted(unknown))}")
    return {name: value for name, value in exact(dict(trade)).items() if value is not None}


def _values_of(trade: Trade) -> dict[str, Any]:
    return {name: getattr(trade, name) for name in _STATED}


def _as_text(value: Any) -> str:
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"a trade cannot hold {type(value).__name__}")
