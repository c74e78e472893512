"""Clients that are not ours speak with the service from its AsyncAPI document alone.

Nothing here imports the contracts: exchanges, routing keys, properties and fields come from the document that the
running service serves.
"""

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests import node
from tests.conftest import RunningService

PATIENCE = 10.0
"""Seconds to wait for a reply or an event."""


class Document:
    """What the AsyncAPI document says, as far as a client asks."""

    def __init__(self, url: str) -> None:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:  # noqa: S310 - http, of the fixture
            self.root: dict[str, Any] = json.load(answer)

    def resolve(self, part: dict[str, Any]) -> dict[str, Any]:
        """What ``part`` is or refers to."""
        while "$ref" in part:
            path, part = part["$ref"].removeprefix("#/").split("/"), self.root
            for step in path:
                part = part[step]
        return part

    def destination(self, operation: str) -> tuple[str, str]:
        """Exchange and routing key."""
        channel = self.resolve(self.root["operations"][operation]["channel"])
        return channel["bindings"]["amqp"]["exchange"]["name"], channel["address"]

    def message(self, operation: str) -> dict[str, Any]:
        return self.resolve(self.root["operations"][operation]["messages"][0])

    def properties(self, operation: str, **more: str) -> pika.BasicProperties:
        """The properties that a message of this operation needs."""
        message = self.message(operation)
        headers = self.resolve(message["headers"])["properties"]
        known = self.resolve(message["x-amqp-properties"])["properties"]
        assert set(more) <= set(known), "a property that the document does not know"
        if known.get("message_id", {}).get("format") == "uuid":
            more = {"message_id": str(uuid4()), **more}
        return pika.BasicProperties(
            content_type=message["contentType"],
            delivery_mode=known["delivery_mode"]["const"],
            type=message["bindings"]["amqp"]["messageType"],
            headers={"schema_version": headers["schema_version"]["const"]},
            **more,
        )

    def missing(self, operation: str, body: dict[str, Any]) -> set[str]:
        """Fields that a body lacks, and those that it should not have."""
        schema = self.resolve(self.message(operation)["payload"])
        return (set(schema["required"]) - set(body)) | (set(body) - set(schema["properties"]))


