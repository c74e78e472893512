"""A batch of commands becomes rows, events, inbox entries and dead letters in one commit."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError

from contracts import AddBot, AddUser, ErrorCode, InstallExchange, Reply, SaveBotLog, UpdateOrderStatus
from contracts.base import Command
from contracts.client import new_message_id
from contracts.order import CreateOrder
from service.commands import HANDLERS
from service.database import SessionMaker
from service.errors import is_transient
from service.executor import REPLAY_HEADER, Executor
from service.models import BotLog, DeadLetter, InboxMessage, OutboxEvent, Trade
from service.received import Received
from service.registry import Handler
from service.unit_of_work import UnitOfWork
from tests.builders import Desk, Direct, a_desk, received
from tests.observe import events


async def count(sessions: SessionMaker, table: Any) -> int:
    async with sessions() as session:
        return await session.scalar(select(func.count()).select_from(table)) or 0


async def changes(sessions: SessionMaker, kind: str) -> list[dict[str, Any]]:
    """All changes of one kind that wait in the outbox, in order."""
    async with sessions() as session:
        rows = await session.scalars(select(OutboxEvent).where(OutboxEvent.type == kind).order_by(OutboxEvent.id))
        return [change for row in rows for change in json.loads(row.changes)]


class TestBatch:
    async def test_commits_rows_events_and_inbox_together(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        batch = [received(desk.trade()) for _ in range(20)]

        replies = await executor.execute(batch)

        assert all(reply.ok for reply in replies)
        assert len({reply.meta.commit_token for reply in replies}) == 1
        async with sessions() as session:
            [event] = await session.scalars(select(OutboxEvent).where(OutboxEvent.type == "trade.recorded"))
        assert [c["key"]["trade_id"] for c in json.loads(event.changes)] == [r.data["trade_id"] for r in replies]
        assert event.causation_ids == [UUID(message.message_id) for message in batch]

    async def test_is_not_held_up_by_a_rule_without_a_name(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        async with sessions.begin() as session:
            await session.execute(
                text(
                    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                    "$$ BEGIN RAISE EXCEPTION 'is not to be' USING ERRCODE = 'check_violation'; END $$"
                )
            )
            await session.execute(
                text(
                    "CREATE TRIGGER rule BEFORE INSERT ON trades FOR EACH ROW WHEN (NEW.ex_trade_id = 'never') "
                    "EXECUTE FUNCTION refuse()"
                )
            )

        replies = await executor.execute(
            [received(trade) for trade in (desk.trade(), desk.trade(ex_trade_id="never"), desk.trade())]
        )

        assert [reply.error and reply.error.code for reply in replies] == [None, ErrorCode.VALIDATION, None]

    async def test_keeps_the_good_ones_of_a_batch_with_bad_ones(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        bad = (3, 7, 8)
        batch = [received(desk.trade(**({"bot_id": 999} if i in bad else {}))) for i in range(10)]
        batch.insert(5, Received(command="record_trade", body=b"{", message_id=str(new_message_id())))

        replies = await executor.execute(batch)

        assert [reply.ok for reply in replies] == [i not in (3, 5, 8, 9) for i in range(11)]
        assert await count(sessions, Trade) == 7
        assert await count(sessions, DeadLetter) == 4
        assert len(await changes(sessions, "trade.recorded")) == 7
        assert len(await changes(sessions, "command.rejected")) == 4

    async def test_announces_the_good_ones_whatever_their_neighbours_meet_in_the_database(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        """A flush that fails takes back the savepoint around it, and no more."""
        taken = AddUser(mail=desk.user.mail)

        replies = await executor.execute(
            [received(command) for command in (AddUser(mail="a@example.org"), taken, AddUser(mail="b@example.org"))]
        )

        assert [reply.ok for reply in replies] == [True, False, True]
        created = [change["after"]["mail"] for change in await events(sessions, "user.created")]
        assert created == [desk.user.mail, "a@example.org", "b@example.org"]

    async def test_of_nothing_but_bad_ones_is_refused_one_by_one(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        replies = await executor.execute([received(desk.trade(symbol_id=999)) for _ in range(5)])

        assert {reply.error.code for reply in replies if reply.error} == {ErrorCode.NOT_FOUND}
        assert await count(sessions, DeadLetter) == 5

    async def test_keeps_the_order_of_a_bot_when_one_in_the_middle_is_refused(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        entries = [SaveBotLog(bot_id=desk.bot.bot_id if i != 4 else 999, message=str(i)) for i in range(9)]

        await executor.execute([received(entry) for entry in entries])

        async with sessions() as session:
            stored = await session.scalars(select(BotLog.message).order_by(BotLog.log_id))
            assert list(stored) == [str(i) for i in range(9) if i != 4]

    async def test_refuses_a_message_that_sets_off_a_defect_and_stores_the_rest(
        self, sessions: SessionMaker, desk: Desk
    ) -> None:
        async def fails(_: Any, __: UnitOfWork) -> Any:
            raise RuntimeError("a defect")

        executor = Executor(sessions, {**HANDLERS, InstallExchange: Handler(fails)})

        bad, good = await executor.execute([received(InstallExchange(name="x")), received(desk.trade())])

        assert bad.error is not None
        assert bad.error.code is ErrorCode.INTERNAL
        assert "a defect" not in bad.error.message
        assert good.ok

    @pytest.mark.parametrize("error", [None, AttributeError("writelines"), ConnectionError("away")])
    async def test_says_that_the_cache_is_behind_and_is_not_carried_out_again_if_the_removal_fails(
        self, sessions: SessionMaker, error: Exception | None
    ) -> None:
        removals: list[Sequence[str]] = []

        async def remove(keys: Sequence[str]) -> bool:
            removals.append(keys)
            if error is not None:
                raise error
            return False

        executor = Executor(sessions, remove=remove)

        [reply] = await executor.execute([received(AddUser(mail="late@example.org"))])

        assert (reply.ok, reply.meta.duplicate, reply.meta.cache) == (True, False, "pending")
        assert len(removals) == 1


class TestRepeatedMessage:
    async def test_gets_its_first_answer_and_has_no_second_effect(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        message = received(SaveBotLog(bot_id=desk.bot.bot_id, message="once"))
        [first] = await executor.execute([message])

        [second] = await executor.execute([message])

        assert second.data == first.data
        assert second.meta.commit_token == first.meta.commit_token
        assert (first.meta.duplicate, second.meta.duplicate) == (False, True)
        assert await count(sessions, BotLog) == 1
        assert len(await changes(sessions, "bot_log.saved")) == 1

    async def test_is_noticed_within_one_batch(self, executor: Executor, desk: Desk, sessions: SessionMaker) -> None:
        message = received(SaveBotLog(bot_id=desk.bot.bot_id, message="once"))

        replies = await executor.execute([message, message, message])

        assert [reply.meta.duplicate for reply in replies] == [False, True, True]
        assert await count(sessions, BotLog) == 1

    async def test_has_one_effect_when_two_instances_handle_it_at_once(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        message = received(SaveBotLog(bot_id=desk.bot.bot_id, message="once"))

        async def until_done() -> Reply:
            while True:
                try:
                    [reply] = await executor.execute([message])
                except IntegrityError as error:
                    if not is_transient(error):
                        raise
                else:
                    return reply

        replies = await asyncio.gather(*(until_done() for _ in range(8)))

        assert [reply.meta.duplicate for reply in replies].count(False) == 1
        assert await count(sessions, BotLog) == 1

    async def test_is_a_conflict_with_another_content(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        message_id = str(new_message_id())
        await executor.execute([received(desk.trade(), message_id=message_id)])

        other = received(desk.trade(price="2"), message_id=message_id)
        replies = await executor.execute([other]) + await executor.execute([other])

        for reply in replies:
            assert reply.error is not None
            assert (reply.error.code, reply.error.field) == (ErrorCode.CONFLICT, "message_id")
        assert await count(sessions, Trade) == 1
        assert await count(sessions, DeadLetter) == 1
        assert len(await changes(sessions, "command.rejected")) == 1

    async def test_that_was_refused_is_refused_again_and_announced_once(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        message = received(desk.trade(bot_id=999))

        first, second = [*await executor.execute([message]), *await executor.execute([message])]

        assert first.error == second.error
        assert await count(sessions, DeadLetter) == 1
        assert len(await changes(sessions, "command.rejected")) == 1


class TestKnownTrade:
    async def test_under_a_new_message_id_is_a_duplicate(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        trade = desk.trade()
        replies = await executor.execute([received(trade) for _ in range(3)]) + await executor.execute(
            [received(trade)]
        )

        assert [reply.meta.duplicate for reply in replies] == [False, True, True, True]
        assert len({reply.data["trade_id"] for reply in replies}) == 1
        assert len(await changes(sessions, "trade.recorded")) == 1

    @pytest.mark.parametrize(
        "difference",
        [{"price": "2"}, {"size": "1"}, {"side": "sell"}, {"fee": "0.1"}, {"timestamp": "2019-10-11T00:00:00Z"}],
        ids=lambda difference: next(iter(difference)),
    )
    async def test_with_another_content_is_a_conflict(
        self, executor: Executor, desk: Desk, sessions: SessionMaker, difference: dict[str, Any]
    ) -> None:
        trade = desk.trade()
        await executor.execute([received(trade)])

        body = json.dumps({**json.loads(trade.model_dump_json(exclude_unset=True)), **difference}).encode()
        [reply] = await executor.execute([_with_body(trade, body)])

        assert reply.error is not None
        assert (reply.error.code, reply.error.field) == (ErrorCode.CONFLICT, "ex_trade_id")
        assert next(iter(difference)) in reply.error.message
        assert await count(sessions, Trade) == 1

    async def test_written_with_fewer_zeros_is_the_same(self, executor: Executor, desk: Desk) -> None:
        trade = desk.trade()
        await executor.execute([received(trade)])

        [reply] = await executor.execute([received(desk.trade(ex_trade_id=trade.ex_trade_id, size="23"))])

        assert reply.meta.duplicate
        assert reply.data["size"] == "23.00000000"


class TestOwnership:
    async def test_keeps_one_user_from_anothers_things(self, executor: Executor, desk: Desk) -> None:
        other = await a_desk(Direct(executor))
        order = await Direct(executor).call(
            CreateOrder(
                bot_id=other.bot.bot_id,
                uid=other.user.uid,
                ex_id=other.account.ex_id,
                symbol_id=other.symbol.symbol_id,
                side="buy",
                size="1",
                order_type="market",
            )
        )
        attempts = {
            "bot_id": {"bot_id": other.bot.bot_id},
            "ex_id": {"ex_id": other.account.ex_id},
            "symbol_id": {"symbol_id": other.symbol.symbol_id},
            "order_id": {"order_id": order.order_id},
        }

        for field, changed in attempts.items():
            [reply] = await executor.execute([received(desk.trade(**changed))])
            assert reply.error is not None
            assert (reply.error.code, reply.error.field) == (ErrorCode.FORBIDDEN, field)


class TestOrderStatus:
    async def test_never_goes_back(self, executor: Executor, desk: Desk, sessions: SessionMaker) -> None:
        direct = Direct(executor)
        order = await direct.call(_order(desk))
        steps = [
            ("open", None),
            ("partially_filled", None),
            ("open", ErrorCode.INVALID_TRANSITION),
            ("Filled", None),
            ("canceled", ErrorCode.INVALID_TRANSITION),
            ("filled", None),
        ]

        for status, refused in steps:
            [reply] = await executor.execute([received(UpdateOrderStatus(order_id=order.order_id, status=status))])
            assert (reply.error.code if reply.error else None) == refused, status

        announced = await changes(sessions, "order.status_changed")
        assert [change["after"]["status"] for change in announced] == ["open", "partially_filled", "filled"]
        assert [change["version"] for change in announced] == [2, 3, 4]
        assert announced[0]["before"]["status"] == "pending"
        assert "status" in announced[0]["changed"]

    async def test_heeds_the_version_it_was_decided_on(self, executor: Executor, desk: Desk) -> None:
        order = await Direct(executor).call(_order(desk))

        [reply] = await executor.execute(
            [received(UpdateOrderStatus(order_id=order.order_id, status="open", expected_version=7))]
        )

        assert reply.error is not None
        assert (reply.error.code, reply.error.field) == (ErrorCode.CONFLICT, "expected_version")


class TestReplay:
    async def test_carries_out_what_was_refused(self, executor: Executor, desk: Desk, sessions: SessionMaker) -> None:
        trade = desk.trade(bot_id=desk.bot.bot_id + 1)
        message = received(trade)
        await executor.execute([message])
        other = await Direct(executor).call(_another_bot(desk))
        assert other.bot_id == trade.bot_id

        message.headers[REPLAY_HEADER] = 1
        replies = await executor.execute([message]) + await executor.execute([message])

        assert [reply.ok for reply in replies] == [True, True]
        assert [reply.meta.duplicate for reply in replies] == [False, True]
        async with sessions() as session:
            [letter] = await session.scalars(select(DeadLetter))
            [entry] = await session.scalars(
                select(InboxMessage).where(InboxMessage.message_id == UUID(message.message_id))
            )
        assert (letter.state, entry.refused) == ("replayed", False)

    async def test_that_is_refused_again_leaves_the_dead_letter_open(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        message = received(desk.trade(bot_id=999))
        await executor.execute([message])

        message.headers[REPLAY_HEADER] = 1
        [reply] = await executor.execute([message])

        assert not reply.ok
        async with sessions() as session:
            [letter] = await session.scalars(select(DeadLetter))
        assert (letter.state, letter.attempts) == ("open", 2)


def _with_body(command: Command[Any], body: bytes) -> Received:
    message = received(command)
    message.body = body
    return message


def _order(desk: Desk) -> CreateOrder:
    return CreateOrder(
        bot_id=desk.bot.bot_id,
        uid=desk.user.uid,
        ex_id=desk.account.ex_id,
        symbol_id=desk.symbol.symbol_id,
        side="buy",
        size="10",
        order_type="limit",
        price="0.1",
    )


def _another_bot(desk: Desk) -> Command[Any]:
    return AddBot(uid=desk.user.uid, name="another")
