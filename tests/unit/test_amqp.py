"""A broker that goes away while it is being connected to is a broken link, and nothing else."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiormq.connection import FrameReceiver

from contracts.amqp import BROKEN_LINK, Link
from contracts.client import PersistenceClient
from service import deliveries


@pytest.fixture
async def starting_broker() -> AsyncIterator[str]:
    """The URL of one that takes a connection and hangs up before it has said a word."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1") as server:
        host, port = server.sockets[0].getsockname()
        yield f"amqp://guest:guest@{host}:{port}/"


async def test_hanging_up_before_the_first_word_is_a_broken_link(
    starting_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_frame = FrameReceiver.get_frame

    async def late(receiver: FrameReceiver) -> Any:
        await asyncio.sleep(0.1)  # so that the end has arrived before it is waited for
        return await get_frame(receiver)

    monkeypatch.setattr(FrameReceiver, "get_frame", late)
    with pytest.raises(BROKEN_LINK):
        await Link(starting_broker, name="test").channel()


async def test_the_receiver_of_the_service_says_so_too() -> None:
    reader = asyncio.StreamReader()
    reader.feed_eof()
    with pytest.raises(BROKEN_LINK):
        await deliveries._Receiver(reader).get_frame()


@pytest.mark.parametrize("url", ["nonsense", "", "http://host/", "amqp://", "amqp://secret@host:port/"])
def test_a_url_that_is_none_is_refused_by_saying_what_one_looks_like(url: str) -> None:
    with pytest.raises(ValueError, match="must look like amqp://user:password@host:port/vhost") as refused:
        PersistenceClient(url)
    assert "secret" not in str(refused.value)


class Silent:
    """A connection whose peer says nothing to its goodbye."""

    is_closed = False
    was_cut_short = False

    async def close(self) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            self.was_cut_short = True


async def test_who_is_cancelled_while_a_link_is_closed_is_cancelled() -> None:
    link = Link("amqp://host/", name="test")
    connection = link._connection = Silent()  # type: ignore[assignment]
    closing = asyncio.create_task(link.close())
    await asyncio.sleep(0)

    closing.cancel()

    await asyncio.wait([closing])
    assert closing.cancelled()
    assert connection.was_cut_short
    assert not link.is_open


async def test_a_cancellation_that_nobody_asked_for_is_a_lost_link_and_ends_no_caller() -> None:
    class Lost(Silent):
        async def close(self) -> None:
            raise asyncio.CancelledError

    link = Link("amqp://host/", name="test")
    link._connection = Lost()  # type: ignore[assignment]

    await link.close()
