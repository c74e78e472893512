"""Orders in the database."""

from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.errors import ErrorCode, Refusal
from contracts.order import OrderCreated, OrderStatusChanged, OrderView
from service.models import OPEN_STATUSES, Order
from service.outbox import record
from service.repositories.base import BaseRepository, check_version, differing, exact
from service.repositories.ownership import Parties, catalog_of

# Where an order may go from where it stands. What is over stays over, whatever arrives late.
_NEXT: Final[dict[str, frozenset[str]]] = {
    "pending": frozenset({"open", "partially_filled", "filled", "cancelled", "rejected", "expired"}),
    "open": frozenset({"partially_filled", "filled", "cancelled", "rejected", "expired"}),
    "partially_filled": frozenset({"filled", "cancelled", "expired"}),
}


class OrderRepository(BaseRepository[Order]):
    """Orders by id, by the exchange's id and by who has them open."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, Order)

    async def create(self, data: dict[str, Any]) -> Order:
        """The order, stored if its ``client_order_id`` was not stored before. See `place`."""
        order, _ = await self.place(data)
        return order

    async def place(self, data: dict[str, Any]) -> tuple[Order, bool]:
        """The order, and whether it is new.

        ``not_found`` or ``forbidden`` for a bot, account or symbol that does not exist or belong; ``conflict`` if
        its ``client_order_id`` is that of an order with other content.
        """
        data = exact(data)
        parties = Parties(data.get("bot_id"), data["uid"], data["ex_id"], data["symbol_id"])
        catalog = await catalog_of(self.session, parties)
        order = await self.session.scalar(
            insert(Order)
            .values({**data, "cat_ex_id": catalog})
            .on_conflict_do_nothing(index_elements=["client_order_id"])
            .returning(Order)
        )
        if order is not None:
            record(self.session, OrderCreated, after=OrderView.model_validate(order))
            return order, True
        existing = (
            await self.session.scalars(select(Order).where(Order.client_order_id == data["client_order_id"]))
        ).one()
        # The status has a life of its own; everything else was decided when the order was placed.
        placed = {name: value for name, value in data.items() if name not in ("status", "reason", "ex_order_id")}
        if fields := differing(existing, placed):
            raise Refusal(
                ErrorCode.CONFLICT, f"is that of an order with another {', '.join(fields)}", field="client_order_id"
            )
        return existing, False

    async def update_status(
        self,
        order_id: int,
        status: str,
        ex_order_id: str | None = None,
        *,
        filled_size: Any = None,
        avg_fill_price: Any = None,
        reason: str | None = None,
        expected_version: int | None = None,
    ) -> tuple[Order, bool]:
        """The order in its new status, and whether anything changed.

        ``invalid_transition`` if that status cannot follow the present one or less would be filled than was;
        ``conflict`` if the order has another ``ex_order_id`` or is not at ``expected_version``.
        """
        order = await self._locked(order_id, "order_id")
        check_version(order, expected_version)
        if status != order.status and status not in _NEXT.get(order.status, frozenset()):
            raise Refusal(
                ErrorCode.INVALID_TRANSITION, f"a {order.status} order cannot become {status}", field="status"
            )
        if ex_order_id is not None and order.ex_order_id not in (None, ex_order_id):
            raise Refusal(ErrorCode.CONFLICT, f"the order has {order.ex_order_id!r}", field="ex_order_id")
        if filled_size is not None and filled_size > order.size:
            raise Refusal(ErrorCode.VALIDATION, f"is more than the order's size {order.size:f}", field="filled_size")
        if filled_size is not None and filled_size < order.filled_size:
            raise Refusal(
                ErrorCode.INVALID_TRANSITION,
                f"is less than the {order.filled_size:f} filled before",
                field="filled_size",
            )
        said = {
            "status": status,
            "ex_order_id": ex_order_id,
            "filled_size": filled_size,
            "avg_fill_price": avg_fill_price,
            "reason": reason,
        }
        values = {name: value for name, value in exact(said).items() if value is not None}
        if not differing(order, values):
            return order, False
        before = OrderView.model_validate(order)
        for name, value in values.items():
            setattr(order, name, value)
        await self.session.flush()
        record(self.session, OrderStatusChanged, before=before, after=OrderView.model_validate(order))
        return order, True

    async def id_on_exchange(self, ex_id: int, ex_order_id: str) -> int:
        """The id of the order that the exchange calls ``ex_order_id``; ``not_found`` without one."""
        order_id = await self.session.scalar(
            select(Order.order_id).where(Order.ex_id == ex_id, Order.ex_order_id == ex_order_id)
        )
        if order_id is None:
            raise Refusal(ErrorCode.NOT_FOUND, f"account {ex_id} has no order {ex_order_id!r}", field="ex_order_id")
        return order_id

    async def get_open_orders(
        self, *, bot_id: int | None = None, uid: int | None = None, ex_id: int | None = None, limit: int = 100
    ) -> list[Order]:
        """Orders pending, open or partially filled that match every owner given, oldest first."""
        owners = {Order.bot_id: bot_id, Order.uid: uid, Order.ex_id: ex_id}
        return list(
            await self.session.scalars(
                select(Order)
                .where(
                    Order.status.in_(OPEN_STATUSES),
                    *(column == value for column, value in owners.items() if value is not None),
                )
                .order_by(Order.timestamp, Order.order_id)
                .limit(limit)
            )
        )
