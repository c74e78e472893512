"""Lookups of orders."""

from contracts.order import GetOpenOrders, GetOrder, OrderView
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
