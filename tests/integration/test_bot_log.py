"""Lists of log entries are stored as a whole, and a log is read page by page."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import ErrorCode, GetBotLogs, LogFields, SaveBotLog, SaveBotLogs
from contracts.errors import Refusal
from service.database import SessionMaker
from service.executor import Executor
from service.models import BotLog, OutboxEvent
from service.repositories import BotRepository
from tests.builders import Desk, Direct, a_desk, received
from tests.observe import answer, events, refusal, statements

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


def entries(desk: Desk, number: int, **more: Any) -> list[LogFields]:
    return [LogFields(bot_id=desk.bot.bot_id, message=f"entry {i}", **more) for i in range(number)]


async def stored(sessions: SessionMaker) -> int:
    async with sessions() as session:
        return await session.scalar(select(func.count()).select_from(BotLog)) or 0


class TestSaveBotLogs:
    async def test_keeps_what_was_sent_in_its_order(self, direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
        other = await a_desk(direct)
        logs = [
            LogFields(
                bot_id=desk.bot.bot_id,
                message="é\n",
                level="ERROR",
                action="ENTRY",
                timestamp=NOON,
                feed_num=3,
                ex_id=desk.account.ex_id,
                symbol="BTC/USD:BTC",
                position="-1.50",
                data={"a": [1, {"b": None}]},
            ),
            LogFields(bot_id=other.bot.bot_id, message="of another bot"),
            LogFields(bot_id=desk.bot.bot_id, message=""),
        ]

        saved = await direct.call(SaveBotLogs(logs=logs))

        assert (saved.count, saved.log_ids) == (3, sorted(saved.log_ids))
        [newest, oldest] = (await answer(sessions, GetBotLogs(bot_id=desk.bot.bot_id))).logs
        assert (newest.log_id, newest.message) == (saved.log_ids[2], "")
        assert oldest.model_dump(include=set(LogFields.model_fields)) == logs[0].model_dump()
        assert str(oldest.position) == "-1.50"

    async def test_makes_events_of_at_most_500_that_name_their_cause_once(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        message = received(SaveBotLogs(logs=entries(desk, 1_000)))

        [reply] = await executor.execute([message])

        async with sessions() as session:
            rows = list(
                await session.scalars(
                    select(OutboxEvent).where(OutboxEvent.type == "bot_log.saved").order_by(OutboxEvent.id)
                )
            )
        assert [row.causation_ids for row in rows] == [[UUID(message.message_id)]] * 2
        announced = [change["key"]["log_id"] for row in rows for change in json.loads(row.changes)]
        assert announced == reply.data["log_ids"]
        assert "entry" not in "".join(row.changes for row in rows)

    async def test_has_no_second_effect_when_repeated(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        message = received(SaveBotLogs(logs=entries(desk, 3)))

        first, second = [(await executor.execute([message]))[0] for _ in range(2)]

        assert second.data == first.data
        assert await stored(sessions) == 3
        assert len(await events(sessions, "bot_log.saved")) == 3

    async def test_stores_none_if_one_is_of_no_bot(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        logs = entries(desk, 3)
        logs[1] = LogFields(bot_id=999, message="nobody's")

        error = await refusal(executor, SaveBotLogs(logs=logs))

        assert (error.code, error.field) == (ErrorCode.NOT_FOUND, "logs.1.bot_id")
        assert await stored(sessions) == 0
        assert await events(sessions, "bot_log.saved") == []

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"logs": []}, "logs"),
            ({"logs": [{"bot_id": 1, "message": ""}] * 1_001}, "logs"),
            ({"logs": [{"bot_id": 1, "message": "x" * 8_193}]}, "logs.0.message"),
            ({"logs": [{"bot_id": 1}]}, "logs.0.message"),
            ({"logs": [{"bot_id": 1, "message": "", "timestamp": "2024-01-01T00:00:00"}]}, "logs.0.timestamp"),
            ({"logs": [{"bot_id": 1, "message": "", "bogus": 1}]}, "logs.0.bogus"),
        ],
    )
    async def test_refuses_what_is_no_entry(
        self, executor: Executor, desk: Desk, body: dict[str, Any], field: str
    ) -> None:
        message = received(SaveBotLogs(logs=entries(desk, 1)))
        message.body = json.dumps(body).encode()

        error = await refusal(executor, message)

        assert (error.code, error.field) == (ErrorCode.VALIDATION, field)

    async def test_takes_as_many_statements_for_many_as_for_one(
        self, desk: Desk, sessions: SessionMaker, engine: AsyncEngine
    ) -> None:
        numbers = []
        for many in (1, 300):
            async with sessions.begin() as session:
                with statements(engine) as sent:
                    await BotRepository(session).save_bot_logs(
                        [{"bot_id": desk.bot.bot_id, "message": str(i), "position": 0.1} for i in range(many)]
                    )
            numbers.append(len(sent))

        assert numbers == [1, 1]
        assert await stored(sessions) == 301

    async def test_of_a_program_names_the_entry_that_is_wrong(self, desk: Desk, sessions: SessionMaker) -> None:
        async with sessions() as session:
            with pytest.raises(Refusal) as refused:
                await BotRepository(session).save_bot_logs(
                    [{"bot_id": desk.bot.bot_id, "message": ""}, {"bot_id": desk.bot.bot_id, "mesage": ""}]
                )

        assert refused.value.field == "logs.1.message"


class TestGetBotLogs:
    @pytest.fixture
    async def log(self, direct: Direct, desk: Desk) -> list[LogFields]:
        """Ten entries a minute apart, every other one an error; the last two at the same time."""
        logs = [
            LogFields(
                bot_id=desk.bot.bot_id,
                message=str(i),
                level="ERROR" if i % 2 else "INFO",
                timestamp=NOON + timedelta(minutes=min(i, 8)),
            )
            for i in range(10)
        ]
        await direct.call(SaveBotLogs(logs=logs))
        other = await a_desk(direct)
        await direct.call(SaveBotLog(bot_id=other.bot.bot_id, message="of another bot"))
        return logs

    @pytest.mark.parametrize(
        ("filters", "expected"),
        [
            ({}, "9876543210"),
            ({"level": "ERROR"}, "97531"),
            ({"start_date": NOON + timedelta(minutes=7)}, "987"),
            ({"end_date": NOON + timedelta(minutes=2)}, "10"),
            ({"start_date": NOON + timedelta(minutes=2), "end_date": NOON + timedelta(minutes=8)}, "765432"),
            ({"level": "DEBUG"}, ""),
        ],
    )
    async def test_gives_the_newest_first(
        self, log: list[LogFields], desk: Desk, sessions: SessionMaker, filters: dict[str, Any], expected: str
    ) -> None:
        page = await answer(sessions, GetBotLogs(bot_id=desk.bot.bot_id, **filters))

        assert "".join(entry.message for entry in page.logs) == expected
        assert page.next_cursor is None

    async def test_goes_on_where_it_ended_whatever_is_added(
        self, direct: Direct, log: list[LogFields], desk: Desk, sessions: SessionMaker
    ) -> None:
        seen, cursor = "", None
        for _ in range(10):
            page = await answer(sessions, GetBotLogs(bot_id=desk.bot.bot_id, limit=1, cursor=cursor))
            seen += "".join(entry.message for entry in page.logs)
            cursor = page.next_cursor
            await direct.call(SaveBotLog(bot_id=desk.bot.bot_id, message="new"))

        assert seen == "9876543210"

    async def test_refuses_a_made_up_cursor_and_an_end_before_its_start(
        self, desk: Desk, sessions: SessionMaker
    ) -> None:
        with pytest.raises(Refusal, match="cursor"):
            await answer(sessions, GetBotLogs(bot_id=desk.bot.bot_id, cursor="WzFd"))
        with pytest.raises(ValueError, match="end_date is before start_date"):
            GetBotLogs(bot_id=desk.bot.bot_id, start_date=NOON, end_date=NOON - timedelta(seconds=1))
