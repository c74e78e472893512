"""Several instances of the service on the same servers."""

import asyncio
from functools import partial

from contracts import UpdateOrderStatus
from contracts.client import PersistenceClient
from tests.builders import Desk, a_desk
from tests.conftest import StartService
from tests.e2e.wire import eventually, value

ORDERS = 120


async def _trade(client: PersistenceClient, desk: Desk, orders: range) -> None:
    """Each order with its steps, which make sense in this order only."""
    for number in orders:
        name = f"x-{number}"
        await client.publish(desk.order(ex_order_id=name))
        for status in ("open", "filled"):
            await client.publish(UpdateOrderStatus(ex_id=desk.account.ex_id, ex_order_id=name, status=status))


async def _all_are_filled(database_url: str) -> bool:
    filled: int = await value(database_url, "SELECT count(*) FROM orders WHERE status = 'filled'")
    return filled == ORDERS


async def test_keep_the_order_of_messages_also_when_one_dies(start_service: StartService) -> None:
    first = await start_service()
    second = await start_service()
    async with PersistenceClient(first.rabbitmq_url, answer_timeout=10, confirm_timeout=60) as client:
        desk = await a_desk(client)
        half = ORDERS // 2
        await _trade(client, desk, range(half))
        rest = asyncio.create_task(_trade(client, desk, range(half, ORDERS)))
        await asyncio.sleep(0.2)
        await first.kill()
        await rest

        await eventually(partial(_all_are_filled, second.database_url), seconds=30)
    assert await value(second.database_url, "SELECT count(*) FROM dead_letters") == 0
