"""Orders: what a bot asked an exchange to do, and how far that got."""

from typing import Annotated, Self
from uuid import UUID

from pydantic import Field, model_validator

from contracts.base import Command, Event, Lookup, View
from contracts.topology import Lane
from contracts.trade import ExchangeTradeId, TradeView
from contracts.types import (
    STORABLE,
    Amount,
    Cursor,
    ExactDecimal,
    Id,
    Instant,
    LedgerId,
    Limit,
    NonNegative,
    OrderStatus,
    OrderType,
    Positive,
    Side,
)

ExchangeOrderId = Annotated[str, Field(min_length=1, max_length=64), STORABLE]


class OrderView(View):
    """An order."""

    order_id: LedgerId
    ex_order_id: str | None
    client_order_id: UUID | None
    bot_id: Id | None
    uid: Id
    ex_id: Id
    symbol_id: Id
    side: Side
    order_type: OrderType
    size: ExactDecimal
    """In units of the base currency."""
    price: ExactDecimal | None
    """Quote currency per unit of base currency; null for a market order."""
    stop_price: ExactDecimal | None
    filled_size: ExactDecimal
    avg_fill_price: ExactDecimal | None
    leverage: ExactDecimal | None
    status: OrderStatus
    reason: str | None
    timestamp: Instant
    """When it was placed."""
    row_version: int


class CreateOrder(Command[OrderView], name="create_order", lane=Lane.TRADING):
    """Place an order on record.

    Bot, account and user must belong together and the symbol to the account's exchange (``forbidden``). The same
    ``client_order_id`` again is answered with the stored order; with other content it is a ``conflict``.
    """

    bot_id: Id
    uid: Id
    ex_id: Id
    symbol_id: Id
    side: Side
    size: Positive
    order_type: OrderType
    price: Positive | None = None
    stop_price: Positive | None = None
    status: OrderStatus = "pending"
    ex_order_id: ExchangeOrderId | None = None
    client_order_id: UUID | None = None
    leverage: Positive | None = None
    reason: Annotated[str, Field(max_length=255), STORABLE] | None = None
    timestamp: Instant | None = None
    """When it was placed; the time of storing if left out."""

    @model_validator(mode="after")
    def _has_the_prices_of_its_type(self) -> Self:
        if self.order_type in ("limit", "stop_limit", "take_profit_limit") and self.price is None:
            raise ValueError(f"price is required for a {self.order_type} order")
        return self


class UpdateOrderStatus(Command[OrderView], name="update_order_status", lane=Lane.TRADING):
    """Move an order to another status.

    The order is named by ``order_id``, or by ``ex_id`` and ``ex_order_id``. The status it already has is no
    change and no event; one it cannot reach from there is an ``invalid_transition``.
    """

    order_id: LedgerId | None = None
    ex_id: Id | None = None
    ex_order_id: ExchangeOrderId | None = None
    """The exchange's id of the order: noted down with ``order_id``, looked up without it."""
    status: OrderStatus
    filled_size: NonNegative | None = None
    avg_fill_price: NonNegative | None = None
    reason: Annotated[str, Field(max_length=255), STORABLE] | None = None
    expected_version: Id | None = None

    @model_validator(mode="after")
    def _names_an_order(self) -> Self:
        if self.order_id is None and (self.ex_id is None or self.ex_order_id is None):
            raise ValueError("order_id is required, or ex_id together with ex_order_id")
        if self.order_id is not None and self.ex_id is not None:
            raise ValueError("names the order twice: leave out order_id, or ex_id")
        return self


class FilledOrder(View):
    """An order and the trade that filled it, as far as it did."""

    order: OrderView
    trade: TradeView


class FillOrder(Command[FilledOrder], name="fill_order", lane=Lane.TRADING):
    """Put the execution of an order on record: its trade and its new status, in one transaction.

    The order becomes ``filled``, or ``partially_filled`` while some of its size is left. One that is over is an
    ``invalid_transition``, unless ``ex_trade_id`` is that of a trade already counted: that is answered with what is
    stored (``meta.duplicate``) and fills nothing twice.
    """

    order_id: LedgerId
    price: Positive
    """What was really paid."""
    size: Positive | None = None
    """How much was executed; all that is left if left out."""
    fee: Amount | None = None
    fee_currency: Annotated[str, Field(min_length=1, max_length=20), STORABLE] | None = None
    ex_trade_id: ExchangeTradeId | None = None
    ex_order_id: ExchangeOrderId | None = None
    timestamp: Instant | None = None
    """When it was executed; the time of storing if left out."""
    worker: Annotated[str, Field(min_length=1, max_length=64), STORABLE] | None = None
    """Who claimed the order: ``conflict`` if it is leased to someone else meanwhile."""
    expected_version: Id | None = None


