"""Whatever a sender gets wrong is refused with field and reason, recorded, announced, and nobody else's trouble."""

import asyncio
import gzip
import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self
from uuid import UUID

import pika
import pytest

from contracts import RecordTrade
from contracts.client import PersistenceClient, new_message_id
from contracts.topology import COMMANDS, MAX_COMMAND_BYTES
from tests.builders import Desk, a_desk
from tests.e2e.conftest import SharedService
from tests.e2e.wire import Listener, Raw, Wire, eventually, ready, rows, said, value

MIB = 1024 * 1024


@dataclass(frozen=True)
class Scene:
    """A desk with a trade on record, and a message id that was used."""

    service: SharedService
    desk: Desk
    known: RecordTrade
    used_id: UUID


@pytest.fixture(scope="module")
def scene(shared: SharedService) -> Scene:
    async def make() -> Scene:
        async with PersistenceClient(shared.rabbitmq_url, answer_timeout=10) as client:
            desk = await a_desk(client)
            known, used_id = desk.trade(), new_message_id()
            await client.call(known, message_id=used_id)
            return Scene(shared, desk, known, used_id)

    return asyncio.run(make())


Make = Callable[[Scene], Raw]


def trade(**changes: Any) -> Make:
    """A trade in which some fields are not as they should be."""
    return lambda scene: said(fields(scene) | changes)


def text(old: str, new: bytes) -> Make:
    """A trade in whose JSON ``old`` was replaced; it stands there as the value of ``fee_currency``."""

    def make(scene: Scene) -> Raw:
        body = json.dumps(fields(scene) | {"fee_currency": "FEE"}).encode()
        assert old.encode() in body
        return said(body.replace(old.encode(), new))

    return make


def properties(**changes: Any) -> Make:
    """A good trade with other properties."""
    return lambda scene: said(scene.desk.trade(), **changes)


def fields(scene: Scene) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(scene.desk.trade().model_dump_json(exclude_unset=True))
    return content


def padded(size: int) -> Make:
    """A good trade with so much white space that it has this many bytes."""

    def make(scene: Scene) -> Raw:
        body = scene.desk.trade().model_dump_json(exclude_unset=True).encode()
        return said(body[:-1] + b" " * (size - len(body)) + b"}")

    return make


def log(data: bytes) -> Make:
    return lambda scene: said(
        b'{"bot_id": %d, "message": "deep", "data": %s}' % (scene.desk.bot.bot_id, data), "save_bot_log"
    )


