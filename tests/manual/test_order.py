"""The OrderRepository of the manual."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from contracts import Refusal
from service import OrderRepository, get_async_session
from tests.manual.conftest import Market


@pytest.mark.manual("R60", "OrderRepository.create")
async def test_create_places_the_manuals_order(market: Market) -> None:
    async with get_async_session() as session:
        order = await OrderRepository(session).create(
            {
                "bot_id": market.bot.bot_id,
                "uid": market.user.uid,
                "ex_id": market.exchange.ex_id,
                "symbol_id": market.symbol.id,
                "side": "buy",
                "size": 0.001,
                "price": 45000.0,
                "order_type": "limit",
                "status": "pending",
            }
        )

    assert (order.size, order.price, order.status) == (Decimal("0.001"), Decimal(45000), "pending")


@pytest.mark.manual("R61", "update_status", differs="X39: what is over stays over, whatever arrives late")
async def test_update_status_follows_the_life_of_an_order(market: Market) -> None:
    async with get_async_session() as session:
        order_repo = OrderRepository(session)
        order = await order_repo.create(market.order)
        await order_repo.update_status(order.order_id, "filled", ex_order_id="BINANCE123456")
        with pytest.raises(Refusal) as refusal:
            await order_repo.update_status(order.order_id, "open")

    assert (order.status, order.ex_order_id) == ("filled", "BINANCE123456")
    assert refusal.value.code == "invalid_transition"


@pytest.mark.manual("R62", "get_pending_orders")
async def test_get_pending_orders_are_the_oldest_first(market: Market) -> None:
    async with get_async_session() as session:
        order_repo = OrderRepository(session)
        orders = [
            await order_repo.create({**market.order, "timestamp": datetime(2024, 1, day, tzinfo=UTC)})
            for day in (3, 1, 2)
        ]
        await order_repo.update_status(orders[2].order_id, "cancelled")
        pending_orders = await order_repo.get_pending_orders(limit=100)
        [oldest] = await order_repo.get_pending_orders(limit=1)

    assert [order.order_id for order in pending_orders] == [orders[1].order_id, orders[0].order_id]
    assert oldest is orders[1]
