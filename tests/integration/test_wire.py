"""A channel for many messages keeps their order, counts their confirms, and says what became of each."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import DeliveryError, PublishError
from aiormq.abc import DeliveredMessage

from contracts import AddUser, GetSymbol, GetUser
from contracts.amqp import BROKEN_LINK, ChannelNotFoundEntity, WireLink
from contracts.client import PersistenceClient
from contracts.errors import LoginRefused, NotConfirmed, Refusal, Unroutable
from contracts.frames import Message, properties
from contracts.wire import Wire
from service.config import Settings
from tests.e2e.proxy import ConfirmsLost, Proxy, Untouched


@pytest.fixture
def url(settings: Settings) -> str:
    return settings.rabbitmq_url.get_secret_value()


@pytest.fixture
async def channel(url: str) -> AsyncIterator[AbstractChannel]:
    connection = await aio_pika.connect(url)
    channel = await connection.channel()
    await channel.declare_queue("many", durable=True, arguments={"x-queue-type": "quorum"})
    yield channel
    await connection.close()


@pytest.fixture
async def wire(url: str, channel: AbstractChannel) -> AsyncIterator[Wire]:
    link = WireLink(url, name="wire")
    yield await link.channel()
    await link.close()


def a_message(body: str, *, queue: str = "many", mandatory: bool = False, message_id: str = "") -> Message:
    head = properties(delivery_mode=2, message_id=message_id)
    return Message("", queue, head, body.encode(), mandatory=mandatory, message_id=message_id)


async def bodies(channel: AbstractChannel, queue: str = "many") -> list[str]:
    found = []
    from_queue = await channel.get_queue(queue, ensure=False)
    while (message := await from_queue.get(no_ack=True, fail=False)) is not None:
        found.append(message.body.decode())
    return found


class TestPublishing:
    async def test_keeps_the_order_and_returns_when_all_are_stored(
        self, wire: Wire, channel: AbstractChannel
    ) -> None:
        await asyncio.gather(
            wire.publish_confirmed([a_message(f"a{n}") for n in range(100)]),
            wire.publish_confirmed([a_message(f"b{n}") for n in range(100)]),
        )

        found = await bodies(channel)
        assert sorted(found) == sorted([f"{name}{n}" for name in "ab" for n in range(100)])
        assert [body for body in found if body[0] == "a"] == [f"a{n}" for n in range(100)]

    @pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 1_000_000])
    async def test_takes_bodies_of_any_size(self, wire: Wire, channel: AbstractChannel, size: int) -> None:
        await wire.publish_confirmed([a_message("first"), a_message("x" * size), a_message("last")])

        assert await bodies(channel) == ["first", "x" * size, "last"]

    async def test_of_nothing_returns_at_once(self, wire: Wire) -> None:
        await wire.publish_confirmed([])

    async def test_tells_only_whose_message_no_queue_wants(self, wire: Wire, channel: AbstractChannel) -> None:
        results = await asyncio.gather(
            wire.publish_confirmed([a_message("1", mandatory=True, message_id="1")]),
            wire.publish_confirmed([a_message("2", queue="absent", mandatory=True, message_id="2")]),
            # The same message twice at once: each of them comes back.
            wire.publish_confirmed([a_message("2", queue="absent", mandatory=True, message_id="2")]),
            wire.publish_confirmed([a_message("3", mandatory=True, message_id="3")]),
            return_exceptions=True,
        )

        assert [type(result) for result in results] == [type(None), PublishError, PublishError, type(None)]
        assert await bodies(channel) == ["1", "3"]

    async def test_tells_that_a_full_queue_refuses(self, wire: Wire, channel: AbstractChannel) -> None:
        await channel.declare_queue("full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        await wire.publish_confirmed([a_message("fits", queue="full")])

        with pytest.raises(DeliveryError):
            await wire.publish_confirmed([a_message("1"), a_message("does not", queue="full"), a_message("2")])

        await wire.publish_confirmed([a_message("3")])
        assert await bodies(channel) == ["1", "2", "3"]

    async def test_to_an_exchange_that_is_not_there_says_so(self, wire: Wire) -> None:
        with pytest.raises(ChannelNotFoundEntity):
            await wire.publish_confirmed([Message("absent", "", properties(), b"")])

    async def test_goes_on_for_the_others_when_a_caller_stops_waiting(
        self, wire: Wire, channel: AbstractChannel
    ) -> None:
        impatient = asyncio.create_task(wire.publish_confirmed([a_message("1")]))
        await asyncio.sleep(0)
        impatient.cancel()

        await wire.publish_confirmed([a_message("2")])

        assert impatient.cancelled()
        assert await bodies(channel) == ["1", "2"]


class TestALostLink:
    async def test_is_an_error_of_who_waits_and_no_cancellation(self, url: str, channel: AbstractChannel) -> None:
        async with Proxy(url, lambda: ConfirmsLost([0], [])) as proxy:
            link = WireLink(proxy.url, name="wire")
            wire = await link.channel()
            with pytest.raises(BROKEN_LINK):
                await wire.publish_confirmed([a_message("1")])
            with pytest.raises(BROKEN_LINK):
                await wire.publish_confirmed([a_message("2")])
            with pytest.raises(BROKEN_LINK):
                await wire.room()
            await link.close()

    async def test_is_dropped_also_if_who_closes_it_is_cancelled_while_the_broker_is_silent(
        self, url: str, channel: AbstractChannel
    ) -> None:
        tap = Deaf()
        async with Proxy(url, lambda: tap) as proxy:
            link = WireLink(proxy.url, name="wire")
            await link.channel()
            tap.is_deaf = True
            closing = asyncio.create_task(link.close())
            await asyncio.sleep(0.1)

            closing.cancel()

            await asyncio.wait([closing])
            assert closing.cancelled()
            async with asyncio.timeout(5):
                while proxy.links:
                    await asyncio.sleep(0.01)

    async def test_that_takes_nothing_makes_callers_wait_and_not_the_memory_grow(
        self, wire: Wire, channel: AbstractChannel
    ) -> None:
        to_socket, wire.write_queue = wire.write_queue, asyncio.Queue()  # as if the socket took nothing
        for _ in range(100):
            if not wire.has_room:
                break
            await wire.room()
            wire.publish(a_message("x" * 100_000))
            await asyncio.sleep(0)
        waiting = asyncio.create_task(wire.room())
        await asyncio.sleep(0.05)
        assert not waiting.done()

        stuck, wire.write_queue = wire.write_queue, to_socket
        await to_socket.put(stuck.get_nowait())
        await waiting
        await wire.publish_confirmed([a_message("last")])

        found = await bodies(channel)
        # One that was being written, eleven that waited, and the last.
        assert (len(found), found[-1]) == (13, "last")


class TestAnswers:
    async def test_reach_the_one_who_takes_them_and_what_nobody_wants_comes_back(self, url: str) -> None:
        taken: list[DeliveredMessage] = []
        returned: list[DeliveredMessage] = []

        async def subscribe(wire: Wire) -> None:
            await wire.subscribe("amq.rabbitmq.reply-to", taken.append, on_return=returned.append)

        link = WireLink(url, name="wire", setup=subscribe)
        wire = await link.channel()
        asker = await aio_pika.connect(url)
        service = await asker.channel()
        questions = await service.declare_queue("questions", exclusive=True)
        head = properties(reply_to="amq.rabbitmq.reply-to", correlation_id="7", message_id="1")
        wire.publish(Message("", "questions", head, b"?", mandatory=True))
        wire.publish(Message("", "absent", head, b"?", mandatory=True))
        async with asyncio.timeout(5):
            while (question := await questions.get(no_ack=True, fail=False)) is None:
                await asyncio.sleep(0.01)
            await service.default_exchange.publish(
                aio_pika.Message(b"x" * 200_000, correlation_id="7"), question.reply_to or ""
            )
            while not taken or not returned:
                await asyncio.sleep(0.01)

        assert (taken[0].body, taken[0].header.properties.correlation_id) == (b"x" * 200_000, "7")
        assert returned[0].routing_key == "absent"
        await asker.close()
        await link.close()


class TestAClient:
    async def test_is_told_that_there_is_no_service(self, url: str, channel: AbstractChannel) -> None:
        async with PersistenceClient(url) as client:
            with pytest.raises(Unroutable):
                await client.lookup(GetSymbol(symbol="A/B", cat_ex_id=1))
            await channel.declare_exchange("persistence.lookups", "topic", durable=True)
            with pytest.raises(Unroutable):
                await client.lookup(GetSymbol(symbol="A/B", cat_ex_id=1))

    async def test_finds_a_link_dead_when_its_question_is_not_even_confirmed(
        self, url: str, channel: AbstractChannel
    ) -> None:
        exchange = await channel.declare_exchange("persistence.lookups", "topic", durable=True)
        queue = await channel.get_queue("many", ensure=False)
        await queue.bind(exchange, "#")
        taps: list[Deaf] = []

        def tap() -> Deaf:
            taps.append(Deaf())
            return taps[-1]

        async with Proxy(url, tap) as proxy, PersistenceClient(proxy.url) as client:
            for is_deaf in (False, True):
                taps[0].is_deaf = is_deaf
                with pytest.raises(Refusal, match="no answer"):
                    await client.lookup(GetSymbol(symbol="A/B", cat_ex_id=1), timeout=0.3)
                assert client._link.is_open is not is_deaf

    async def test_that_is_closed_lets_go_of_who_waits(self, url: str, channel: AbstractChannel) -> None:
        exchange = await channel.declare_exchange("persistence.lookups", "topic", durable=True)
        queue = await channel.get_queue("many", ensure=False)
        await queue.bind(exchange, "#")
        async with PersistenceClient(url) as client:
            asked = asyncio.create_task(client.lookup(GetSymbol(symbol="A/B", cat_ex_id=1)))
            await asyncio.sleep(0.1)
        with pytest.raises(ConnectionError, match="closed"):
            await asked

    async def test_that_is_closed_stays_so(self, url: str, channel: AbstractChannel) -> None:
        async with PersistenceClient(url) as client:
            pass
        for use in (client.publish(AddUser(mail="a@b.c")), client.lookup(GetUser(uid=1)), client.__aenter__()):
            with pytest.raises(ConnectionError, match="the client was closed"):
                await use
        assert not client._link.is_open

    async def test_whose_login_is_refused_is_told_at_once(self, url: str) -> None:
        parts = urlsplit(url)
        wrong = parts._replace(netloc=f"{parts.username}:wrong@{parts.hostname}:{parts.port}")
        client = PersistenceClient(urlunsplit(wrong))

        async with asyncio.timeout(10):
            for use in (client.publish(AddUser(mail="a@b.c")), client.lookup(GetUser(uid=1)), client.__aenter__()):
                with pytest.raises(LoginRefused, match="user or password"):
                    await use
        await client.close()

    async def test_that_does_not_want_to_wait_does_not_and_keeps_the_link(
        self, url: str, channel: AbstractChannel
    ) -> None:
        for name in ("persistence.lookups", "persistence.commands"):
            exchange = await channel.declare_exchange(name, "topic", durable=True)
            await (await channel.get_queue("many", ensure=False)).bind(exchange, "#")
        async with PersistenceClient(url, confirm_timeout=20, answer_timeout=20) as client, asyncio.timeout(10):
            with pytest.raises(NotConfirmed):
                await client.publish(AddUser(mail="a@b.c"), timeout=0)
            for use in (client.lookup(GetUser(uid=1), timeout=0), client.call(AddUser(mail="a@b.c"), timeout=0)):
                with pytest.raises(Refusal, match="no answer"):
                    await use
            assert client._link.is_open


class Deaf(Untouched):
    """From a moment on the client hears nothing any more."""

    is_deaf = False

    def answered(self, data: bytes) -> bytes:
        return b"" if self.is_deaf else data