BODIES = [
    pytest.param(trade(bot_id=2**31 - 1), "not_found", "bot_id", "no bot 2147483647", id="an unknown bot"),
    pytest.param(trade(symbol_id=2**31 - 1), "not_found", "symbol_id", "no symbol", id="an unknown symbol"),
    pytest.param(trade(size="-23"), "validation", "size", "greater than 0", id="a negative size"),
    pytest.param(trade(size="0"), "validation", "size", "greater than 0", id="a size of nothing"),
    pytest.param(trade(price=float("nan")), "validation", "price", "finite", id="NaN for a price"),
    pytest.param(trade(price="NaN"), "validation", "price", "finite", id="NaN in a string"),
    pytest.param(trade(price="-Infinity"), "validation", "price", "finite", id="infinity"),
    pytest.param(text('"FEE"', b"1e400"), "validation", "fee_currency", "string", id="a number for a text"),
    pytest.param(text('"0.00141342"', b"1e400"), "validation", "price", "digits", id="1e400"),
    pytest.param(text('"0.00141342"', b"12345678901234567890"), "validation", "price", "15", id="20 digits"),
    pytest.param(text('"0.00141342"', b"0." + b"1" * 20), "validation", "price", "15", id="20 decimal places"),
    pytest.param(text('"0.00141342"', b"9" * 5_000), "validation", "price", "digits", id="5,000 digits"),
    pytest.param(text('"FEE"}', b'"FE'), "validation", "body", "not JSON", id="truncated JSON"),
    pytest.param(lambda _: said(b""), "validation", "body", "not JSON", id="an empty body"),
    pytest.param(lambda _: said(b"null"), "validation", "body", "", id="null for a body"),
    pytest.param(trade(amount="1"), "validation", "amount", "not a field", id="an unknown field"),
    pytest.param(
        trade(timestamp="2019-10-11T00:00:11"), "validation", "timestamp", "no offset", id="a naive timestamp"
    ),
    pytest.param(padded(MIB + 1), "validation", "body", f"at most {MIB}", id="1 MiB and a byte"),
    pytest.param(padded(2 * MIB), "validation", "body", f"is {2 * MIB} bytes", id="2 MiB"),
    pytest.param(lambda _: said(b"[" * 10_000 + b"]" * 10_000), "validation", "body", "64", id="10,000 arrays"),
    pytest.param(log(b'{"a":' * 10_000 + b"1" + b"}" * 10_000), "validation", "body", "64", id="10,000 objects"),
    pytest.param(log(b'{"a":' * 10_000), "validation", "body", "64", id="10,000 objects that are never closed"),
    pytest.param(text("FEE", b"F\\u0000E"), "validation", "fee_currency", "NUL", id="an escaped NUL"),
    pytest.param(text("FEE", b"F\x00E"), "validation", "body", "not JSON", id="a plain NUL"),
    pytest.param(log(b'{"a": ["\\u0000"]}'), "validation", "data", "NUL", id="a NUL in data"),
    pytest.param(log(b'{"\\u0000": 1}'), "validation", "data", "NUL", id="a NUL in a name in data"),
    pytest.param(text("FEE", b"\\ud800"), "validation", "fee_currency", "surrogate", id="a lone surrogate"),
    pytest.param(log(b'{"a": ["\\ud800"]}'), "validation", "data", "surrogate", id="a lone surrogate in data"),
    pytest.param(log(b'{"\\udfff": 1}'), "validation", "data", "surrogate", id="a lone surrogate in a name in data"),
    pytest.param(text("FEE", b"\xff\xfe"), "validation", "body", "not JSON", id="invalid UTF-8"),
    pytest.param(text('"FEE"', b'"FEE", "uid": 1'), "validation", "uid", "twice", id="a field twice"),
    pytest.param(
        log(b'{"a": 1, "a": 2}'), "validation", "a", "twice", id="a name twice in data, of which one would be lost"
    ),
    pytest.param(
        lambda scene: said(scene.known.model_copy(update={"price": scene.known.price * 2})),
        "conflict",
        "ex_trade_id",
        "another price",
        id="a known trade id with another price",
    ),
]

PROPERTIES = [
    pytest.param(
        lambda scene: Raw("record_a_trade", said(scene.desk.trade()).body, {"message_id": str(new_message_id())}),
        "validation",
        "routing_key",
        "record_a_trade",
        id="an unknown routing key",
    ),
    pytest.param(
        lambda scene: said(scene.desk.trade(), "record_trade\x00"),
        "validation",
        "routing_key",
        "nothing is called",
        id="a NUL in the routing key",
    ),
    pytest.param(properties(message_id="17"), "validation", "message_id", "UUID", id="a message id that is no UUID"),
    pytest.param(properties(message_id="x" * 255), "validation", "message_id", "UUID", id="a long message id"),
    pytest.param(properties(message_id="a\x00b"), "validation", "message_id", "UUID", id="a NUL in the message id"),
    pytest.param(
        lambda scene: said(scene.desk.trade(), message_id=str(scene.used_id)),
        "conflict",
        "message_id",
        "another content",
        id="a used message id with another body",
    ),
    pytest.param(properties(type="save_bot_log"), "validation", "type", "record_trade", id="another type"),
    pytest.param(
        lambda scene: said(gzip.compress(said(scene.desk.trade()).body), content_encoding="gzip"),
        "validation",
        "content_encoding",
        "plain",
        id="gzip",
    ),
    pytest.param(properties(content_type="text/plain"), "validation", "content_type", "json", id="plain text"),
    pytest.param(
        properties(headers={"schema_version": 2}), "unsupported_version", "schema_version", "1", id="schema version 2"
    ),
    pytest.param(
        properties(headers={"schema_version": "one"}),
        "unsupported_version",
        "schema_version",
        "1",
        id="a schema version in words",
    ),
]

