"""Trades in the database."""

from collections.abc import Sequence
from decimal import Context
from math import ceil
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import Row, case, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.errors import ErrorCode, Refusal
from contracts.trade import RecordTrade, TradeRecorded, TradeView
from service.models import Trade
from service.outbox import change_as_json, record
from service.repositories.base import BaseRepository, differing, exact
from service.repositories.ownership import Parties, catalog_of, check_order

# Wide enough that the product of two amounts of 38 digits loses none.
_EXACT: Final = Context(prec=80)


# One round trip: read the rows, join what they name, insert those that fit, announce them. The ids are drawn first,
# because only they tell which of the rows an INSERT with ON CONFLICT has taken.
_RECORD_NEW: Final = text(f"""
WITH given AS MATERIALIZED (
    SELECT nextval('trades_trade_id_seq') AS trade_id, account.cat_ex_id, row.*
    FROM ROWS FROM (
        json_to_recordset(CAST(:rows AS json)) AS (
            bot_id int, uid int, ex_id int, symbol_id int, side text, size numeric, price numeric, ex_trade_id text,
            order_id bigint, ex_order_id text, fee numeric, fee_currency text, leverage numeric, roi numeric,
            roi_pct numeric, "timestamp" timestamptz
        ),
        unnest(CAST(:causes AS uuid[]))
    ) WITH ORDINALITY AS row (
        bot_id, uid, ex_id, symbol_id, side, size, price, ex_trade_id, order_id, ex_order_id, fee, fee_currency,
        leverage, roi, roi_pct, "timestamp", cause, position
    )
    JOIN bots AS bot ON bot.bot_id = row.bot_id AND bot.uid = row.uid
    JOIN exchanges AS account ON account.ex_id = row.ex_id AND account.uid = row.uid
    JOIN symbols AS symbol ON symbol.symbol_id = row.symbol_id AND symbol.cat_ex_id = account.cat_ex_id
    LEFT JOIN orders AS "order" ON "order".order_id = row.order_id
    WHERE row.order_id IS NULL OR (
        "order".uid = row.uid AND "order".ex_id = row.ex_id AND "order".symbol_id = row.symbol_id
        AND coalesce("order".bot_id, row.bot_id) = row.bot_id
    )
    ORDER BY row.position
), stored AS (
    INSERT INTO trades (
        trade_id, ex_trade_id, order_id, ex_order_id, bot_id, uid, ex_id, cat_ex_id, symbol_id, side, size, price,
        cost, fee, fee_currency, leverage, roi, roi_pct, "timestamp"
    ) OVERRIDING SYSTEM VALUE
    SELECT trade_id, ex_trade_id, order_id, ex_order_id, bot_id, uid, ex_id, cat_ex_id, symbol_id, side, size, price,
        size * price, coalesce(fee, 0), fee_currency, coalesce(leverage, 1), roi, roi_pct,
        coalesce("timestamp", now())
    FROM given
    ON CONFLICT (ex_id, ex_trade_id) WHERE ex_trade_id IS NOT NULL DO NOTHING
    RETURNING *
), announced AS (
    INSERT INTO outbox (type, causation_ids, changes, stale_keys)
    SELECT 'trade.recorded',
        (
            SELECT array_agg(cause ORDER BY position) FILTER (WHERE trade_id IN (SELECT trade_id FROM stored))
            FROM given
        ),
        '[' || string_agg({change_as_json(TradeRecorded, "stored")}, ',' ORDER BY trade_id) || ']', '{{}}'
    FROM stored
    HAVING count(*) > 0
)
SELECT position - 1 AS position, trade_id, trade_id IN (SELECT trade_id FROM stored) AS is_new FROM given
""")  # noqa: S608 - put together from the contracts, nothing of it comes from outside


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
        existing = (
            await self.session.scalars(
                select(Trade).where(Trade.ex_id == data["ex_id"], Trade.ex_trade_id == data["ex_trade_id"])
            )
        ).one()
        if fields := differing(existing, data):
            raise Refusal(ErrorCode.CONFLICT, f"is on record with another {', '.join(fields)}", field="ex_trade_id")
        return existing, False

    async def record_new(self, trades: Sequence[RecordTrade], causes: Sequence[UUID]) -> dict[int, int]:
        """Store and announce those of ``trades`` that are new and in order, in one statement and one event.

        Gives the id of each by its position. The others are left alone: known ones, and those that `record_trade`
        would refuse. ``causes`` are the ids of the messages they came in.
        """
        rows = f"[{','.join(trade.model_dump_json(exclude_none=True) for trade in trades)}]"
        stored = await self.session.execute(_RECORD_NEW, {"rows": rows, "causes": list(causes)})
        return {row.position: row.trade_id for row in stored if row.is_new}

    async def get_trades_by_user(self, uid: int, limit: int = 100) -> list[Trade]:
        """A user's newest trades, newest first."""
        return list(await self.session.scalars(self._newest(uid).limit(limit)))

    async def get_trades_paginated(self, uid: int, page: int = 1, page_size: int = 100) -> TradePage:
        """A page of a user's trades, newest first, with how many there are."""
        total = await self.session.scalar(select(func.count()).where(Trade.uid == uid))
        trades = await self.session.scalars(self._newest(uid).limit(page_size).offset((page - 1) * page_size))
        return TradePage(list(trades), page, page_size, total or 0)

    async def get_user_trading_stats(self, uid: int) -> Row[Any]:
        """Count, volumes and prices over all trades of a user, in one query."""
        bought = func.sum(case((Trade.side == "buy", Trade.cost), else_=0))
        sold = func.sum(case((Trade.side == "sell", Trade.cost), else_=0))
        volume = func.coalesce(func.sum(Trade.cost), 0)
        return (
            await self.session.execute(
                select(
                    func.count().label("total_trades"),
                    volume.label("total_volume"),
                    func.coalesce(func.avg(Trade.price), 0).label("average_price"),
                    func.coalesce(volume / func.sum(Trade.size), 0).label("vwap"),
                    func.coalesce(bought, 0).label("buy_volume"),
                    func.coalesce(sold, 0).label("sell_volume"),
                    func.coalesce(bought - sold, 0).label("net_volume"),
                ).where(Trade.uid == uid)
            )
        ).one()

    @staticmethod
    def _newest(uid: int) -> Any:
        return select(Trade).where(Trade.uid == uid).order_by(Trade.timestamp.desc(), Trade.trade_id.desc())
