"""Commands about orders."""

from collections.abc import Mapping, Sequence

from contracts.order import (
    CancelledOrders,
    CancelOpenOrders,
    ClaimedOrders,
    ClaimPendingOrders,
    CreateOrder,
    FilledOrder,
    FillOrder,
    OrderView,
    UpdateOrderStatus,
)
from contracts.trade import TradeView
from service.inbox import Sent
from service.registry import CommandTable, Existing
from service.unit_of_work import UnitOfWork

handlers = CommandTable()


@handlers.handles(CreateOrder)
async def create_order(command: CreateOrder, work: UnitOfWork) -> OrderView | Existing[OrderView]:
    order, is_new = await work.orders.place(command.model_dump(exclude_none=True))
    view = OrderView.model_validate(order)
    return view if is_new else Existing(view)


@handlers.handles(UpdateOrderStatus)
async def update_order_status(command: UpdateOrderStatus, work: UnitOfWork) -> OrderView | Existing[OrderView]:
    order_id = command.order_id
    if order_id is None:
        assert command.ex_id is not None  # noqa: S101 - the contract requires both
        assert command.ex_order_id is not None  # noqa: S101
        order_id = await work.orders.id_on_exchange(command.ex_id, command.ex_order_id)
    order, changed = await work.orders.update_status(
        order_id,
        command.status,
        command.ex_order_id,
        filled_size=command.filled_size,
        avg_fill_price=command.avg_fill_price,
        reason=command.reason,
        expected_version=command.expected_version,
    )
    view = OrderView.model_validate(order)
    return view if changed else Existing(view)


@handlers.handles_many(UpdateOrderStatus)
async def update_order_statuses(
    commands: Sequence[UpdateOrderStatus], sent: Sent, work: UnitOfWork
) -> Mapping[int, OrderView | Existing[OrderView]]:
    outcomes = await work.orders.update_statuses(commands, sent.ids)
    return {place: order if changed else Existing(order) for place, (order, changed) in outcomes.items()}


@handlers.handles(FillOrder)
async def fill_order(command: FillOrder, work: UnitOfWork) -> FilledOrder | Existing[FilledOrder]:
    order, trade, changed = await work.orders.fill_order(**command.model_dump())
    filled = FilledOrder(order=OrderView.model_validate(order), trade=TradeView.model_validate(trade))
    return filled if changed else Existing(filled)


@handlers.handles(CancelOpenOrders)
async def cancel_open_orders(command: CancelOpenOrders, work: UnitOfWork) -> CancelledOrders:
    orders = await work.orders.cancel_open_orders(**command.model_dump())
    return CancelledOrders(count=len(orders), order_ids=[order.order_id for order in orders])


@handlers.handles(ClaimPendingOrders)
async def claim_pending_orders(command: ClaimPendingOrders, work: UnitOfWork) -> ClaimedOrders:
    orders, leased_until = await work.orders.claim_pending_orders(**command.model_dump())
    return ClaimedOrders(
        orders=[OrderView.model_validate(order) for order in orders], worker=command.worker, leased_until=leased_until
    )
