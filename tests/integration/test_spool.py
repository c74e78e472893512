"""What a bot has put into its spool reaches the broker: in order, under one id, whatever dies meanwhile."""

import asyncio
import json
import logging
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel

from contracts import RecordTrade, SaveBotLog
from contracts.client import PersistenceClient
from contracts.producer import PRODUCER_HEADER, SEQUENCE_HEADER
from contracts.spool import Spool, SpoolFailed, SpoolFull, SpoolInUse
from contracts.topology import Lane
from service import topology
from service.config import Settings
from tests.e2e.proxy import ConfirmsLost, Proxy
from tests.nursery import REPOSITORY

_BOT = """
import asyncio, sys
from contracts import RecordTrade
from contracts.client import PersistenceClient
from contracts.spool import Spool

async def main():
    async with PersistenceClient(sys.argv[1]) as client, Spool(client, sys.argv[2]) as spool:
        number = 0
        while True:
            number += 1
            trade = RecordTrade(
                bot_id=1, uid=1, ex_id=1, symbol_id=1, side="buy", size="1.50", price="2", ex_trade_id=str(number)
            )
            print(await spool.put(trade), flush=True)

asyncio.run(main())
"""


def a_trade(number: int) -> RecordTrade:
    return RecordTrade.model_validate(
        {"bot_id": 1, "uid": 1, "ex_id": 1, "symbol_id": 1, "side": "buy", "size": "1.50", "price": "2"}
        | {"ex_trade_id": str(number)}
    )


def an_entry(text: str) -> SaveBotLog:
    return SaveBotLog(bot_id=1, message=text)


@pytest.fixture
async def channel(settings: Settings) -> AsyncIterator[AbstractChannel]:
    connection = await aio_pika.connect(settings.rabbitmq_url.get_secret_value())
    channel = await connection.channel()
    await topology.declare(channel)
    yield channel
    await connection.close()


@pytest.fixture
def url(settings: Settings) -> str:
    return settings.rabbitmq_url.get_secret_value()


@pytest.fixture
async def client(url: str) -> AsyncIterator[PersistenceClient]:
    client = PersistenceClient(url)
    yield client
    await client.close()


async def sent(channel: AbstractChannel, lane: Lane = Lane.TRADING) -> list[Any]:
    """What lies in a lane. It is subscribed to, since a lane with a single active consumer gives nothing else."""
    queue = await channel.declare_queue(lane.queue, passive=True)
    messages: asyncio.Queue[Any] = asyncio.Queue()
    tag = await queue.consume(messages.put)
    async with asyncio.timeout(30):
        found = [await messages.get() for _ in range(queue.declaration_result.message_count or 0)]
    await queue.cancel(tag)
    for message in found:
        await message.ack()
    return found


