"""The audit of a live system finds what must not be, and changes nothing."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import DeleteUser, SaveBotLog
from contracts.amqp import Link
from contracts.base import Command
from service import topology
from service.audit import Audit, Finding, Result, listen, queues
from service.config import Settings
from service.database import SessionMaker
from service.executor import Executor
from service.publisher import Publisher
from service.relay import Relay
from tests.builders import Desk, Direct, a_desk, publish_everything, received

YESTERDAY = datetime.now(UTC) - timedelta(days=1)


@pytest.fixture
async def desk(sessions: SessionMaker) -> Desk:
    """A desk whose bot has traded and said something, once also something wrong."""
    executor = Executor(sessions)
    desk = await a_desk(Direct(executor))
    entries = [SaveBotLog(bot_id=desk.bot.bot_id, message=str(number)) for number in range(5)]
    batch: list[Command[Any]] = [*(desk.trade() for _ in range(5)), desk.trade(bot_id=2**31 - 1), *entries]
    await executor.execute([received(command, reply_to=None) for command in batch])
    return desk


async def audited(sessions: SessionMaker) -> dict[str, Finding]:
    return {finding.check: finding for finding in await Audit(sessions, YESTERDAY).run()}


async def do(sessions: SessionMaker, statement: str) -> None:
    async with sessions.begin() as session:
        await session.execute(text(statement))


class TestAudit:
    async def test_finds_nothing_where_nothing_is_wrong(self, sessions: SessionMaker, desk: Desk) -> None:
        await publish_everything(sessions)
        await do(sessions, "UPDATE leases SET expires_at = now() + interval '1 hour'")

        findings = await audited(sessions)

        assert {name: finding.says for name, finding in findings.items() if finding.result is Result.BROKEN} == {}
        assert findings["inbox and rows"].examined == 10
        assert (findings["dead letters"].result, findings["dead letters"].examined) == (Result.NOTICE, 1)
        assert findings["refused messages"].examined == 1

    @pytest.mark.parametrize(
        ("deed", "check", "says"),
        [
            pytest.param(
                "DELETE FROM trades WHERE trade_id = (SELECT min(trade_id) FROM trades)",
                "inbox and rows",
                "1 messages without their row",
                id="a trade that is gone",
            ),
            pytest.param(
                "UPDATE inbox SET row_id = (SELECT min(trade_id) FROM trades) WHERE command = 'record_trade' "
                "AND row_id IS NOT NULL",
                "inbox and rows",
                "1 rows of several messages",
                id="one row of several messages",
            ),
            pytest.param("DELETE FROM dead_letters", "refused messages", "1 refused messages", id="a lost letter"),
            pytest.param(
                "UPDATE dead_letters SET state = 'replayed', resolved_at = now()",
                "replayed letters",
                "1 are replayed, and refused",
                id="a letter that was never carried out",
            ),
            pytest.param(
                "UPDATE outbox SET occurred_at = now() - interval '1 minute'",
                "outbox",
                "events have waited for more than 5 s",
                id="events that nobody publishes",
            ),
            pytest.param(
                "INSERT INTO leases VALUES ('relay', gen_random_uuid(), 1, now() - interval '9 s')",
                "relay",
                "nobody publishes",
                id="no relay",
            ),
        ],
    )
    async def test_finds(self, sessions: SessionMaker, desk: Desk, deed: str, check: str, says: str) -> None:
        await do(sessions, deed)

        finding = (await audited(sessions))[check]

        assert finding.result is Result.BROKEN
        assert says in finding.says

    async def test_takes_rows_that_went_with_their_user_for_deleted(self, sessions: SessionMaker, desk: Desk) -> None:
        await Direct(Executor(sessions)).call(DeleteUser(uid=desk.user.uid, force=True))
        await publish_everything(sessions)
        await do(sessions, "UPDATE leases SET expires_at = now() + interval '1 hour'")

        findings = await audited(sessions)

        assert {name: f.examples for name, f in findings.items() if f.result is Result.BROKEN} == {}
        assert "10 rows were deleted since" in findings["inbox and rows"].says

    async def test_reads_only(self, sessions: SessionMaker, desk: Desk, engine: AsyncEngine) -> None:
        modes: list[str] = []

        def note(connection: object, cursor: object, statement: str, *_: object) -> None:
            modes.append(statement.split(maxsplit=1)[0])

        event.listen(engine.sync_engine, "before_cursor_execute", note)
        await audited(sessions)

        assert set(modes) == {"SELECT"}


class TestQueues:
    async def test_tell_what_waits(self, settings: Settings) -> None:
        link = Link(settings.rabbitmq_url.get_secret_value(), name="test", setup=topology.declare)

        finding = await queues(link)

        await link.close()
        assert finding.result is Result.NOTICE
        assert "persistence.trading: 0 wait, 0 consumers" in finding.examples

    async def test_are_unknown_without_a_broker(self) -> None:
        finding = await queues(Link("amqp://127.0.0.1:9", name="test"))

        assert finding.result is Result.UNKNOWN


class TestListening:
    async def test_compares_new_rows_with_their_events(
        self, sessions: SessionMaker, desk: Desk, settings: Settings
    ) -> None:
        link = Link(settings.rabbitmq_url.get_secret_value(), name="test", setup=topology.declare)
        await link.channel()
        await link.close()
        publisher = Publisher(settings)
        relay = Relay(sessions, publisher, settings)
        await relay.publish_once()
        url = settings.rabbitmq_url.get_secret_value()

        listening = asyncio.create_task(listen(sessions, url, 2.0, lambda *_: None))
        await asyncio.sleep(1.0)
        await Executor(sessions).execute([received(desk.trade(), message_id=str(uuid4())) for _ in range(3)])
        await relay.publish_once()
        announced = await listening
        listening = asyncio.create_task(listen(sessions, url, 2.0, lambda *_: None))
        await asyncio.sleep(1.0)
        await Executor(sessions).execute([received(desk.trade())])
        unannounced = await listening
        await publisher.close()

        assert (announced.result, announced.examined) == (Result.OK, 3)
        assert (unannounced.result, unannounced.examined) == (Result.BROKEN, 1)
