"""A broker that goes away while it is being connected to is a broken link, and nothing else."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiormq.connection import FrameReceiver

from contracts.amqp import BROKEN_LINK, Link
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