REPLY_ADDRESSES = [
    pytest.param("stolen|persistence.events", id="an exchange behind a bar"),
    pytest.param("a|b|c", id="two bars"),
    pytest.param("persistence.trading", id="a queue of the service"),
    pytest.param("x\x00y", id="a NUL"),
    pytest.param("\u202e queue\n", id="control characters"),
]


class TestACommandThatCannotSucceed:
    """It is refused once, and what comes before and after it is stored."""

    @pytest.mark.parametrize(("make", "code", "field", "reason"), [*BODIES, *PROPERTIES])
    async def test_is_refused_in_reply_record_and_event(
        self, scene: Scene, make: Make, code: str, field: str | None, reason: str
    ) -> None:
        message = make(scene)
        async with Watch.over(scene) as watch:
            reply = await watch.wire.ask(message)

        assert reply["ok"] is False
        error = reply["error"]
        assert (error["code"], error.get("field"), error["retryable"]) == (code, field, False)
        assert reason in error["message"]
        await watch.saw_one_refusal(message, code=code, field=field, reason=error["message"])

    @pytest.mark.parametrize("reply_to", REPLY_ADDRESSES)
    async def test_is_refused_for_its_reply_address_and_not_answered(self, scene: Scene, reply_to: str) -> None:
        message = said(scene.desk.trade(), reply_to=reply_to)
        async with Watch.over(scene) as watch:
            await watch.wire.send(message)

        await watch.saw_one_refusal(message, code="validation", field="reply_to", reason="must be amq.rabbitmq")

    async def test_may_be_of_the_largest_size(self, scene: Scene) -> None:
        async with Wire.connect(scene.service.rabbitmq_url) as wire:
            assert (await wire.ask(padded(MAX_COMMAND_BYTES)(scene)))["ok"]

    async def test_may_have_headers_of_any_number_size_and_depth(self, scene: Scene) -> None:
        deep: Any = "leaf"
        for _ in range(50):
            deep = {"deeper": [deep]}
        headers = {"deep": deep, "long": "x" * 50_000, **{f"header {number}": number for number in range(1_000)}}
        good, wrong = properties(headers=headers)(scene), trade(size="-1")(scene)
        wrong = Raw(wrong.routing_key, wrong.body, {**wrong.properties, "headers": headers})
        async with Watch.over(scene, stores=1) as watch:
            assert (await watch.wire.ask(good))["ok"]
            assert not (await watch.wire.ask(wrong))["ok"]

        await watch.saw_one_refusal(wrong, code="validation", field="size", reason="Input should be greater than 0")
        [kept] = await rows(
            scene.service.database_url,
            "SELECT length(properties::text) FROM dead_letters WHERE message_id = $1",
            wrong.properties["message_id"],
        )
        assert kept["length"] < 20_000


