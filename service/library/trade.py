"""Trades, and what they add up to."""

from datetime import datetime
from typing import Any

from pydantic import ValidationError

from contracts import cache_keys
from contracts.base import refusal_of
from contracts.trade import GetTradesPaginated, UserTradingSummary
from service.cache import cache_manager
from service.cursor import next_after
from service.database import get_async_session
from service.repositories import TradeRepository


async def get_trades_paginated(
    user_id: int, page: int = 1, page_size: int = 100, *, cursor: str | None = None
) -> dict[str, Any]:
    """A page of a user's trades, newest first: ``{trades, pagination, next_cursor}``.

    The pagination is ``{page, page_size, total, pages}``. Given as ``cursor``, the ``next_cursor`` of a page gets
    what follows it, also while trades are added. ``validation`` for a page below 1 or of more than 1,000.
    """
    try:
        asked = GetTradesPaginated(uid=user_id, page=page, page_size=page_size, cursor=cursor)
    except ValidationError as error:
        raise refusal_of(error) from None
    async with get_async_session() as session:
        found = await TradeRepository(session).get_trades_paginated(**asked.model_dump())
    return {
        "trades": found.trades,
        "pagination": {
            "page": found.page,
            "page_size": found.page_size,
            "total": found.total,
            "pages": found.pages,
        },
        "next_cursor": next_after(found.trades, page_size, "timestamp", "trade_id"),
    }


async def get_user_trading_stats(uid: int) -> dict[str, Any]:
    """Count, volumes and prices over all trades of a user, in one query; zeros if there are none.

    ``average_price`` is the plain mean, ``vwap`` the volume-weighted one. Amounts are `Decimal`.
    """
    async with get_async_session() as session:
        return dict((await TradeRepository(session).get_user_trading_stats(uid))._mapping)  # noqa: SLF001 - its public name


async def get_user_trading_summary(uid: int) -> dict[str, Any] | None:
    """A user with what bots and trades add up to, as of at most an hour ago; None if there is no such user.

    ``total_volume`` is over all trades, ``recent_volume`` over the newest ``recent_trades_count``. Amounts are
    `Decimal`; the rest is ready for ``json.dumps``.
    """

    async def load() -> bytes | None:
        async with get_async_session() as session:
            found = await TradeRepository(session).get_user_trading_summary(uid)
        return None if found is None else UserTradingSummary.model_validate(found).model_dump_json().encode()

    await cache_manager.certificate.look_if_due()
    value = await cache_manager.values.get(cache_keys.trading_summary(uid), load)
    if value is None:
        return None
    summary = UserTradingSummary.model_validate_json(value)
    return {
        **summary.model_dump(),
        "user": summary.user.model_dump(mode="json"),
        "generated_at": summary.generated_at.isoformat(),
    }


async def use_postgresql_features(start_date: datetime | None = None) -> list[dict[str, Any]]:
    """Median and deviation of the prices of each symbol traded since then, or in the last 30 days, by symbol id."""
    async with get_async_session() as session:
        stats = await TradeRepository(session).get_symbol_price_stats(start_date)
        return [dict(row._mapping) for row in stats]  # noqa: SLF001 - its public name