class CancelledOrders(View):
    """The orders that were ended."""

    count: int
    order_ids: list[LedgerId]


class CancelOpenOrders(Command[CancelledOrders], name="cancel_open_orders", lane=Lane.TRADING):
    """End the open orders of a bot, all at once. Those that cannot become ``to_status`` are left as they are."""

    bot_id: Id
    from_status: OrderStatus | None = None
    """Only orders of this status: pending, open or partially_filled; all three if left out."""
    to_status: OrderStatus = "cancelled"
    """cancelled, rejected or expired."""

    @model_validator(mode="after")
    def _goes_from_open_to_over(self) -> Self:
        if self.from_status not in (None, "pending", "open", "partially_filled"):
            raise ValueError("from_status must be pending, open or partially_filled")
        if self.to_status not in ("cancelled", "rejected", "expired"):
            raise ValueError("to_status must be cancelled, rejected or expired")
        return self


class ClaimedOrders(View):
    """Pending orders that nobody else is given until the lease ends."""

    orders: list[OrderView]
    worker: str
    leased_until: Instant


class ClaimPendingOrders(Command[ClaimedOrders], name="claim_pending_orders", lane=Lane.TRADING):
    """Lease pending orders to a worker, oldest first: no other worker is given them before the lease ends.

    A lease changes nothing else of an order and is announced by no event. It ends by itself, or when the order's
    status changes.
    """

    worker: Annotated[str, Field(min_length=1, max_length=64), STORABLE]
    """A name of its own for each worker."""
    limit: Limit = 100
    lease_seconds: Annotated[int, Field(strict=True, ge=1, le=3_600)] = 60


class GetOrder(Lookup[OrderView | None], name="get_order"):
    """An order by id; null if there is none."""

    order_id: LedgerId


class GetOpenOrders(Lookup[list[OrderView]], name="get_open_orders"):
    """Orders still pending, open or partially filled, oldest first, of a bot, a user or an account."""

    bot_id: Id | None = None
    uid: Id | None = None
    ex_id: Id | None = None
    limit: Annotated[int, Field(strict=True, ge=1, le=1_000)] = 100

    @model_validator(mode="after")
    def _names_an_owner(self) -> Self:
        if self.bot_id is None and self.uid is None and self.ex_id is None:
            raise ValueError("one of bot_id, uid and ex_id is required")
        return self


class OrdersPage(View):
    """Some orders of a longer list."""

    orders: list[OrderView]
    next_cursor: str | None
    """Give it as ``cursor`` to get what follows; null once a page is not full."""


class GetPendingOrders(Lookup[OrdersPage], name="get_pending_orders"):
    """Orders that no exchange has yet, oldest first. A worker that means to fill them claims them instead."""

    limit: Limit = 100
    cursor: Cursor | None = None


class GetOrders(Lookup[OrdersPage], name="get_orders"):
    """Orders of a bot, a user, an account or a symbol, newest first; several of these narrow it down."""

    status: OrderStatus | None = None
    bot_id: Id | None = None
    uid: Id | None = None
    ex_id: Id | None = None
    symbol_id: Id | None = None
    limit: Limit = 100
    cursor: Cursor | None = None

    @model_validator(mode="after")
    def _names_whose(self) -> Self:
        if self.bot_id is None and self.uid is None and self.ex_id is None and self.symbol_id is None:
            raise ValueError("one of bot_id, uid, ex_id and symbol_id is required")
        return self


class GetLastOrder(Lookup[OrderView | None], name="get_last_order"):
    """The newest order of a bot; null if it has none."""

    bot_id: Id


class OrderCreated(Event[OrderView], name="order.created", key=("order_id",)):
    """Orders were placed."""


class OrderStatusChanged(Event[OrderView], name="order.status_changed", key=("order_id",)):
    """Orders moved to another status, or got further in the one they had."""