class Watch:
    """What goes on while something wrong is sent: good messages before and after it, records and events."""

    def __init__(self, scene: Scene, wire: Wire, listener: Listener, *, last: int) -> None:
        self._scene = scene
        self._service = scene.service
        self._listener = listener
        self._last = last
        self.wire = wire
        self.refused: list[dict[str, Any]] = []
        """Dead letters that were written meanwhile."""
        self.announced: list[dict[str, Any]] = []
        """What was announced of them."""

    @classmethod
    @asynccontextmanager
    async def over(cls, scene: Scene, *, stores: int = 0) -> AsyncIterator[Self]:
        """Watch what the block sends; it stores so many trades."""
        service = scene.service
        last = await value(service.database_url, "SELECT coalesce(max(dead_letter_id), 0) FROM dead_letters")
        trades = await value(service.database_url, "SELECT count(*) FROM trades")
        async with (
            Wire.connect(service.rabbitmq_url) as wire,
            Listener.on(service.rabbitmq_url, "command.rejected") as listener,
        ):
            watch = cls(scene, wire, listener, last=last)
            await wire.send(said(scene.desk.trade()))
            yield watch
            await watch._afterwards()
            assert await value(service.database_url, "SELECT count(*) FROM trades") == trades + 2 + stores

    async def _afterwards(self) -> None:
        await eventually(self._letters)
        # Both lanes of strays and of trades keep their order, so what this one finds is all there is.
        closing = trade(size="-999")(self._scene)
        await self.wire.ask(closing)
        await self.wire.ask(said(self._scene.desk.trade()))
        letters = await self._letters()
        assert letters.pop()["message_id"] == closing.properties["message_id"]
        await self._listener.until(
            lambda heard: any(
                change["after"]["message_id"] == closing.properties["message_id"]
                for event in heard
                for change in event["changes"]
            )
        )
        self.refused = letters
        self.announced = [change["after"] for change in self._listener.changes][:-1]
        assert await ready(self._service.http) == (
            200,
            {"status": "ready", "service": "ok", "database": "ok", "consumers": "ok", "relay": "ok"},
        )
        assert self._service.process.returncode is None

    async def _letters(self) -> list[dict[str, Any]]:
        return await rows(
            self._service.database_url,
            "SELECT * FROM dead_letters WHERE dead_letter_id > $1 ORDER BY dead_letter_id",
            self._last,
        )

    async def saw_one_refusal(self, message: Raw, *, code: str, field: str | None, reason: str) -> None:
        """Exactly one dead letter and one event tell of ``message``, and they agree."""
        [letter] = self.refused
        message_id = message.properties.get("message_id")
        expected = {
            "message_id": message_id.replace("\x00", "\ufffd") if message_id else None,
            "command": message.routing_key.replace("\x00", "\ufffd"),
            "code": code,
            "field": field,
        }
        assert {name: letter[name] for name in expected} == expected
        assert letter["reason"].startswith(reason)
        assert (letter["state"], letter["attempts"], letter["body_size"]) == ("open", 1, len(message.body))
        if not message.properties.get("content_encoding"):
            assert letter["body"] == message.body[: len(letter["body"])]
        [event] = self.announced
        assert event == {
            **expected,
            "dead_letter_id": letter["dead_letter_id"],
            "reason": letter["reason"],
            "user_id": None,
            "app_id": message.properties.get("app_id"),
            "received_at": event["received_at"],
        }