class TestSpool:
    async def test_sends_what_is_put_in_order_and_numbered(
        self, client: PersistenceClient, channel: AbstractChannel, tmp_path: Path
    ) -> None:
        async with Spool(client, tmp_path / "spool") as spool:
            ids = [await spool.put(a_trade(number)) for number in range(20)]
            await spool.flush()
            assert await spool.waiting() == 0

        messages = await sent(channel)
        assert [message.message_id for message in messages] == [str(each) for each in ids]
        assert [message.headers[SEQUENCE_HEADER] for message in messages] == list(range(1, 21))
        assert len({message.headers[PRODUCER_HEADER] for message in messages}) == 1
        assert json.loads(messages[3].body) == json.loads(a_trade(3).model_dump_json(exclude_unset=True))

    async def test_takes_commands_while_there_is_no_broker_and_sends_them_later(
        self, url: str, channel: AbstractChannel, tmp_path: Path
    ) -> None:
        async with Proxy(url) as link:
            await link.shut()
            client = PersistenceClient(link.url)
            async with Spool(client, tmp_path / "spool") as spool:
                ids = [await spool.put(a_trade(number)) for number in range(5)]
                assert await spool.waiting() == 5
                await link.open()
                async with asyncio.timeout(20):
                    await spool.flush()
            await client.close()

        assert [message.message_id for message in await sent(channel)] == [str(each) for each in ids]

    async def test_sends_what_was_put_by_who_was_cancelled(
        self, client: PersistenceClient, channel: AbstractChannel, tmp_path: Path
    ) -> None:
        async with Spool(client, tmp_path / "spool") as spool:
            put = asyncio.create_task(spool.put(a_trade(1)))
            await asyncio.sleep(0)
            put.cancel()
            with pytest.raises(asyncio.CancelledError):
                await put
            await spool.waiting()  # behind what had begun
            async with asyncio.timeout(20):
                await spool.flush()
            assert await spool.waiting() == 0

        assert len(await sent(channel)) == 1

    async def test_sends_again_the_same_bytes_under_the_same_ids_when_confirms_are_lost(
        self, url: str, channel: AbstractChannel, tmp_path: Path
    ) -> None:
        cuts = [0, 3, 0]
        async with Proxy(url, lambda: ConfirmsLost(cuts, [])) as link:
            client = PersistenceClient(link.url)
            async with Spool(client, tmp_path / "spool") as spool:
                ids = [await spool.put(a_trade(number)) for number in range(10)]
                await spool.flush()
            await client.close()

        messages = await sent(channel)
        assert not cuts
        assert len(messages) > 10
        bodies = {message.message_id: set[bytes]() for message in messages}
        for message in messages:
            bodies[message.message_id].add(message.body)
        assert list(bodies) == [str(each) for each in ids]
        assert all(len(each) == 1 for each in bodies.values())

    async def test_survives_the_death_of_its_process(
        self, url: str, client: PersistenceClient, channel: AbstractChannel, tmp_path: Path
    ) -> None:
        path = tmp_path / "spool"
        async with Proxy(url) as link:
            bot = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _BOT, link.url, path, cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE
            )
            assert bot.stdout is not None
            first = [(await bot.stdout.readline()).decode().strip() for _ in range(20)]
            await link.shut()
            then = [(await bot.stdout.readline()).decode().strip() for _ in range(20)]
            bot.send_signal(signal.SIGKILL)
            rest = (await bot.stdout.read()).decode().split()
            await bot.wait()

        async with Spool(client, path) as spool:
            again = await spool.put(a_trade(1))
            await spool.flush()

        messages = await sent(channel)
        order = list(dict.fromkeys(message.message_id for message in messages))
        kept = [*first, *then, *rest]
        assert order[: len(kept)] == kept
        assert order[-1] == str(again)
        assert messages[-1].headers[SEQUENCE_HEADER] == len(order)

    async def test_drops_the_oldest_log_entries_for_want_of_room_and_never_a_trade(
        self, url: str, channel: AbstractChannel, tmp_path: Path
    ) -> None:
        async with Proxy(url) as link:
            await link.shut()
            client = PersistenceClient(link.url)
            async with Spool(client, tmp_path / "spool", limit_bytes=2_000) as spool:
                for number in range(30):
                    await spool.put(an_entry(f"entry {number}"))
                trades = 0
                with suppress(SpoolFull):
                    while trades < 100:
                        await spool.put(a_trade(trades))
                        trades += 1
                with pytest.raises(SpoolFull):
                    await spool.put(a_trade(999))
                assert spool.dropped > 0
                await link.open()
                async with asyncio.timeout(20):
                    await spool.flush()
            await client.close()

        assert [json.loads(message.body)["ex_trade_id"] for message in await sent(channel)] == [
            str(number) for number in range(trades)
        ]
        entries = [json.loads(message.body)["message"] for message in await sent(channel, Lane.BOT_LOGS)]
        assert len(entries) == 30 - spool.dropped
        # The first was in the sender's hands.
        assert entries == ["entry 0", *(f"entry {number}" for number in range(spool.dropped + 1, 30))]

    async def test_is_held_by_one_process_at_a_time(self, client: PersistenceClient, tmp_path: Path) -> None:
        async with Spool(client, tmp_path / "spool"):
            with pytest.raises(SpoolInUse, match="held by another process"):
                await Spool(client, tmp_path / "spool").__aenter__()

    async def test_is_for_its_owners_eyes_only(self, client: PersistenceClient, tmp_path: Path) -> None:
        async with Spool(client, tmp_path / "spool") as spool:
            await spool.put(an_entry("mine"))

            modes = [path.stat().st_mode & 0o077 for path in tmp_path.iterdir()]  # noqa: ASYNC240 - a test
            assert modes == [0] * len(modes)


