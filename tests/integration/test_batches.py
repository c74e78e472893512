"""What is carried out together is the same as what is carried out one by one."""

import json
from typing import Any
from unittest.mock import AsyncMock

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import (
    AddBot,
    BotLogSaved,
    OrderStatusChanged,
    RecordTrade,
    SaveBotLog,
    TradeRecorded,
    UpdateOrderStatus,
)
from contracts.base import EVENT_TYPES, Command
from service import inbox
from service.database import SessionMaker
from service.executor import Executor
from service.models import BotLog, InboxMessage, Order, OutboxEvent, Trade
from tests.builders import Desk, Direct, a_desk, received
from tests.observe import statements


async def announced(sessions: SessionMaker, kind: str) -> list[Any]:
    async with sessions() as session:
        rows = list(
            await session.scalars(select(OutboxEvent).where(OutboxEvent.type == kind).order_by(OutboxEvent.id))
        )
    view = EVENT_TYPES[kind].view_type()
    changes = [change for row in rows for change in json.loads(row.changes)]
    return [{**change, "after": view.model_validate(change["after"])} for change in changes]


async def made_together(sessions: SessionMaker) -> int:
    """How many messages were carried out by a handler for many."""
    async with sessions() as session:
        return await session.scalar(select(func.count()).where(InboxMessage.row_id.is_not(None))) or 0


def unasked(*commands: Command[Any]) -> list[Any]:
    return [received(command, reply_to=None) for command in commands]


