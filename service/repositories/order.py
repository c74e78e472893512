"""Orders in the database."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Context, Decimal
from typing import Any, ClassVar, Final
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, any_, func, literal, or_, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.errors import ErrorCode, Refusal
from contracts.order import OrderCreated, OrderStatusChanged, OrderView, UpdateOrderStatus
from service.cursor import behind
from service.models import OPEN_STATUSES, Bot, Order, Trade
from service.outbox import record, set_cause
from service.repositories.base import BaseRepository, check_version, differing, exact, in_utc
from service.repositories.ownership import Parties, catalog_of
from service.repositories.trade import TradeRepository

# Where an order may go from where it stands. What is over stays over, whatever arrives late.
_NEXT: Final[dict[str, frozenset[str]]] = {
    "pending": frozenset({"open", "partially_filled", "filled", "cancelled", "rejected", "expired"}),
    "open": frozenset({"partially_filled", "filled", "cancelled", "rejected", "expired"}),
    "partially_filled": frozenset({"filled", "cancelled", "expired"}),
}


_CHANGING: Final = frozenset({"status", "ex_order_id", "filled_size", "avg_fill_price", "reason"})

# Wide enough for the product of two amounts of 38 digits.
_EXACT: Final = Context(prec=80)
_FINEST_PRICE: Final = Decimal("1e-18")


_MOVES: Final = {"status", "ex_order_id", "filled_size", "avg_fill_price", "reason"}
"""What an order's way through its statuses may change."""
_MOVED: Final = ("order_id", "row_version", *sorted(_MOVES))
_MOVE_MANY: Final = text("""
UPDATE orders SET row_version = moved.row_version, avg_fill_price = moved.avg_fill_price,
    ex_order_id = moved.ex_order_id, filled_size = moved.filled_size, reason = moved.reason, status = moved.status,
    leased_by = CASE WHEN orders.status = moved.status THEN leased_by END,
    leased_until = CASE WHEN orders.status = moved.status THEN leased_until END,
    updated_at = now()
FROM unnest(
    CAST(:order_id AS bigint[]), CAST(:row_version AS int[]), CAST(:avg_fill_price AS numeric[]),
    CAST(:ex_order_id AS text[]), CAST(:filled_size AS numeric[]), CAST(:reason AS text[]), CAST(:status AS text[])
) AS moved (order_id, row_version, avg_fill_price, ex_order_id, filled_size, reason, status)
WHERE orders.order_id = moved.order_id
""")