class PikaClient:
    """A bot as one would write it with pika."""

    def __init__(self, document: Document, rabbitmq_url: str) -> None:
        self.document = document
        self._replies: dict[str, dict[str, Any]] = {}
        self._connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_url))
        self._channel: BlockingChannel = self._connection.channel()
        self._channel.confirm_delivery()
        self._channel.basic_consume("amq.rabbitmq.reply-to", self._receive, auto_ack=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def publish(self, operation: str, body: dict[str, Any], **properties: str) -> None:
        """Publish and wait for the confirm; raises if the broker knows no queue for it."""
        assert not self.document.missing(operation, body)
        exchange, routing_key = self.document.destination(operation)
        self._channel.basic_publish(
            exchange,
            routing_key,
            json.dumps(body).encode(),
            self.document.properties(operation, **properties),
            mandatory=True,
        )

    def ask(self, operation: str, body: dict[str, Any], **properties: str) -> dict[str, Any]:
        """The whole reply."""
        correlation_id = str(uuid4())
        self.publish(operation, body, reply_to="amq.rabbitmq.reply-to", correlation_id=correlation_id, **properties)
        self._wait_for(lambda: correlation_id in self._replies)
        return self._replies.pop(correlation_id)

    def data(self, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        """What a reply holds that is not a refusal."""
        reply = self.ask(operation, body)
        assert reply["ok"], reply
        data: dict[str, Any] = reply["data"]
        return data

    @contextmanager
    def subscribed(self, event: str, queue: str) -> Iterator[Callable[[], dict[str, Any]]]:
        """A function that waits for the next event on a queue of our own."""
        wanted = self.document.root["x-subscriber-queue"]
        arrived: list[bytes] = []

        def take(channel: BlockingChannel, method: Any, _: Any, body: bytes) -> None:
            channel.basic_ack(method.delivery_tag)
            arrived.append(body)

        def next_event() -> dict[str, Any]:
            self._wait_for(lambda: bool(arrived))
            read: dict[str, Any] = json.loads(arrived.pop(0))
            return read

        with closing(self._connection.channel()) as channel:
            channel.queue_declare(queue, **wanted)
            channel.queue_bind(queue, *self.document.destination(event))
            channel.basic_consume(queue, take)
            yield next_event

    def _receive(self, _: Any, __: Any, properties: pika.BasicProperties, body: bytes) -> None:
        self._replies[properties.correlation_id] = json.loads(body)

    def _wait_for(self, has_come: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not has_come():
            assert time.monotonic() < deadline, f"nothing came within {PATIENCE:g} s"
            self._connection.process_data_events(time_limit=0.1)


def comparable(trade: dict[str, Any]) -> dict[str, Any]:
    """A trade with its instant as one: how many digits it is written with is no part of the contract."""
    return {**trade, "timestamp": datetime.fromisoformat(trade["timestamp"])}


def trade_of_a_new_bot(client: PikaClient) -> dict[str, Any]:
    """A trade, after all that it refers to was set up."""
    user = client.data("add_user", {"mail": "pika@example.org"})
    exchange = client.data("install_exchange", {"name": "pika's exchange"})
    account = client.data("add_exchange", {"uid": user["uid"], "cat_ex_id": exchange["cat_ex_id"], "ex_name": "main"})
    symbol = client.data("add_symbol", {"symbol": "XRP/ETH", "cat_ex_id": exchange["cat_ex_id"]})
    bot = client.data("add_bot", {"uid": user["uid"], "name": "pika's bot"})
    client.data("add_exchange_to_bot", {"bot_id": bot["bot_id"], "ex_id": account["ex_id"]})
    return {
        "bot_id": bot["bot_id"],
        "uid": user["uid"],
        "ex_id": account["ex_id"],
        "symbol_id": symbol["symbol_id"],
        "side": "buy",
        "size": "23.00000000",
        "price": "0.00141342",
        "ex_trade_id": "P-1",
    }


class TestPika:
    async def test_records_a_trade_hears_of_it_and_finds_it(self, service: RunningService) -> None:
        def scenario() -> None:
            document = Document(f"{service.http}/asyncapi")
            with PikaClient(document, service.rabbitmq_url) as client:
                trade = trade_of_a_new_bot(client)
                with client.subscribed("trade.recorded", "pika.trades") as next_event:
                    client.publish("record_trade", trade)
                    event = next_event()
                page = client.data("get_trades_paginated", {"uid": trade["uid"]})

            [change] = event["changes"]
            assert event["type"] == "trade.recorded"
            assert {name: change["after"][name] for name in trade} == trade
            assert [comparable(trade) for trade in page["trades"]] == [comparable(change["after"])]

        await asyncio.to_thread(scenario)

    async def test_gets_the_same_answer_for_the_same_message_id(self, service: RunningService) -> None:
        def scenario() -> None:
            document = Document(f"{service.http}/asyncapi")
            with PikaClient(document, service.rabbitmq_url) as client:
                message_id = str(uuid4())
                first = client.ask("add_user", {"mail": "twice@example.org"}, message_id=message_id)
                again = client.ask("add_user", {"mail": "twice@example.org"}, message_id=message_id)

            assert again["data"] == first["data"]
            assert (first["meta"]["duplicate"], again["meta"]["duplicate"]) == (False, True)

        await asyncio.to_thread(scenario)

    async def test_is_told_in_a_code_of_the_document_why_it_is_refused(self, service: RunningService) -> None:
        def scenario() -> None:
            document = Document(f"{service.http}/asyncapi")
            with PikaClient(document, service.rabbitmq_url) as client:
                reply = client.ask("add_bot", {"uid": 4711, "name": "nobody's"})

            codes = document.root["components"]["schemas"]["ErrorCode"]["enum"]
            assert not reply["ok"]
            assert reply["error"]["code"] in codes
            assert reply["error"]["code"] == "not_found"

        await asyncio.to_thread(scenario)


class TestAmqplib:
    @pytest.mark.skipif(not node.is_installed(), reason="a client in JavaScript needs Node.js and npm")
    async def test_records_a_trade_hears_of_it_and_finds_it(self, service: RunningService) -> None:
        program = Path(__file__).with_name("foreign_client.js")
        seen = json.loads(
            await asyncio.to_thread(node.run, program, f"{service.http}/asyncapi", service.rabbitmq_url)
        )

        [change] = seen["event"]["changes"]
        assert seen["event"]["type"] == "trade.recorded"
        assert (change["after"]["size"], change["after"]["price"]) == ("23.00000000", "0.00141342")
        assert [comparable(trade) for trade in seen["page"]["trades"]] == [comparable(change["after"])]


class TestThePage:
    async def test_is_served_with_a_policy_that_lets_it_load_nothing(self, service: RunningService) -> None:
        def read() -> tuple[str, str]:
            with urllib.request.urlopen(f"{service.http}/asyncapi.html", timeout=PATIENCE) as answer:  # noqa: S310
                return answer.headers["content-security-policy"], answer.read().decode()

        policy, page = await asyncio.to_thread(read)

        assert policy == "default-src 'none'; style-src 'unsafe-inline'"
        assert "record_trade" in page
