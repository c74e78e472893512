"""Lookups of orders."""

from contracts.order import (
    GetLastOrder,
    GetOpenOrders,
    GetOrder,
    GetOrders,
    GetPendingOrders,
    OrdersPage,
    OrderView,
)
from service.cursor import next_after
from service.models import Order
from service.registry import LookupTable
from service.unit_of_work import UnitOfWork

lookups = LookupTable()


@lookups.answers(GetOrder)
async def get_order(lookup: GetOrder, reads: UnitOfWork) -> OrderView | None:
    order = await reads.orders.get_by_id(lookup.order_id)
    return None if order is None else OrderView.model_validate(order)


@lookups.answers(GetOpenOrders)
async def get_open_orders(lookup: GetOpenOrders, reads: UnitOfWork) -> list[OrderView]:
    orders = await reads.orders.get_open_orders(**lookup.model_dump())
    return [OrderView.model_validate(order) for order in orders]


@lookups.answers(GetPendingOrders)
async def get_pending_orders(lookup: GetPendingOrders, reads: UnitOfWork) -> OrdersPage:
    return _page(await reads.orders.get_pending_orders(lookup.limit, cursor=lookup.cursor), lookup.limit)


@lookups.answers(GetOrders)
async def get_orders(lookup: GetOrders, reads: UnitOfWork) -> OrdersPage:
    return _page(await reads.orders.get_orders(**lookup.model_dump()), lookup.limit)


@lookups.answers(GetLastOrder)
async def get_last_order(lookup: GetLastOrder, reads: UnitOfWork) -> OrderView | None:
    order = await reads.orders.get_last_order(lookup.bot_id)
    return None if order is None else OrderView.model_validate(order)


def _page(orders: list[Order], limit: int) -> OrdersPage:
    return OrdersPage(
        orders=[OrderView.model_validate(order) for order in orders],
        next_cursor=next_after(orders, limit, "timestamp", "order_id"),
    )
