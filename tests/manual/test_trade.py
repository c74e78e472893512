"""The TradeRepository of the manual."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from contracts import Refusal
from service import TradeRepository, get_async_session
from tests.manual.conftest import Furnished, Market, a_market


@pytest.mark.manual("R70", "TradeRepository.create", differs="X40: once per ex_trade_id, and without an order too")
async def test_create_records_a_trade_once(furnished: Furnished) -> None:
    order = furnished.order
    trade_data = {
        "order_id": order.order_id,
        "ex_trade_id": "BINANCE_TRADE_789",
        "bot_id": order.bot_id,
        "uid": order.uid,
        "ex_id": order.ex_id,
        "symbol_id": order.symbol_id,
        "side": order.side,
        "size": order.size,
        "price": 45050.0,  # Actual execution price
        "fee": 0.45,  # Trading fee
        "fee_currency": "USDT",
    }
    async with get_async_session() as session:
        trade_repo = TradeRepository(session)
        trade = await trade_repo.create(trade_data)
        again = await trade_repo.create(trade_data)
        with pytest.raises(Refusal, match="fee"):
            await trade_repo.create({**trade_data, "fee": 0.46})

    assert (trade.order_id, trade.price, trade.fee) == (order.order_id, Decimal(45050), Decimal("0.45"))
    assert (trade.cost, again.trade_id) == (Decimal("45.05"), trade.trade_id)


@pytest.mark.manual("R71", "get_live_trades")
async def test_get_live_trades_filters(market: Market) -> None:
    now = datetime.now(UTC)
    async with get_async_session() as session:
        trade_repo = TradeRepository(session)
        for days in (1, 6, 8):
            await trade_repo.create({**market.trade, "timestamp": now - timedelta(days=days)})
        live_trades = await trade_repo.get_live_trades(
            user_id=market.user.uid,
            symbol_id=market.symbol.id,
            start_date=datetime.utcnow() - timedelta(days=7),  # noqa: DTZ003 - as the manual does it
        )

        assert [trade.timestamp for trade in live_trades] == [now - timedelta(days=days) for days in (1, 6)]
        assert await trade_repo.get_live_trades(user_id=market.user.uid, symbol_id=999) == []


@pytest.mark.manual("R72", "get_dry_trades")
async def test_get_dry_trades_are_the_newest_first(furnished: Furnished) -> None:
    market = furnished.market
    async with get_async_session() as session:
        trade_repo = TradeRepository(session)
        newest = await trade_repo.save_dry_trade({**market.ids, "side": "sell", "size": 1, "price": 101})
        dry_trades = await trade_repo.get_dry_trades(bot_id=market.bot.bot_id, limit=1000)
        [one] = await trade_repo.get_dry_trades(market.bot.bot_id, limit=1)

    assert [trade.dry_trade_id for trade in dry_trades] == [newest.dry_trade_id, furnished.dry_trade.dry_trade_id]
    assert one is newest


@pytest.mark.manual("R73", "get_trades_by_user")
async def test_get_trades_by_user_are_the_newest_first(market: Market) -> None:
    other = await a_market("other@company.com", catalog="kraken")
    async with get_async_session() as session:
        trade_repo = TradeRepository(session)
        trades = [await trade_repo.create(market.trade) for _ in range(3)]
        await trade_repo.create(other.trade)
        recent_trades = await trade_repo.get_trades_by_user(market.user.uid, limit=2)

    assert [trade.trade_id for trade in recent_trades] == [trades[2].trade_id, trades[1].trade_id]
