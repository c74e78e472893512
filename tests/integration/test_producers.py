"""A command that never arrived is missed, if its sender numbers what it sends."""

from typing import Any
from uuid import uuid4

import pytest

from service import producers
from service.database import SessionMaker
from service.executor import Executor
from tests.builders import Desk, received
from tests.observe import events

_PRODUCER = "01989e1e-5f00-7000-8000-000000000001"


async def send(executor: Executor, desk: Desk, *numbers: Any, producer: Any = _PRODUCER) -> None:
    headers = [{"producer": producer, "producer_sequence": number} for number in numbers]
    replies = await executor.execute([received(desk.trade(), headers=each, reply_to=None) for each in headers])
    assert all(reply.ok for reply in replies)


async def missing(sessions: SessionMaker, *, patience: float = 0) -> list[tuple[int, int]]:
    return [(found.first, found.last) for found in await producers.sweep(sessions, patience=patience)]


class TestNumbers:
    async def test_that_follow_each_other_are_all_there_however_they_come(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        await send(executor, desk, 2, 1, 4)
        await send(executor, desk, 3)

        assert await missing(sessions) == []
        await send(executor, desk, 6, 5, 3, 6)
        assert await missing(sessions) == []

    async def test_that_do_not_arrive_are_announced_once(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        await send(executor, desk, 1, 2, 5, 6, 9)

        assert await missing(sessions, patience=30) == []
        assert await missing(sessions) == [(3, 4)]
        assert await missing(sessions) == [(7, 8)]
        assert await missing(sessions) == []

        [first, second] = await events(sessions, "producer.gap_found")
        assert (first["after"]["producer"], first["key"]["first"]) == (_PRODUCER, 3)
        assert second["after"]["last"] == 8

    async def test_that_come_late_are_no_gap_of_their_own(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        await send(executor, desk, 1, 3)
        assert await missing(sessions) == [(2, 2)]

        await send(executor, desk, 2, 4)

        assert await missing(sessions) == []

    async def test_of_each_producer_are_counted_by_themselves(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        other = str(uuid4())
        await send(executor, desk, 1, 2)
        await send(executor, desk, 2, producer=other)

        [found] = await producers.sweep(sessions, patience=0)

        assert (str(found.producer), found.first, found.last) == (other, 1, 1)

    @pytest.mark.parametrize(
        ("producer", "number"),
        [("no uuid", 1), (_PRODUCER, "one"), (_PRODUCER, 0), (_PRODUCER, 2**70), (7, 1), (None, None)],
    )
    async def test_that_make_no_sense_are_no_reason_to_refuse(
        self, executor: Executor, desk: Desk, sessions: SessionMaker, producer: Any, number: Any
    ) -> None:
        await send(executor, desk, number, producer=producer)

        assert await missing(sessions) == []
