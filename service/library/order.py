"""Orders that wait to be filled."""

import asyncio
import inspect
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import structlog

from contracts.errors import Refusal
from service.database import get_async_session
from service.errors import is_transient, sentence
from service.models import Order
from service.repositories import OrderRepository

log = structlog.get_logger()

Money = Decimal | float


async def process_trades_background(
    should_fill_order: Callable[[Order], bool | Awaitable[bool]],
    get_market_price: Callable[[int], Money | Awaitable[Money]],
    calculate_fee: Callable[[Order], Money | Awaitable[Money]] | None = None,
    *,
    fee_currency: str = "USDT",
    limit: int = 100,
    interval: float = 10.0,
    worker: str | None = None,
) -> None:
    """Fill pending orders until cancelled, every ``interval`` seconds at most ``limit`` of them.

    The caller says which, at what price per symbol id, and for what fee. An order is leased to this worker while it
    is decided on, and filled together with its trade in a transaction of its own: any number of workers may run,
    and none fills an order twice.
    """
    name = worker or f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
    while True:
        try:
            async with get_async_session() as session:
                orders, _ = await OrderRepository(session).claim_pending_orders(
                    name, limit=limit, lease_seconds=max(interval, 1.0)
                )
        except Exception as error:
            if not is_transient(error):
                raise
            log.warning("orders_not_claimed", error=sentence(error))
            orders = []
        for order in orders:
            try:
                if await _told(should_fill_order(order)):
                    price = await _told(get_market_price(order.symbol_id))
                    fee = await _told(calculate_fee(order)) if calculate_fee is not None else None
                    await _fill(order, name, price=price, fee=fee, fee_currency=fee_currency)
            except Exception:  # one order holds up no other; it is pending still
                log.exception("order_not_filled", order_id=order.order_id)
        await asyncio.sleep(interval)


async def _fill(order: Order, worker: str, *, price: Money, fee: Money | None, fee_currency: str) -> None:
    said: dict[str, Any] = {} if fee is None else {"fee": fee, "fee_currency": fee_currency}
    try:
        async with get_async_session() as session:
            await OrderRepository(session).fill_order(order.order_id, price, worker=worker, **said)
    except Refusal as refusal:
        # Cancelled or taken over meanwhile: not this worker's any more.
        log.info("order_not_fillable", order_id=order.order_id, reason=str(refusal))


async def _told(answer: Any) -> Any:
    """What a caller's function says, be it asynchronous or not."""
    return await answer if inspect.isawaitable(answer) else answer
