"""Commands about orders."""

from contracts.order import CreateOrder, OrderView, UpdateOrderStatus
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