class TestAnErrorOnTheWay:
    async def test_that_passes_is_waited_for_and_logged_once(
        self,
        client: PersistenceClient,
        channel: AbstractChannel,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr("contracts.spool._PAUSE_SECONDS", 0.02)
        async with Spool(client, tmp_path / "spool") as spool:
            await spool.flush()
            failing = Failing(sqlite3.OperationalError("disk I/O error"))
            with monkeypatch.context() as broken:
                broken.setattr(spool, "_next", failing)
                ids = [await spool.put(a_trade(number)) for number in range(3)]
                while failing.calls < 3:
                    await asyncio.sleep(0.01)
            async with asyncio.timeout(10):
                await spool.flush()

        assert [message.message_id for message in await sent(channel)] == [str(each) for each in ids]
        [line] = [record for record in caplog.records if record.name == "contracts.spool"]
        assert (line.levelno, "disk I/O error" in line.getMessage()) == (logging.WARNING, True)

    @pytest.mark.parametrize(
        "error", [sqlite3.DatabaseError("database disk image is malformed"), RuntimeError("a defect")]
    )
    async def test_that_does_not_pass_is_raised_by_all_and_loses_nothing(
        self,
        client: PersistenceClient,
        channel: AbstractChannel,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        error: Exception,
    ) -> None:
        spool = await Spool(client, tmp_path / "spool").__aenter__()
        await spool.flush()
        with monkeypatch.context() as broken:
            broken.setattr(spool, "_next", Failing(error))
            kept = await spool.put(a_trade(1))
            async with asyncio.timeout(10):
                for use in (spool.flush(), spool.put(a_trade(2)), spool.close()):
                    with pytest.raises(SpoolFailed, match=str(error)) as raised:
                        await use
                    assert raised.value.__cause__ is error

        async with Spool(client, tmp_path / "spool") as spool:
            await spool.flush()
        assert [message.message_id for message in await sent(channel)] == [str(kept)]

    async def test_is_raised_at_the_end_unless_the_caller_has_one_of_its_own(
        self, client: PersistenceClient, tmp_path: Path
    ) -> None:
        await client.close()  # nobody foresaw that

        async def use(then: Exception | None) -> None:
            async with Spool(client, tmp_path / "spool") as spool:
                with suppress(SpoolFailed):
                    await spool.put(a_trade(1))
                    await spool.flush()
                if then is not None:
                    raise then

        async with asyncio.timeout(20):
            with pytest.raises(SpoolFailed, match="the client was closed"):
                await use(None)
            with pytest.raises(ZeroDivisionError):
                await use(ZeroDivisionError())

    async def test_that_is_a_missing_table_does_not_pass(self, client: PersistenceClient, tmp_path: Path) -> None:
        spool = await Spool(client, tmp_path / "spool").__aenter__()
        await spool.flush()
        assert spool._sender is not None
        await spool._in_thread(spool._held().execute, "DROP TABLE commands")
        spool._news.set()
        await asyncio.wait([spool._sender], timeout=10)

        for use in (spool.flush(), spool.close()):
            with pytest.raises(SpoolFailed, match="no such table"):
                await use

    async def test_of_a_full_disk_refuses_what_is_put_and_takes_it_when_there_is_room_again(
        self, client: PersistenceClient, channel: AbstractChannel, tmp_path: Path
    ) -> None:
        async with Spool(client, tmp_path / "spool") as spool:
            first = await spool.put(a_trade(1))
            await spool.flush()
            await spool._in_thread(spool._held().execute, "PRAGMA max_page_count = 1")
            with pytest.raises(sqlite3.OperationalError, match="full"):
                await spool.put(an_entry("x" * 8_000))
            await spool._in_thread(spool._held().execute, "PRAGMA max_page_count = 100000")
            second = await spool.put(a_trade(2))
            async with asyncio.timeout(10):
                await spool.flush()

        assert [message.message_id for message in await sent(channel)] == [str(first), str(second)]

    async def test_that_is_a_refused_login_is_waited_for(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("contracts.spool._PAUSE_SECONDS", 0.02)
        client = PersistenceClient(with_password(url, "wrong"))
        async with Spool(client, tmp_path / "spool") as spool:
            await spool.put(a_trade(1))
            async with asyncio.timeout(20):
                while "refuses user or password" not in caplog.text:
                    await asyncio.sleep(0.05)
            assert await spool.waiting() == 1
        await client.close()


def with_password(url: str, password: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.username}:{password}@{parts.hostname}:{parts.port}"))


class Failing:
    """Raises an error in place of the spool's look for what is next, and counts how often."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self.calls = 0

    def __call__(self, _: int) -> None:
        self.calls += 1
        raise self._error
