"""Orders are filled once, claimed by one worker, cancelled together, and listed."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import (
    CancelOpenOrders,
    ClaimPendingOrders,
    ErrorCode,
    FillOrder,
    GetLastOrder,
    GetLiveTrades,
    GetOrder,
    GetOrders,
    GetPendingOrders,
    OrderView,
    UpdateOrderStatus,
)
from service.database import SessionMaker
from service.executor import Executor
from service.models import Order
from service.repositories import OrderRepository
from tests.builders import Desk, Direct, a_desk, received
from tests.observe import answer, events, refusal, statements


async def trades_of(sessions: SessionMaker, desk: Desk) -> list[Any]:
    trades: list[Any] = (await answer(sessions, GetLiveTrades(uid=desk.user.uid))).trades
    return trades


class TestFill:
    async def test_makes_the_trade_and_moves_the_order_together(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        order = await direct.call(desk.order(size="10.00", leverage="2"))

        filled = await direct.call(
            FillOrder(
                order_id=order.order_id,
                price="0.1000000000000001",
                fee="0.01",
                fee_currency="ETH",
                ex_trade_id="T-1",
                ex_order_id="O-1",
                timestamp="2026-01-01T02:00:00+02:00",
            )
        )

        assert await answer(sessions, GetOrder(order_id=order.order_id)) == filled.order
        assert await trades_of(sessions, desk) == [filled.trade]
        assert (filled.order.status, filled.order.ex_order_id) == ("filled", "O-1")
        assert (filled.order.filled_size, filled.order.avg_fill_price) == (Decimal(10), Decimal("0.1000000000000001"))
        trade = filled.trade
        assert (str(trade.price), str(trade.size), str(trade.fee)) == ("0.1000000000000001", "10.00", "0.01")
        assert (trade.order_id, trade.bot_id, trade.side) == (order.order_id, desk.bot.bot_id, "buy")
        assert (trade.ex_trade_id, trade.ex_order_id, trade.leverage) == ("T-1", "O-1", Decimal(2))
        [moved] = await events(sessions, "order.status_changed")
        assert (moved["before"]["status"], moved["after"]["status"]) == ("pending", "filled")
        assert len(await events(sessions, "trade.recorded")) == 1

    async def test_in_parts_adds_up(self, direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
        order = await direct.call(desk.order(size="3"))

        part = await direct.call(FillOrder(order_id=order.order_id, price="1", size="1"))
        rest = await direct.call(FillOrder(order_id=order.order_id, price="2"))

        assert (part.order.status, str(part.order.filled_size)) == ("partially_filled", "1")
        assert (rest.order.status, rest.order.filled_size, rest.trade.size) == ("filled", Decimal(3), Decimal(2))
        assert str(rest.order.avg_fill_price) == "1.666666666666666667"

    async def test_of_more_than_is_left_is_refused(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        order = await direct.call(desk.order(size="3"))

        error = await refusal(executor, FillOrder(order_id=order.order_id, price="1", size="3.01"))

        assert (error.code, error.field) == (ErrorCode.VALIDATION, "size")
        assert await trades_of(sessions, desk) == []
        assert await answer(sessions, GetOrder(order_id=order.order_id)) == order

    @pytest.mark.parametrize("status", ["cancelled", "filled", "rejected", "expired"])
    async def test_of_an_order_that_is_over_is_refused(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker, status: str
    ) -> None:
        order = await direct.call(desk.order())
        await direct.call(UpdateOrderStatus(order_id=order.order_id, status=status))

        error = await refusal(executor, FillOrder(order_id=order.order_id, price="1", ex_trade_id="T-1"))

        assert error.code is ErrorCode.INVALID_TRANSITION
        assert await trades_of(sessions, desk) == []

    async def test_by_many_workers_at_once_happens_once(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        order = await direct.call(desk.order())
        fill = FillOrder(order_id=order.order_id, price="1")

        replies = await asyncio.gather(*(executor.execute([received(fill)]) for _ in range(8)))

        assert [reply.ok for [reply] in replies].count(True) == 1
        assert len(await trades_of(sessions, desk)) == 1
        assert len(await events(sessions, "trade.recorded")) == 1

    async def test_resent_with_its_trade_id_counts_once(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        order = await direct.call(desk.order(size="3"))
        part = FillOrder(order_id=order.order_id, price="1", size="1", ex_trade_id="T-1")
        rest = FillOrder(order_id=order.order_id, price="1", ex_trade_id="T-2")

        replies = [(await executor.execute([received(fill)]))[0] for fill in (part, part, rest, rest, part)]

        assert [reply.meta.duplicate for reply in replies] == [False, True, False, True, True]
        assert [reply.data["order"]["filled_size"] for reply in replies] == ["1", "1", "3", "3", "3"]
        assert len(await trades_of(sessions, desk)) == 2
        assert len(await events(sessions, "order.status_changed")) == 2

    async def test_never_takes_back_what_the_exchange_said_was_filled(
        self, executor: Executor, direct: Direct, desk: Desk
    ) -> None:
        order = await direct.call(desk.order(size="10"))
        await direct.call(UpdateOrderStatus(order_id=order.order_id, status="partially_filled", filled_size="5"))
        fill = FillOrder(order_id=order.order_id, price="1", size="1", ex_trade_id="T-1")

        replies = [(await executor.execute([received(fill)]))[0] for _ in range(2)]

        assert [reply.data["order"]["filled_size"] for reply in replies] == ["6", "6"]
        assert [reply.meta.duplicate for reply in replies] == [False, True]

    async def test_counts_a_trade_that_a_poller_recorded_before(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        order = await direct.call(desk.order(size="23"))
        polled = await direct.call(desk.trade(ex_trade_id="T-1"))
        fill = FillOrder(order_id=order.order_id, price="0.00141342", ex_trade_id="T-1")

        [first] = await executor.execute([received(fill)])
        [second] = await executor.execute([received(fill)])

        assert (first.data["order"]["status"], first.meta.duplicate) == ("filled", False)
        assert (first.data["trade"]["trade_id"], second.meta.duplicate) == (polled.trade_id, True)
        [trade] = await trades_of(sessions, desk)
        assert (trade.order_id, trade.row_version) == (order.order_id, 2)
        _, linked = await events(sessions, "trade.recorded")
        assert set(linked["changed"]) == {"order_id", "row_version"}
        assert linked["version"] == 2

    async def test_with_a_trade_that_is_on_record_otherwise_is_a_conflict(
        self, executor: Executor, direct: Direct, desk: Desk
    ) -> None:
        other = await direct.call(desk.order(size="23"))
        order = await direct.call(desk.order(size="23"))
        await direct.call(desk.trade(ex_trade_id="T-1"))
        await direct.call(desk.trade(ex_trade_id="T-2", order_id=other.order_id))

        price = await refusal(executor, FillOrder(order_id=order.order_id, price="9", ex_trade_id="T-1"))
        of_another = await refusal(
            executor, FillOrder(order_id=order.order_id, price="0.00141342", ex_trade_id="T-2")
        )

        assert (price.code, price.field) == (ErrorCode.CONFLICT, "ex_trade_id")
        assert "price" in price.message
        assert (of_another.code, of_another.field) == (ErrorCode.CONFLICT, "ex_trade_id")
        assert "another order" in of_another.message

    async def test_heeds_version_exchange_id_and_existence(
        self, executor: Executor, direct: Direct, desk: Desk
    ) -> None:
        order = await direct.call(desk.order(ex_order_id="O-1"))

        refusals = [
            await refusal(executor, FillOrder(order_id=order.order_id, price="1", expected_version=2)),
            await refusal(executor, FillOrder(order_id=order.order_id, price="1", ex_order_id="O-2")),
            await refusal(executor, FillOrder(order_id=999, price="1")),
        ]

        assert [(error.code, error.field) for error in refusals] == [
            (ErrorCode.CONFLICT, "expected_version"),
            (ErrorCode.CONFLICT, "ex_order_id"),
            (ErrorCode.NOT_FOUND, "order_id"),
        ]


class TestCancel:
    async def test_ends_all_open_orders_of_a_bot_and_no_others(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        other = await direct.call((await a_desk(direct)).order())
        mine = [await direct.call(desk.order()) for _ in range(3)]
        await direct.call(UpdateOrderStatus(order_id=mine[0].order_id, status="filled"))

        done = await direct.call(CancelOpenOrders(bot_id=desk.bot.bot_id))

        assert (done.count, done.order_ids) == (2, [mine[1].order_id, mine[2].order_id])
        assert (await answer(sessions, GetOrder(order_id=mine[1].order_id))).status == "cancelled"
        assert (await answer(sessions, GetOrder(order_id=mine[0].order_id))).status == "filled"
        assert await answer(sessions, GetOrder(order_id=other.order_id)) == other
        cancelled = (await events(sessions, "order.status_changed"))[1:]
        assert [(c["before"]["status"], c["after"]["status"], c["version"]) for c in cancelled] == [
            ("pending", "cancelled", 2)
        ] * 2
        assert (await direct.call(CancelOpenOrders(bot_id=desk.bot.bot_id))).count == 0

    async def test_leaves_what_cannot_become_that(self, direct: Direct, desk: Desk) -> None:
        partly, pending = [await direct.call(desk.order()) for _ in range(2)]
        await direct.call(UpdateOrderStatus(order_id=partly.order_id, status="partially_filled"))

        rejected = await direct.call(CancelOpenOrders(bot_id=desk.bot.bot_id, to_status="rejected"))
        expired = await direct.call(
            CancelOpenOrders(bot_id=desk.bot.bot_id, from_status="partially_filled", to_status="expired")
        )

        assert (rejected.order_ids, expired.order_ids) == ([pending.order_id], [partly.order_id])

    async def test_is_refused_for_no_bot_and_for_no_way(self, executor: Executor, desk: Desk) -> None:
        nobody = await refusal(executor, CancelOpenOrders(bot_id=999))
        no_way = await refusal(
            executor,
            CancelOpenOrders(bot_id=desk.bot.bot_id, from_status="partially_filled", to_status="rejected"),
        )

        assert (nobody.code, nobody.field) == (ErrorCode.NOT_FOUND, "bot_id")
        assert (no_way.code, no_way.field) == (ErrorCode.INVALID_TRANSITION, "to_status")

    @pytest.mark.parametrize("wrong", [{"from_status": "filled"}, {"to_status": "filled"}, {"to_status": "open"}])
    def test_goes_from_open_to_over(self, wrong: dict[str, str]) -> None:
        with pytest.raises(ValidationError):
            CancelOpenOrders(bot_id=1, **wrong)

    async def test_takes_as_many_statements_for_hundreds_as_for_one(
        self, executor: Executor, desk: Desk, sessions: SessionMaker, engine: AsyncEngine
    ) -> None:
        counts = []
        for number in (1, 200):
            await executor.execute([received(desk.order()) for _ in range(number)])
            with statements(engine) as sent:
                async with sessions.begin() as session:
                    assert len(await OrderRepository(session).cancel_open_orders(desk.bot.bot_id)) == number
            counts.append(len(sent))

        assert counts[0] == counts[1] == 4


class TestClaim:
    async def test_gives_the_oldest_pending_orders_and_no_event(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        orders = [await direct.call(desk.order(timestamp=f"2026-01-0{day}T00:00:00Z")) for day in (3, 1, 2)]
        await direct.call(desk.order(status="open", timestamp="2025-01-01T00:00:00Z"))

        claimed = await direct.call(ClaimPendingOrders(worker="a", limit=2))

        assert claimed.orders == [orders[1], orders[2]]
        assert await events(sessions, "order.status_changed") == []
        assert await answer(sessions, GetOrder(order_id=orders[1].order_id)) == orders[1]

    async def test_never_gives_two_workers_one_order(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        await executor.execute([received(desk.order()) for _ in range(60)])

        replies = await asyncio.gather(
            *(executor.execute([received(ClaimPendingOrders(worker=f"w{n}", limit=9))]) for n in range(8))
        )

        given = [order["order_id"] for [reply] in replies for order in reply.data["orders"]]
        assert len(given) == len(set(given)) == 60

    async def test_passes_over_orders_that_are_being_changed(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        held, free = [await direct.call(desk.order()) for _ in range(2)]

        async with sessions.begin() as session:
            await session.execute(text("SELECT 1 FROM orders WHERE order_id = :id FOR UPDATE"), {"id": held.order_id})
            claimed = await direct.call(ClaimPendingOrders(worker="a"))

        assert [order.order_id for order in claimed.orders] == [free.order_id]

    async def test_gives_an_order_again_when_its_lease_is_over(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        order = await direct.call(desk.order())
        await direct.call(ClaimPendingOrders(worker="a"))
        assert (await direct.call(ClaimPendingOrders(worker="b"))).orders == []
        await _let_leases_end(sessions)

        claimed = await direct.call(ClaimPendingOrders(worker="b"))

        assert claimed.orders == [order]

    async def test_is_answered_the_same_when_its_message_comes_again(self, executor: Executor, desk: Desk) -> None:
        await executor.execute([received(desk.order())])
        message = received(ClaimPendingOrders(worker="a"))

        [first], [second] = await executor.execute([message]), await executor.execute([message])

        assert second.data == first.data
        assert len(first.data["orders"]) == 1

    async def test_keeps_other_workers_from_filling(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        order = await direct.call(desk.order())
        await direct.call(ClaimPendingOrders(worker="a"))
        await _let_leases_end(sessions)
        await direct.call(ClaimPendingOrders(worker="b"))

        late = await refusal(executor, FillOrder(order_id=order.order_id, price="1", worker="a"))
        filled = await direct.call(FillOrder(order_id=order.order_id, price="1", worker="b"))

        assert (late.code, late.field) == (ErrorCode.CONFLICT, "worker")
        assert filled.order.status == "filled"
        async with sessions() as session:
            row = await session.get_one(Order, order.order_id)
        assert (row.leased_by, row.leased_until) == (None, None)


class TestLists:
    async def test_narrow_down_and_go_on_by_cursor(self, direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
        await direct.call((await a_desk(direct)).order())
        # Two of each moment: only the id tells them apart.
        mine = [
            await direct.call(desk.order(timestamp=f"2026-01-0{1 + n // 2}T00:00:00Z", status=status))
            for n, status in enumerate(["open", "pending", "open", "filled", "open"])
        ]
        newest_first = list(reversed(mine))

        for whose in ({"bot_id": desk.bot.bot_id}, {"uid": desk.user.uid}, {"ex_id": desk.account.ex_id}):
            assert await _all(sessions, GetOrders(limit=2, **whose)) == newest_first
        opened = await _all(sessions, GetOrders(limit=2, symbol_id=desk.symbol.symbol_id, status="open"))
        assert opened == [order for order in newest_first if order.status == "open"]
        assert await answer(sessions, GetLastOrder(bot_id=desk.bot.bot_id)) == mine[-1]
        assert await answer(sessions, GetLastOrder(bot_id=999)) is None

    async def test_of_pending_orders_are_oldest_first(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        late, early = [await direct.call(desk.order(timestamp=f"2026-01-0{day}T00:00:00Z")) for day in (2, 1)]
        await direct.call(desk.order(status="open"))

        assert await _all(sessions, GetPendingOrders(limit=1)) == [early, late]

    @pytest.mark.parametrize("cursor", ["x", "AAAA", "W10", "WzEsMl0", "WyIyMDI2LTAxLTAxVDAwOjAwOjAwIiwxXQ", "e30"])
    async def test_refuse_a_made_up_cursor(self, sessions: SessionMaker, cursor: str) -> None:
        with pytest.raises(Exception, match="is none that this lookup gave") as refused:
            await answer(sessions, GetOrders(bot_id=1, cursor=cursor))

        assert refused.value.field == "cursor"  # type: ignore[attr-defined]

    @pytest.mark.parametrize("cursor", ["é", "[" * 200, "x" * 501, ""])
    def test_refuse_a_cursor_that_no_lookup_could_give(self, cursor: str) -> None:
        with pytest.raises(ValueError, match="cursor"):
            GetOrders(bot_id=1, cursor=cursor)

    def test_need_an_owner_and_a_limit_within_bounds(self) -> None:
        for wrong in ({}, {"bot_id": 1, "limit": 1_001}, {"bot_id": 1, "limit": 0}):
            with pytest.raises(ValidationError):
                GetOrders(**wrong)


async def test_the_library_creates_and_updates_as_the_manual_shows(desk: Desk, sessions: SessionMaker) -> None:
    async with sessions.begin() as session:
        orders = OrderRepository(session)
        order = await orders.create(
            {
                "bot_id": desk.bot.bot_id,
                "uid": desk.user.uid,
                "ex_id": desk.account.ex_id,
                "symbol_id": desk.symbol.symbol_id,
                "side": "buy",
                "size": 0.001,
                "price": 45000.0,
                "order_type": "limit",
                "status": "pending",
            }
        )
        assert await orders.get_pending_orders(limit=100) == [order]
        await orders.update_order_final_volume(order.order_id, 0.0005)
        await orders.update_status(order.order_id, "filled", ex_order_id="BINANCE123456")

        assert (order.status, order.ex_order_id, order.filled_size) == ("filled", "BINANCE123456", Decimal("0.0005"))
        assert await orders.get_bot_orders(desk.bot.bot_id, "filled") == [order]
        assert await orders.get_order_history(desk.bot.bot_id) == [order]
        assert await orders.update_orders_status(desk.bot.bot_id, "cancelled") == []


async def _all(sessions: SessionMaker, lookup: Any) -> list[OrderView]:
    """What a list holds, page by page."""
    seen: list[OrderView] = []
    while True:
        page = await answer(sessions, lookup)
        seen += page.orders
        if page.next_cursor is None:
            return seen
        lookup = lookup.model_copy(update={"cursor": page.next_cursor})


async def _let_leases_end(sessions: SessionMaker) -> None:
    async with sessions.begin() as session:
        await session.execute(
            update(Order).where(Order.leased_by.is_not(None)).values(leased_until=text("now() - interval '1 s'"))
        )