class TestTradesTogether:
    async def test_are_stored_and_announced_as_one_by_one(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        trades: list[RecordTrade] = [
            desk.trade(),
            desk.trade(fee="0.00000000000000001", fee_currency="BNB", timestamp="2019-10-11T02:00:11.62+02:00"),
            desk.trade(side="sell", size="1e3", price="123456789.000000000000000001", ex_trade_id=None),
            desk.trade(leverage="2.50", roi="-3.1", roi_pct="0"),
        ]
        again = [trade.model_copy(update={"ex_trade_id": f"again {i}"}) for i, trade in enumerate(trades)]
        for trade in trades:
            await executor.execute([received(trade)])

        await executor.execute(unasked(*again))

        assert await made_together(sessions) == 4
        async with sessions() as session:
            rows = [row.to_dict() for row in await session.scalars(select(Trade).order_by(Trade.trade_id))]
        differ = {"trade_id", "ex_trade_id", "recorded_at"}
        for one, many, trade in zip(rows[:4], rows[4:], trades, strict=True):
            ignored = differ | (set() if trade.timestamp else {"timestamp"})
            assert {n: v for n, v in one.items() if n not in ignored} == {
                n: v for n, v in many.items() if n not in ignored
            }
        changes = await announced(sessions, TradeRecorded.wire_name)
        assert len(changes) == 8
        for row, change in zip(rows, changes, strict=True):
            assert change["key"] == {"trade_id": row["trade_id"]}
            assert change["version"] == 1
            assert change["before"] is None
            assert (
                json.loads(change["after"].model_dump_json()).items()
                >= {
                    name: row[name] for name in ("size", "price", "cost", "fee", "ex_trade_id", "roi", "bot_id")
                }.items()
            )
        assert changes[0]["changed"] == changes[4]["changed"]
        assert changes[0].keys() == changes[4].keys()

    async def test_tell_known_wrong_and_new_ones_apart(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        other = await a_desk(Direct(executor))
        known = desk.trade()
        await executor.execute(unasked(known))
        twice = desk.trade()
        batch = [
            desk.trade(),
            known,
            desk.trade(bot_id=other.bot.bot_id),
            twice,
            known.model_copy(update={"price": twice.size}),
            twice,
            desk.trade(symbol_id=other.symbol.symbol_id),
            desk.trade(order_id=999),
            desk.trade(),
        ]

        replies = await executor.execute(unasked(*batch))

        assert [(r.error.field if r.error else r.meta.duplicate) for r in replies] == [
            False,
            True,
            "bot_id",
            False,
            "ex_trade_id",
            True,
            "symbol_id",
            "order_id",
            False,
        ]
        async with sessions() as session:
            assert len(list(await session.scalars(select(Trade)))) == 4
        assert len(await announced(sessions, "trade.recorded")) == 4
        assert len(await announced(sessions, "command.rejected")) == 4

    async def test_repeated_under_one_message_id_count_once(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        [message] = unasked(desk.trade(ex_trade_id=None))

        replies = await executor.execute([message, *unasked(desk.trade()), message])

        assert [reply.meta.duplicate for reply in replies] == [False, False, True]
        async with sessions() as session:
            assert len(list(await session.scalars(select(Trade)))) == 2

    async def test_take_one_statement(self, executor: Executor, desk: Desk, engine: AsyncEngine) -> None:
        with statements(engine) as sent:
            await executor.execute(unasked(*(desk.trade() for _ in range(20))))

        assert len(sent) == 1

    async def test_stay_together_if_a_known_message_is_among_them(
        self, executor: Executor, desk: Desk, sessions: SessionMaker, engine: AsyncEngine
    ) -> None:
        [known] = unasked(desk.trade())
        await executor.execute([known])
        few, many = ([*unasked(*(desk.trade() for _ in range(number))), known] for number in (2, 20))

        with statements(engine) as for_few:
            await executor.execute(few)
        with statements(engine) as for_many:
            replies = await executor.execute(many)

        assert [reply.meta.duplicate for reply in replies] == [False] * 20 + [True]
        assert len(for_few) == len(for_many)
        assert await made_together(sessions) == 1 + 2 + 20

    async def test_are_told_from_one_that_fails_only_at_the_commit(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        async with sessions.begin() as session:
            await session.execute(
                text(
                    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                    "$$ BEGIN RAISE EXCEPTION 'too late'; END $$"
                )
            )
            await session.execute(
                text(
                    "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON trades DEFERRABLE INITIALLY DEFERRED "
                    "FOR EACH ROW WHEN (NEW.ex_trade_id = 'late') EXECUTE FUNCTION refuse()"
                )
            )

        alone = await executor.execute(unasked(desk.trade(ex_trade_id="late")))
        among = await executor.execute(unasked(desk.trade(), desk.trade(ex_trade_id="late"), desk.trade()))

        assert [reply.ok for reply in (*alone, *among)] == [False, True, False, True]
        async with sessions() as session:
            assert len(list(await session.scalars(select(Trade)))) == 2

    async def test_that_are_committed_stay_out_of_it_when_the_rest_of_their_batch_is_tried_again(
        self, executor: Executor, desk: Desk, sessions: SessionMaker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They came once, so nobody shall be told of a repetition."""
        batch = [executor.read(message) for message in (*unasked(desk.trade(), desk.trade()), received(desk.trade()))]
        with monkeypatch.context() as outage:
            outage.setattr(inbox, "remember", AsyncMock(side_effect=TimeoutError))
            with pytest.raises(TimeoutError):
                await executor.carry_out(batch)
        assert await made_together(sessions) == 2

        replies = await executor.carry_out(batch)

        assert [(reply.ok, reply.meta.duplicate) for reply in replies] == [(True, False)] * 3
        async with sessions() as session:
            assert len(list(await session.scalars(select(Trade)))) == 3

    async def test_make_events_of_at_most_500(self, executor: Executor, desk: Desk, sessions: SessionMaker) -> None:
        await executor.execute(unasked(*(desk.trade() for _ in range(1_100))))

        async with sessions() as session:
            rows = list(
                await session.scalars(
                    select(OutboxEvent).where(OutboxEvent.type == "trade.recorded").order_by(OutboxEvent.id)
                )
            )
        assert [len(json.loads(row.changes)) for row in rows] == [500, 500, 100]
        assert [len(row.causation_ids) for row in rows] == [500, 500, 100]


class TestAnswerOfOneOfMany:
    async def test_can_still_be_had_by_asking_again(self, executor: Executor, desk: Desk) -> None:
        trade, entry = desk.trade(), SaveBotLog(bot_id=desk.bot.bot_id, message="x")
        batch = unasked(trade, desk.trade(), entry, entry)
        await executor.execute(batch)

        for message in batch:
            message.reply_to = "test-replies"
        replies = await executor.execute(batch)

        assert all(reply.ok and reply.meta.duplicate for reply in replies)
        assert replies[0].data["ex_trade_id"] == trade.ex_trade_id
        assert replies[0].meta.version == 1
        assert replies[2].data == {"log_id": replies[3].data["log_id"] - 1, "bot_id": desk.bot.bot_id}


class TestLogsTogether:
    async def test_keep_their_order_and_their_content(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        entries = [
            SaveBotLog(bot_id=desk.bot.bot_id, message=f"entry {i}", data={"i": [i, "é\n"]}, position="1.50")
            for i in range(10)
        ]

        await executor.execute(unasked(*entries, SaveBotLog(bot_id=999, message="nobody's")))

        assert await made_together(sessions) == 10
        async with sessions() as session:
            rows = list(await session.scalars(select(BotLog).order_by(BotLog.log_id)))
        assert [row.message for row in rows] == [entry.message for entry in entries]
        assert rows[3].data == {"i": [3, "é\n"]}
        assert str(rows[3].position) == "1.50"
        assert [c["key"]["log_id"] for c in await announced(sessions, BotLogSaved.wire_name)] == [
            row.log_id for row in rows
        ]
        assert len(await announced(sessions, "command.rejected")) == 1

    async def test_do_not_overtake_other_commands_of_their_batch(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        new_bot = desk.bot.bot_id + 1
        batch = [
            *unasked(SaveBotLog(bot_id=new_bot, message="too early")),
            received(AddBot(uid=desk.user.uid, name="new")),
            *unasked(SaveBotLog(bot_id=new_bot, message="in time")),
        ]

        replies = await executor.execute(batch)

        assert [reply.ok for reply in replies] == [False, True, True]

    async def test_are_stored_once_when_one_is_sent_twice_among_others(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        first, second, third = unasked(*(SaveBotLog(bot_id=desk.bot.bot_id, message=word) for word in "abc"))

        replies = await executor.execute([first, second, first, third])

        assert [reply.meta.duplicate for reply in replies] == [False, False, True, False]
        async with sessions() as session:
            assert list(await session.scalars(select(BotLog.message).order_by(BotLog.log_id))) == ["a", "b", "c"]


class TestOrdersTogether:
    async def test_move_as_one_by_one(self, executor: Executor, desk: Desk, sessions: SessionMaker) -> None:
        alone, together = await an_order(executor, desk), await an_order(executor, desk)
        for move in moves(alone):
            await executor.execute([received(move)])

        replies = await executor.execute(unasked(*moves(together)))

        assert all(reply.ok for reply in replies)
        assert [reply.meta.version for reply in replies] == [2, 3, 3, 4]
        assert [reply.meta.duplicate for reply in replies] == [False, False, True, False]
        async with sessions() as session:
            one, other = [row.to_dict() for row in await session.scalars(select(Order).order_by(Order.order_id))]
        differ = {"order_id", "client_order_id", "timestamp", "updated_at"}
        assert {n: v for n, v in one.items() if n not in differ} == {
            n: v for n, v in other.items() if n not in differ
        }
        changes = await announced(sessions, OrderStatusChanged.wire_name)
        assert [(c["version"], c["after"].status, c["changed"]) for c in changes[:3]] == [
            (c["version"], c["after"].status, c["changed"]) for c in changes[3:]
        ]
        assert [c["before"]["status"] for c in changes[3:]] == ["pending", "open", "partially_filled"]

    async def test_do_not_overtake_one_that_is_refused(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        first, second = await an_order(executor, desk), await an_order(executor, desk)

        replies = await executor.execute(
            unasked(
                UpdateOrderStatus(order_id=first, status="open"),
                UpdateOrderStatus(order_id=second, status="open"),
                UpdateOrderStatus(order_id=first, status="filled", expected_version=3),
                UpdateOrderStatus(order_id=first, status="partially_filled"),
                UpdateOrderStatus(order_id=999, status="open"),
                UpdateOrderStatus(order_id=second, status="filled"),
            )
        )

        assert [r.error.field if r.error else r.meta.version for r in replies] == [
            *(2, 2, "expected_version", 3),
            *("order_id", 3),
        ]

    async def test_leave_trades_in_between_to_each_other(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        order = await an_order(executor, desk)
        batch = [command for move in moves(order) for command in (desk.trade(order_id=order), move, desk.trade())]

        replies = await executor.execute(unasked(*batch))

        assert all(reply.ok for reply in replies)
        async with sessions() as session:
            names = list(await session.scalars(select(Trade.ex_trade_id).order_by(Trade.trade_id)))
            events = list(await session.scalars(select(OutboxEvent.type).order_by(OutboxEvent.id.desc()).limit(2)))
        assert names == [command.ex_trade_id for command in batch if isinstance(command, RecordTrade)]
        assert set(events) == {TradeRecorded.wire_name, OrderStatusChanged.wire_name}

    async def test_can_be_asked_later_what_they_came_to(self, executor: Executor, desk: Desk) -> None:
        batch = unasked(*moves(await an_order(executor, desk)))
        await executor.execute(batch)

        for message in batch:
            message.reply_to = "test-replies"
        replies = await executor.execute(batch)

        assert [reply.data["status"] for reply in replies] == [
            "open",
            "partially_filled",
            "partially_filled",
            "filled",
        ]
        assert all(reply.meta.duplicate for reply in replies)


async def an_order(executor: Executor, desk: Desk) -> int:
    [reply] = await executor.execute([received(desk.order())])
    order_id: int = reply.data["order_id"]
    return order_id


def moves(order_id: int) -> list[UpdateOrderStatus]:
    return [
        UpdateOrderStatus(order_id=order_id, status="open", reason="sent"),
        UpdateOrderStatus(order_id=order_id, status="partially_filled", filled_size="1.50", avg_fill_price="2.0"),
        UpdateOrderStatus(order_id=order_id, status="partially_filled", filled_size="1.5"),
        UpdateOrderStatus(order_id=order_id, status="filled", filled_size="10"),
    ]
