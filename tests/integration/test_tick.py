"""Ticks are stored once."""

from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import ErrorCode, GetTicks, RecordTicks, TickFields
from service.database import SessionMaker
from service.executor import Executor
from service.repositories import TickRepository
from tests.builders import Desk, Direct
from tests.observe import answer, refusal, statements


def tick(desk: Desk, second: int, **changes: Any) -> TickFields:
    fields = {"symbol_id": desk.symbol.symbol_id, "price": "0.10", "timestamp": f"2026-01-01T00:00:{second:02}Z"}
    return TickFields.model_validate({**fields, **changes})


async def test_come_back_as_they_were_sent_newest_first(direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
    sent = [tick(desk, second, bid="0.000000000000000001", volume="0", last="1e3") for second in range(5)]

    done = await direct.call(RecordTicks(ticks=sent))

    assert (done.inserted, done.duplicates) == (5, 0)
    page = await answer(sessions, GetTicks(symbol_id=desk.symbol.symbol_id, limit=3))
    rest = await answer(sessions, GetTicks(symbol_id=desk.symbol.symbol_id, limit=3, cursor=page.next_cursor))
    assert [one.model_dump() for one in page.ticks + rest.ticks] == [one.model_dump() for one in reversed(sent)]
    assert rest.next_cursor is None


async def test_of_one_symbol_and_moment_are_one_and_the_first_stays(
    direct: Direct, desk: Desk, sessions: SessionMaker
) -> None:
    await direct.call(RecordTicks(ticks=[tick(desk, 1)]))

    done = await direct.call(RecordTicks(ticks=[tick(desk, 1, price="2"), tick(desk, 2), tick(desk, 2)]))

    assert (done.inserted, done.duplicates) == (1, 2)
    page = await answer(sessions, GetTicks(symbol_id=desk.symbol.symbol_id, end_date="2026-01-01T00:00:02Z"))
    assert [str(one.price) for one in page.ticks] == ["0.10"]


async def test_of_an_unknown_symbol_are_refused_with_their_place(
    executor: Executor, desk: Desk, sessions: SessionMaker
) -> None:
    error = await refusal(executor, RecordTicks(ticks=[tick(desk, 1), tick(desk, 2, symbol_id=999)]))

    assert (error.code, error.field) == (ErrorCode.NOT_FOUND, "ticks.1.symbol_id")
    assert (await answer(sessions, GetTicks(symbol_id=desk.symbol.symbol_id))).ticks == []


async def test_outside_of_every_partition_are_taken(direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
    await direct.call(RecordTicks(ticks=[tick(desk, 1, timestamp="1999-01-01T00:00:00Z")]))

    async with sessions() as session:
        assert await session.scalar(text("SELECT count(*) FROM ticks_p_default")) == 1


async def test_take_as_many_statements_for_a_thousand_as_for_one(
    desk: Desk, sessions: SessionMaker, engine: AsyncEngine
) -> None:
    counts = []
    for day, number in (("01", 1), ("02", 1_000)):
        ticks = [
            tick(desk, 0, timestamp=f"2026-01-{day}T00:00:00.{n:06}Z").model_dump(exclude_unset=True)
            for n in range(number)
        ]
        with statements(engine) as sent:
            async with sessions.begin() as session:
                assert await TickRepository(session).record_ticks(ticks) == number
        counts.append(len(sent))

    assert counts[0] == counts[1] == 2
