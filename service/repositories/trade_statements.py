"""The statements that store and announce many trades in one round trip, and those that add trades up."""

from datetime import datetime
from typing import Any, Final

from sqlalchemy import BigInteger, Double, Select, case, cast, func, select, text, true

from contracts.trade import DryTradeRecorded, RecordDryTrade, RecordTrade, TradeRecorded
from service.inbox import SENT, remembered
from service.models import Bot, DryTrade, Trade, TradeTotals, User
from service.outbox import announced_as, change_as_json

# Many trades may have come in one message, and those of a program that uses the library came in none.
_CAUSES: Final = """(
            SELECT coalesce(array_agg(DISTINCT message_id) FILTER (WHERE message_id IS NOT NULL), '{{}}')
            FROM given WHERE ({id} IN (SELECT {id} FROM stored)) IS TRUE
        )"""

RECENT_TRADES: Final = 100
"""How many of the newest trades a summary is about."""

_IS_STORED: Final = "(trade_id IN (SELECT trade_id FROM stored)) IS TRUE"

# One round trip: read the rows, join what they name, insert those that fit, announce them, and remember the messages
# they came in. Ids are drawn first, because only they tell which of the rows an INSERT with ON CONFLICT has taken.
RECORD_NEW: Final = text(f"""
WITH given AS MATERIALIZED (
    SELECT nextval('trades_trade_id_seq') AS trade_id, account.cat_ex_id, row.*
    FROM ROWS FROM (
        json_to_recordset(CAST(:rows AS json)) AS (
            bot_id int, uid int, ex_id int, symbol_id int, side text, size numeric, price numeric, ex_trade_id text,
            order_id bigint, ex_order_id text, fee numeric, fee_currency text, leverage numeric, roi numeric,
            roi_pct numeric, "timestamp" timestamptz
        ),
        {SENT}
    ) WITH ORDINALITY AS row (
        bot_id, uid, ex_id, symbol_id, side, size, price, ex_trade_id, order_id, ex_order_id, fee, fee_currency,
        leverage, roi, roi_pct, "timestamp", message_id, payload_hash, position
    )
    LEFT JOIN bots AS bot ON bot.bot_id = row.bot_id AND bot.uid = row.uid
    JOIN exchanges AS account ON account.ex_id = row.ex_id AND account.uid = row.uid
    JOIN symbols AS symbol ON symbol.symbol_id = row.symbol_id AND symbol.cat_ex_id = account.cat_ex_id
    LEFT JOIN orders AS "order" ON "order".order_id = row.order_id
    WHERE (row.bot_id IS NULL OR bot.bot_id IS NOT NULL) AND (
        row.order_id IS NULL OR (
            "order".uid = row.uid AND "order".ex_id = row.ex_id AND "order".symbol_id = row.symbol_id
            AND coalesce("order".bot_id, row.bot_id) = row.bot_id
        )
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
    INSERT INTO outbox (type, causation_ids, changes, stale_keys, keys, versions)
    SELECT 'trade.recorded', {_CAUSES.format(id="trade_id")},
        '[' || string_agg({change_as_json(TradeRecorded, "stored")}, ',' ORDER BY trade_id) || ']', '{{}}',
        {announced_as(TradeRecorded, "stored", order_by="trade_id")}
    FROM stored
    HAVING count(*) > 0
), {remembered(RecordTrade, "trade_id", which=_IS_STORED)}
SELECT position - 1 AS position, trade_id FROM given WHERE {_IS_STORED}
""")  # noqa: S608 - put together from the contracts, nothing of it comes from outside

RECORD_NEW_DRY: Final = text(f"""
WITH given AS MATERIALIZED (
    SELECT nextval('dry_trades_dry_trade_id_seq') AS dry_trade_id, account.cat_ex_id, row.*
    FROM ROWS FROM (
        json_to_recordset(CAST(:rows AS json)) AS (
            bot_id int, uid int, ex_id int, symbol_id int, side text, size numeric, price numeric, fee numeric,
            fee_currency text, leverage numeric, roi numeric, roi_pct numeric, closing boolean, reason text,
            "timestamp" timestamptz
        ),
        {SENT}
    ) WITH ORDINALITY AS row (
        bot_id, uid, ex_id, symbol_id, side, size, price, fee, fee_currency, leverage, roi, roi_pct, closing, reason,
        "timestamp", message_id, payload_hash, position
    )
    JOIN bots AS bot ON bot.bot_id = row.bot_id AND bot.uid = row.uid
    JOIN exchanges AS account ON account.ex_id = row.ex_id AND account.uid = row.uid
    JOIN symbols AS symbol ON symbol.symbol_id = row.symbol_id AND symbol.cat_ex_id = account.cat_ex_id
    ORDER BY row.position
), stored AS (
    INSERT INTO dry_trades (
        dry_trade_id, bot_id, uid, ex_id, cat_ex_id, symbol_id, side, size, price, cost, fee, fee_currency, leverage,
        roi, roi_pct, closing, reason, "timestamp"
    ) OVERRIDING SYSTEM VALUE
    SELECT dry_trade_id, bot_id, uid, ex_id, cat_ex_id, symbol_id, side, size, price, size * price, coalesce(fee, 0),
        fee_currency, coalesce(leverage, 1), roi, roi_pct, coalesce(closing, false), reason,
        coalesce("timestamp", now())
    FROM given
    RETURNING *
), announced AS (
    INSERT INTO outbox (type, causation_ids, changes, stale_keys, keys, versions)
    SELECT 'dry_trade.recorded', {_CAUSES.format(id="dry_trade_id")},
        '[' || string_agg({change_as_json(DryTradeRecorded, "stored")}, ',' ORDER BY dry_trade_id) || ']', '{{}}',
        {announced_as(DryTradeRecorded, "stored", order_by="dry_trade_id")}
    FROM stored
    HAVING count(*) > 0
), {remembered(RecordDryTrade, "dry_trade_id")}
SELECT position - 1 AS position, dry_trade_id FROM given
""")  # noqa: S608 - put together from the contracts, nothing of it comes from outside