class TestProperties:
    """Those that no Python client would send are read all the same, or else every lane would stop at them."""

    @pytest.mark.parametrize(
        ("make", "field"),
        [
            pytest.param(lambda: wire_properties(message_id=None), "message_id", id="no message id"),
            pytest.param(lambda: wire_properties(message_id=b"\xff\xfe"), "message_id", id="a message id in Latin-1"),
            pytest.param(lambda: wire_properties(type=b"\xff\xfe"), "type", id="a type in Latin-1"),
            pytest.param(
                lambda: wire_properties(content_type=b"\xff"), "content_type", id="a content type in Latin-1"
            ),
            pytest.param(lambda: wire_properties(reply_to=b"\xff\xfe"), "reply_to", id="a reply address in Latin-1"),
            pytest.param(lambda: with_headers(b"\x01\xffV"), "headers", id="a header's name in Latin-1"),
            pytest.param(lambda: with_headers(nested_tables(1_000)), "headers", id="headers 1,000 deep"),
            pytest.param(lambda: with_headers(nested_tables(10_000)), "headers", id="headers 10,000 deep"),
            pytest.param(lambda: with_headers(nested_arrays(10_000)), "headers", id="arrays 10,000 deep in headers"),
        ],
    )
    async def test_that_cannot_be_used_are_refused(
        self, scene: Scene, make: Callable[[], pika.BasicProperties], field: str
    ) -> None:
        async with Watch.over(scene) as watch:
            await asyncio.to_thread(send_with_pika, scene, make())

        [letter] = watch.refused
        assert (letter["code"], letter["field"]) == ("validation", field)
        assert len(watch.announced) == 1

    @pytest.mark.parametrize(
        "make",
        [
            pytest.param(lambda: wire_properties(app_id=b"\xff\xfe"), id="an app id in Latin-1"),
            pytest.param(lambda: wire_properties(timestamp=2**63), id="a time in nanoseconds"),
            pytest.param(lambda: wire_properties(timestamp=2**64 - 1), id="a time before 1970, unsigned"),
            pytest.param(lambda: wire_properties(priority=255), id="the highest priority"),
            pytest.param(lambda: wire_properties(headers={"a": b"\xff\xfe"}), id="bytes in a header"),
            pytest.param(lambda: with_headers(b"\x01aT" + struct.pack(">Q", 2**63)), id="a header far in the future"),
            pytest.param(lambda: with_headers(b"\x01aD\xff" + struct.pack(">i", 5)), id="a tiny decimal in a header"),
        ],
    )
    async def test_that_do_not_matter_are_let_be(
        self, scene: Scene, make: Callable[[], pika.BasicProperties]
    ) -> None:
        before = await value(scene.service.database_url, "SELECT count(*) FROM trades")
        await asyncio.to_thread(send_with_pika, scene, make())
        async with PersistenceClient(scene.service.rabbitmq_url) as client:
            await client.call(scene.desk.trade())

        assert await value(scene.service.database_url, "SELECT count(*) FROM trades") == before + 2
        assert (await ready(scene.service.http))[0] == 200

    async def test_with_a_routing_key_in_latin_1_are_refused(self, scene: Scene) -> None:
        async with Watch.over(scene) as watch:
            await asyncio.to_thread(send_with_pika, scene, wire_properties(), b"record_trade\xff")

        [letter] = watch.refused
        assert (letter["code"], letter["field"]) == ("validation", "routing_key")


class EncodedProperties(pika.BasicProperties):  # type: ignore[misc]
    """Properties that go out as the bytes they are, with the flags that name them."""

    def __init__(self, flags: int, *parts: bytes) -> None:
        super().__init__()
        self._encoded = [struct.pack(">H", flags), *parts]

    def encode(self) -> list[bytes]:
        return self._encoded


# Flags of the properties, as AMQP 0-9-1 numbers them.
_HEADERS, _MESSAGE_ID = 1 << 13, 1 << 7


def wire_properties(**changes: Any) -> pika.BasicProperties:
    return pika.BasicProperties(**{"message_id": str(new_message_id()), **changes})


def with_headers(table: bytes) -> pika.BasicProperties:
    return EncodedProperties(_HEADERS | _MESSAGE_ID, struct.pack(">I", len(table)) + table, _short(new_message_id()))


def _short(text: object) -> bytes:
    encoded = str(text).encode()
    return bytes([len(encoded)]) + encoded


def nested_tables(depth: int) -> bytes:
    table = b""
    for _ in range(depth):
        table = b"\x01aF" + struct.pack(">I", len(table)) + table
    return table


def nested_arrays(depth: int) -> bytes:
    array = b""
    for _ in range(depth):
        array = b"A" + struct.pack(">I", len(array)) + array
    return b"\x01a" + array


def send_with_pika(scene: Scene, properties: pika.BasicProperties, routing_key: str | bytes = "record_trade") -> None:
    """Publish a good trade with these properties."""
    body = scene.desk.trade().model_dump_json(exclude_unset=True).encode()
    with pika.BlockingConnection(pika.URLParameters(scene.service.rabbitmq_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish(COMMANDS.name, routing_key, body, properties)