class OrderRepository(BaseRepository[Order]):
    """Orders by id, by the exchange's id and by who has them open."""

    never: ClassVar[Mapping[str, str]] = {"delete": "an order stays on record; end it with update_status"}

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, Order)

    async def create(self, data: dict[str, Any]) -> Order:
        """The order, stored if its ``client_order_id`` was not stored before. See `place`."""
        order, _ = await self.place(data)
        return order

    async def update(self, id: int, updates: dict[str, Any], *, expected_version: int | None = None) -> Order:  # noqa: A002
        """The order moved on as ``updates`` say. See `update_status`, by whose fields an order changes."""
        if decided := sorted(updates.keys() - _CHANGING):
            raise Refusal(ErrorCode.VALIDATION, "was decided when the order was placed", field=decided[0])
        said = exact(updates)
        if "status" not in said:
            said["status"] = (await self._locked(id, "order_id")).status
        order, _ = await self.update_status(id, **said, expected_version=expected_version)
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
        said = {
            "status": status,
            "ex_order_id": ex_order_id,
            "filled_size": filled_size,
            "avg_fill_price": avg_fill_price,
            "reason": reason,
        }
        return order, await self._move(order, _next_of(order, exact(said), expected_version))

    async def update_statuses(
        self, commands: Sequence[UpdateOrderStatus], causes: Sequence[UUID | None]
    ) -> dict[int, tuple[OrderView, bool]]:
        """Carry out those of ``commands`` that are in order as `update_status` would, in three statements.

        Gives what each of these left behind and whether it changed anything, by its position. What it leaves alone
        would be refused, or comes after such a one and must not overtake it.
        """
        order_ids = await self._named_by(commands)
        columns = [Order.__table__.c[name] for name in OrderView.model_fields]
        locked = await self.session.execute(
            select(*columns)
            .where(Order.order_id == any_(literal([i for i in order_ids if i is not None], ARRAY(BigInteger))))
            # In the order of their ids, so that two that lock the same orders wait for each other.
            .order_by(Order.order_id)
            .with_for_update(key_share=True)
        )
        orders = {row.order_id: OrderView.model_validate(row) for row in locked}
        outcomes: dict[int, tuple[OrderView, bool]] = {}
        changed: dict[int, OrderView] = {}
        refused: set[int] = set()
        for place, (command, order_id) in enumerate(zip(commands, order_ids, strict=True)):
            if order_id is None or order_id not in orders:
                break  # an order that a command before this one may just have given this name
            before = orders[order_id]
            try:
                values = _next_of(before, command.model_dump(include=_MOVES), command.expected_version)
            except Refusal:
                refused.add(order_id)
            if order_id in refused:
                continue
            if not differing(before, values):
                outcomes[place] = before, False
                continue
            after = before.model_copy(update=values | {"row_version": before.row_version + 1})
            set_cause(self.session, causes[place])
            record(self.session, OrderStatusChanged, before=before, after=after)
            orders[order_id] = changed[order_id] = after
            outcomes[place] = after, True
        if changed:
            rows = [[getattr(order, name) for order in changed.values()] for name in _MOVED]
            await self.session.execute(_MOVE_MANY, dict(zip(_MOVED, rows, strict=True)))
        return outcomes

    async def _named_by(self, commands: Sequence[UpdateOrderStatus]) -> list[int | None]:
        """The id of the order that each command is about, as far as it is known."""
        names = {(command.ex_id, command.ex_order_id) for command in commands if command.order_id is None}
        known: dict[tuple[Any, Any], int] = {}
        if names:
            found = select(Order.ex_id, Order.ex_order_id, Order.order_id)
            rows = await self.session.execute(found.where(tuple_(Order.ex_id, Order.ex_order_id).in_(names)))
            known = {(ex_id, ex_order_id): order_id for ex_id, ex_order_id, order_id in rows}
        return [
            command.order_id if command.order_id is not None else known.get((command.ex_id, command.ex_order_id))
            for command in commands
        ]

    async def _move(self, order: Order, values: dict[str, Any]) -> bool:
        """Whether ``values`` changed the locked order."""
        if not differing(order, values):
            return False
        before = OrderView.model_validate(order)
        if values.get("status", order.status) != order.status:
            order.leased_by = order.leased_until = None
        for name, value in values.items():
            setattr(order, name, value)
        await self.session.flush()
        record(self.session, OrderStatusChanged, before=before, after=OrderView.model_validate(order))
        return True

    async def fill_order(
        self,
        order_id: int,
        price: Any,
        size: Any = None,
        *,
        fee: Any = None,
        fee_currency: str | None = None,
        ex_trade_id: str | None = None,
        ex_order_id: str | None = None,
        timestamp: datetime | None = None,
        worker: str | None = None,
        expected_version: int | None = None,
    ) -> tuple[Order, Trade, bool]:
        """The order as its execution left it, the trade that is its record, and whether anything changed.

        Without ``size`` all that is left is executed. A trade that is on record already, under its ``ex_trade_id``,
        is linked with the order and counted once. Otherwise ``invalid_transition`` for an order that is over,
        ``conflict`` for one that is leased to another than ``worker``.
        """
        order = await self._locked(order_id, "order_id")
        trades = TradeRepository(self.session)
        known = None if ex_trade_id is None else await trades.get_by_ex_trade_id(order.ex_id, ex_trade_id)
        left = order.size - order.filled_size
        said = exact({"price": price, "size": size, "fee": fee, "timestamp": timestamp})
        said |= {"fee_currency": fee_currency, "ex_trade_id": ex_trade_id}
        said |= {"uid": order.uid, "ex_id": order.ex_id, "symbol_id": order.symbol_id, "side": order.side}
        if ex_order_id is not None and order.ex_order_id not in (None, ex_order_id):
            raise Refusal(ErrorCode.CONFLICT, f"the order has {order.ex_order_id!r}", field="ex_order_id")
        if known is not None:
            return await self._count_known(order, await trades.link(known, order, said), ex_order_id)
        check_version(order, expected_version)
        await self._check_lease(order, worker)
        if order.status not in OPEN_STATUSES:
            raise Refusal(ErrorCode.INVALID_TRANSITION, f"a {order.status} order cannot be filled", field="order_id")
        executed = left if said["size"] is None else said["size"]
        if executed > left:
            raise Refusal(ErrorCode.VALIDATION, f"is more than the {left:f} left", field="size")
        said |= {"size": executed, "order_id": order_id, "bot_id": order.bot_id, "leverage": order.leverage}
        said |= {"ex_order_id": ex_order_id or order.ex_order_id}
        trade = await trades.create(said)
        filled = order.filled_size + executed
        paid = _EXACT.multiply(order.avg_fill_price or trade.price, order.filled_size) + trade.cost
        await self._move(order, _filled(order, filled, paid, ex_order_id))
        return order, trade, True

    async def _count_known(
        self, order: Order, known: tuple[Trade, bool], ex_order_id: str | None
    ) -> tuple[Order, Trade, bool]:
        """Fill the order as far as its trades on record say, which a trade counted before does not change."""
        trade, linked = known
        filled, paid = (
            await self.session.execute(
                select(func.sum(Trade.size), func.sum(Trade.cost)).where(Trade.order_id == order.order_id)
            )
        ).one()
        if order.status not in OPEN_STATUSES or filled <= order.filled_size:
            return order, trade, linked
        return order, trade, await self._move(order, _filled(order, filled, paid, ex_order_id)) or linked

    async def _check_lease(self, order: Order, worker: str | None) -> None:
        if worker is None or order.leased_by in (None, worker):
            return
        if await self.session.scalar(select(literal(order.leased_until) > func.clock_timestamp())):
            raise Refusal(ErrorCode.CONFLICT, f"the order is leased to {order.leased_by!r}", field="worker")

    async def cancel_open_orders(
        self, bot_id: int, from_status: str | None = None, to_status: str = "cancelled"
    ) -> list[Order]:
        """The bot's open orders, or those of ``from_status``, ended as ``to_status``; two statements for any number.

        Those that cannot become ``to_status`` are left as they are. ``not_found`` without such a bot.
        """
        statuses = [old for old in OPEN_STATUSES if from_status in (None, old) and to_status in _NEXT[old]]
        if not statuses:
            raise Refusal(
                ErrorCode.INVALID_TRANSITION, f"a {from_status} order cannot become {to_status}", field="to_status"
            )
        if await self.session.scalar(select(Bot.bot_id).where(Bot.bot_id == bot_id)) is None:
            raise Refusal(ErrorCode.NOT_FOUND, f"there is no bot {bot_id}", field="bot_id")
        # In the order of their ids, so that two that end the same orders wait for each other.
        locked = await self.session.scalars(
            select(Order)
            .where(Order.bot_id == bot_id, Order.status.in_(statuses))
            .order_by(Order.order_id)
            .with_for_update(key_share=True)
            .execution_options(populate_existing=True)
        )
        before = {order.order_id: OrderView.model_validate(order) for order in locked}
        changed = await self._update(
            before,
            status=to_status,
            leased_by=None,
            leased_until=None,
            row_version=Order.row_version + 1,
        )
        for order in changed:
            view = OrderView.model_validate(order)
            record(self.session, OrderStatusChanged, before=before[order.order_id], after=view)
        return changed

    async def update_orders_status(self, bot_id: int, status: str, restrict: str | None = None) -> list[Order]:
        """The bot's open orders moved to ``status``, or only those of status ``restrict``. See the method above."""
        return await self.cancel_open_orders(bot_id, from_status=restrict, to_status=status)

    async def _update(self, order_ids: Collection[int], **values: Any) -> list[Order]:
        """The locked orders of these ids with ``values``, by id."""
        if not order_ids:
            return []
        changed = await self.session.scalars(
            update(Order)
            .where(Order.order_id == any_(literal(list(order_ids), ARRAY(BigInteger))))
            .values(**values)
            .returning(Order),
            execution_options={"populate_existing": True, "synchronize_session": False},
        )
        return sorted(changed, key=lambda order: order.order_id)

    async def claim_pending_orders(
        self, worker: str, *, limit: int = 100, lease_seconds: float = 60
    ) -> tuple[list[Order], datetime]:
        """Pending orders, oldest first, leased to ``worker``, and until when nobody else is given them.

        Orders that another transaction holds at this moment are passed over instead of waited for.
        """
        now = func.clock_timestamp()
        until: datetime = (await self.session.execute(select(now + timedelta(seconds=lease_seconds)))).scalar_one()
        # Materialized: an inlined subquery may be run more than once, and lease more than the limit.
        free = (
            select(Order.order_id)
            .where(Order.status == "pending", or_(Order.leased_until.is_(None), Order.leased_until < now))
            .order_by(Order.timestamp, Order.order_id)
            .limit(limit)
            .with_for_update(skip_locked=True, key_share=True)
            .cte("free")
            .prefix_with("MATERIALIZED")
        )
        leased = await self.session.scalars(
            update(Order)
            .where(Order.order_id == free.c.order_id)
            .values(leased_by=worker, leased_until=until, updated_at=Order.updated_at)
            .returning(Order),
            execution_options={"populate_existing": True, "synchronize_session": False},
        )
        return sorted(leased, key=lambda order: (order.timestamp, order.order_id)), until

    async def save_order(self, data: dict[str, Any]) -> Order:
        """The same as `create`."""
        return await self.create(data)

    async def update_order_final_volume(self, order_id: int, final_volume: Any) -> Order:
        """The order with that much of it filled. See `update_status`."""
        order = await self._locked(order_id, "order_id")
        order, _ = await self.update_status(order_id, order.status, filled_size=exact({"v": final_volume})["v"])
        return order

    async def id_on_exchange(self, ex_id: int, ex_order_id: str) -> int:
        """The id of the order that the exchange calls ``ex_order_id``; ``not_found`` without one."""
        order_id = await self.session.scalar(
            select(Order.order_id).where(Order.ex_id == ex_id, Order.ex_order_id == ex_order_id)
        )
        if order_id is None:
            raise Refusal(ErrorCode.NOT_FOUND, f"account {ex_id} has no order {ex_order_id!r}", field="ex_order_id")
        return order_id

    async def get_pending_orders(self, limit: int = 100, *, cursor: str | None = None) -> list[Order]:
        """Pending orders of everybody, oldest first."""
        return list(
            await self.session.scalars(
                select(Order)
                .where(Order.status == "pending", behind(cursor, Order.timestamp, Order.order_id))
                .order_by(Order.timestamp, Order.order_id)
                .limit(limit)
            )
        )

    async def get_orders(
        self,
        *,
        status: str | None = None,
        bot_id: int | None = None,
        uid: int | None = None,
        ex_id: int | None = None,
        symbol_id: int | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> list[Order]:
        """Orders that match all that is given, newest first; from ``start_date`` on, before ``end_date``."""
        given = {
            Order.status: status,
            Order.bot_id: bot_id,
            Order.uid: uid,
            Order.ex_id: ex_id,
            Order.symbol_id: symbol_id,
        }
        orders = select(Order).where(
            *(column == value for column, value in given.items() if value is not None),
            behind(cursor, Order.timestamp, Order.order_id, newest_first=True),
        )
        if start_date is not None:
            orders = orders.where(Order.timestamp >= in_utc(start_date))
        if end_date is not None:
            orders = orders.where(Order.timestamp < in_utc(end_date))
        return list(
            await self.session.scalars(orders.order_by(Order.timestamp.desc(), Order.order_id.desc()).limit(limit))
        )

    async def get_all_orders(self, limit: int = 100, *, cursor: str | None = None) -> list[Order]:
        """Orders of everybody, those recorded last first."""
        newest = select(Order).where(behind(cursor, Order.order_id, newest_first=True))
        return list(await self.session.scalars(newest.order_by(Order.order_id.desc()).limit(limit)))

    async def get_bot_orders(self, bot_id: int, status: str | None = None, limit: int = 100) -> list[Order]:
        """A bot's orders, or those of that status, newest first."""
        return await self.get_orders(bot_id=bot_id, status=status, limit=limit)

    async def get_order_history(
        self, bot_id: int, start_date: datetime | None = None, end_date: datetime | None = None, limit: int = 100
    ) -> list[Order]:
        """A bot's orders from ``start_date`` on and before ``end_date``, newest first."""
        return await self.get_orders(bot_id=bot_id, start_date=start_date, end_date=end_date, limit=limit)

    async def get_last_order(self, bot_id: int) -> Order | None:
        """A bot's newest order, or None."""
        return next(iter(await self.get_orders(bot_id=bot_id, limit=1)), None)

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


def _next_of(order: Order | OrderView, said: dict[str, Any], expected_version: int | None) -> dict[str, Any]:
    """What is ``said`` of an order, if it can follow on what the order is now."""
    check_version(order, expected_version)
    values = {name: value for name, value in said.items() if value is not None}
    status, filled = values["status"], values.get("filled_size")
    if status != order.status and status not in _NEXT.get(order.status, frozenset()):
        raise Refusal(ErrorCode.INVALID_TRANSITION, f"a {order.status} order cannot become {status}", field="status")
    if "ex_order_id" in values and order.ex_order_id not in (None, values["ex_order_id"]):
        raise Refusal(ErrorCode.CONFLICT, f"the order has {order.ex_order_id!r}", field="ex_order_id")
    if filled is not None and filled > order.size:
        raise Refusal(ErrorCode.VALIDATION, f"is more than the order's size {order.size:f}", field="filled_size")
    if filled is not None and filled < order.filled_size:
        raise Refusal(
            ErrorCode.INVALID_TRANSITION, f"is less than the {order.filled_size:f} filled before", field="filled_size"
        )
    return values


def _filled(order: Order, filled: Decimal, paid: Decimal, ex_order_id: str | None) -> dict[str, Any]:
    """What an order is once ``filled`` of it was executed for ``paid``."""
    is_over = filled >= order.size
    values: dict[str, Any] = {
        "status": "filled" if is_over else "partially_filled",
        "filled_size": order.size if is_over else filled,
        "avg_fill_price": _average(paid, filled),
    }
    return values if ex_order_id is None else values | {"ex_order_id": ex_order_id}


def _average(paid: Decimal, filled: Decimal) -> Decimal:
    """What one unit cost, exactly if it has an end within 18 decimals."""
    average = _EXACT.divide(paid, filled)
    rounded = _EXACT.quantize(average, _FINEST_PRICE)
    return average if average == rounded else rounded