def _totals(model: type[Trade | DryTrade]) -> list[Any]:
    bought = func.sum(case((model.side == "buy", model.cost), else_=0))
    sold = func.sum(case((model.side == "sell", model.cost), else_=0))
    volume = func.coalesce(func.sum(model.cost), 0)
    return [
        func.count().label("total_trades"),
        volume.label("total_volume"),
        func.coalesce(func.avg(model.price), 0).label("average_price"),
        func.coalesce(volume / func.sum(model.size), 0).label("vwap"),
        func.coalesce(bought, 0).label("buy_volume"),
        func.coalesce(sold, 0).label("sell_volume"),
        func.coalesce(bought - sold, 0).label("net_volume"),
    ]


def user_stats(uid: int) -> Select[*tuple[Any, ...]]:
    """Count, volumes and prices over all trades of a user, from what is kept of them."""
    kept = TradeTotals
    return select(
        _sum(kept.trades).cast(BigInteger).label("total_trades"),
        _sum(kept.cost).label("total_volume"),
        func.coalesce(func.sum(kept.price) / func.nullif(func.sum(kept.trades), 0), 0).label("average_price"),
        func.coalesce(func.sum(kept.cost) / func.nullif(func.sum(kept.size), 0), 0).label("vwap"),
        _sum(kept.bought).label("buy_volume"),
        _sum(kept.sold).label("sell_volume"),
        (_sum(kept.bought) - _sum(kept.sold)).label("net_volume"),
    ).where(kept.uid == uid)


def user_count(uid: int) -> Select[int]:
    """How many trades a user has."""
    return select(_sum(TradeTotals.trades).cast(BigInteger)).where(TradeTotals.uid == uid)


def _sum(column: Any) -> Any:
    return func.coalesce(func.sum(column), 0)


def bot_stats(model: type[Trade | DryTrade], bot_id: int, since: Any) -> Select[*tuple[Any, ...]]:
    """The same over the trades of a bot since then, and how many of them won."""
    won = func.count().filter(model.roi > 0)
    lost = func.count().filter(model.roi < 0)
    return select(
        *_totals(model),
        func.coalesce(func.sum(model.roi), 0).label("roi"),
        won.label("winning_trades"),
        lost.label("losing_trades"),
        (cast(won, Double) / func.nullif(won + lost, 0)).label("win_rate"),
    ).where(model.bot_id == bot_id, model.timestamp >= since)


def user_summary(uid: int) -> Select[*tuple[Any, ...]]:
    """A user with what bots and trades add up to; no row without such a user."""
    bots = (
        select(func.count().label("total"), func.count().filter(Bot.active).label("active"))
        .where(Bot.uid == uid)
        .subquery("bots_of_user")
    )
    trades = (
        select(_sum(TradeTotals.trades).cast(BigInteger).label("total"), _sum(TradeTotals.cost).label("volume"))
        .where(TradeTotals.uid == uid)
        .subquery("trades_of_user")
    )
    newest = (
        select(Trade.cost)
        .where(Trade.uid == uid)
        .order_by(Trade.timestamp.desc(), Trade.trade_id.desc())
        .limit(RECENT_TRADES)
        .subquery("newest")
    )
    recent = select(func.count().label("total"), func.coalesce(func.sum(newest.c.cost), 0).label("volume")).subquery(
        "recent"
    )
    totals = select(
        User,
        bots.c.total.label("total_bots"),
        bots.c.active.label("active_bots"),
        trades.c.total.label("total_trades"),
        trades.c.volume.label("total_volume"),
        recent.c.total.label("recent_trades_count"),
        recent.c.volume.label("recent_volume"),
        func.now().label("generated_at"),
    ).select_from(User)
    # Each of these is one row.
    for part in (bots, trades, recent):
        totals = totals.join(part, true())
    return totals.where(User.uid == uid)


def price_stats(start_date: datetime, symbol_id: int | None) -> Select[*tuple[Any, ...]]:
    """Median and deviation of the prices of each symbol traded since then, by symbol id."""
    stats = (
        select(
            Trade.symbol_id,
            func.count().label("trades"),
            func.percentile_cont(0.5).within_group(Trade.price).label("median_price"),
            cast(func.stddev(Trade.price), Double).label("price_volatility"),
        )
        .where(Trade.timestamp >= start_date)
        .group_by(Trade.symbol_id)
        .order_by(Trade.symbol_id)
    )
    return stats if symbol_id is None else stats.where(Trade.symbol_id == symbol_id)
