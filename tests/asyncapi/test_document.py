"""The AsyncAPI document is valid, whole, and right about every message."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from contracts.base import COMMAND_TYPES, EVENT_TYPES, LOOKUP_TYPES, Reply, answer_adapter, decode
from contracts.errors import ErrorCode
from contracts.heartbeat import Heartbeat
from contracts.topology import COMMANDS, EVENT_QUEUE_ARGUMENTS, EVENTS, HEARTBEATS, LOOKUPS
from service import asyncapi
from service.asyncapi import html
from service.asyncapi.schemas import attribute_texts
from tests import node

REQUEST_TYPES = {**COMMAND_TYPES, **LOOKUP_TYPES}
Document = dict[str, Any]


@pytest.fixture
def document() -> Document:
    """The document as its readers get it, to be changed at will."""
    read: Document = json.loads(asyncapi.dumps(asyncapi.document()))
    return read


def resolve(document: Document, part: Any) -> Any:
    """What ``part`` is or refers to; raises KeyError for a reference to nothing."""
    while isinstance(part, dict) and "$ref" in part:
        target: Any = document
        for step in part["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        part = target
    return part


def structural_problems(document: Document) -> list[str]:
    """What is wrong with references, operations and channels: what can be seen without the public parser."""
    known = {"asyncapi", "info", "servers", "defaultContentType", "channels", "operations", "components"}
    problems = [f"{name} is no field" for name in document if name not in known and not name.startswith("x-")]
    for reference in references(document):
        try:
            resolve(document, {"$ref": reference})
        except KeyError:
            problems.append(f"{reference} refers to nothing")
    if problems:
        return problems
    for name, operation in document["operations"].items():
        if operation["action"] not in ("send", "receive"):
            problems.append(f"{name} neither sends nor receives")
        for used in (operation, operation.get("reply", operation)):
            of_channel = f"{used['channel']['$ref']}/messages/"
            if not all(message["$ref"].startswith(of_channel) for message in used["messages"]):
                problems.append(f"{name} uses a message that its channel does not have")
    return problems


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        part = list(part.values())
    if isinstance(part, list):
        for item in part:
            yield from references(item)


def complaints(document: Document) -> list[str]:
    """What the public parser says is wrong with a document, or the structural check where there is no Node.js."""
    if not node.is_installed():
        return structural_problems(document)
    return node.run(Path(__file__).with_name("validate.js"), text=json.dumps(document)).splitlines()


def _of_another_channel(document: Document) -> None:
    document["operations"]["add_bot"]["messages"] = [{"$ref": "#/channels/add_user/messages/add_user"}]


BREAKS: dict[str, Callable[[Document], Any]] = {
    "a field that AsyncAPI does not know": lambda document: document.update(bogus=1),
    "a channel that is gone": lambda document: document["channels"].pop("record_trade"),
    "a schema that is gone": lambda document: document["components"]["schemas"].pop("TradeView"),
    "an action that is none": lambda document: document["operations"]["add_bot"].update(action="publish"),
    "a message of another channel": _of_another_channel,
}


class TestValidity:
    def test_holds_for_the_public_parser(self, document: Document) -> None:
        assert complaints(document) == []
        if not node.is_installed():
            pytest.skip("Node.js and npm are not here: checked the structure in Python, not by the public parser")

    def test_holds_for_the_structural_check(self, document: Document) -> None:
        assert structural_problems(document) == []

    @pytest.mark.parametrize("break_", BREAKS.values(), ids=BREAKS.keys())
    @pytest.mark.parametrize("check", [complaints, structural_problems])
    def test_is_lost_by(
        self,
        document: Document,
        check: Callable[[Document], list[str]],
        break_: Callable[[Document], Any],
    ) -> None:
        break_(document)

        assert check(document)

    @pytest.mark.skipif(not node.is_installed(), reason="validates by JSON Schema, which needs Node.js and npm")
    def test_is_lost_by_an_example_that_its_schema_refuses(self, document: Document) -> None:
        document["components"]["messages"]["record_trade"]["examples"][0]["payload"]["size"] = "-1"

        assert complaints(document)[0].startswith("example 0 of record_trade")

    def test_survives_writing_and_reading(self, document: Document) -> None:
        assert document == asyncapi.document()


class TestRequests:
    @pytest.mark.parametrize("name", REQUEST_TYPES)
    def test_are_received_from_their_exchange_by_their_name(self, document: Document, name: str) -> None:
        operation = document["operations"][name]
        channel = resolve(document, operation["channel"])
        exchange = COMMANDS if name in COMMAND_TYPES else LOOKUPS

        assert operation["action"] == "receive"
        assert channel["address"] == name
        assert channel["bindings"]["amqp"]["exchange"] == {
            "name": exchange.name,
            "type": exchange.type,
            "durable": True,
            "autoDelete": False,
        }

    @pytest.mark.parametrize("name", REQUEST_TYPES)
    def test_say_their_body_and_properties(self, document: Document, name: str) -> None:
        [message] = [resolve(document, part) for part in document["operations"][name]["messages"]]
        payload = resolve(document, message["payload"])
        properties = resolve(document, message["x-amqp-properties"])

        assert message["contentType"] == "application/json"
        assert message["bindings"]["amqp"]["messageType"] == name
        assert set(payload["properties"]) == set(REQUEST_TYPES[name].model_fields)
        assert payload["additionalProperties"] is False
        assert "schema_version" in resolve(document, message["headers"])["properties"]
        assert properties["required"] == (["message_id", "delivery_mode"] if name in COMMAND_TYPES else ["reply_to"])

    @pytest.mark.parametrize("name", REQUEST_TYPES)
    def test_say_their_reply(self, document: Document, name: str) -> None:
        reply = document["operations"][name]["reply"]
        [message] = [resolve(document, part) for part in reply["messages"]]
        done, refused = (resolve(document, part) for part in resolve(document, message["payload"])["oneOf"])

        assert reply["address"]["location"] == "$message.header#/reply_to"
        assert resolve(document, reply["channel"])["address"] is None
        assert set(done["properties"]) | set(refused["properties"]) == set(Reply.model_fields)
        assert done["properties"]["data"]

    @pytest.mark.parametrize("name", REQUEST_TYPES)
    def test_have_examples_that_the_service_takes_and_sends(self, document: Document, name: str) -> None:
        messages = document["components"]["messages"]
        kind = REQUEST_TYPES[name]

        for example in messages[name]["examples"]:
            decode(kind, json.dumps(example["payload"]).encode())
        done, refused = (Reply.model_validate(part["payload"]) for part in messages[f"{name}.reply"]["examples"])
        assert done.ok
        answer_adapter(kind).validate_python(done.data)
        assert not refused.ok
        assert refused.error is not None

    @pytest.mark.parametrize("name", COMMAND_TYPES)
    def test_that_are_commands_say_their_lane(self, document: Document, name: str) -> None:
        [tag] = document["operations"][name]["tags"]
        [description] = [known["description"] for known in document["info"]["tags"] if known["name"] == tag["name"]]

        assert COMMAND_TYPES[name].lane.queue in description


class TestEvents:
    @pytest.mark.parametrize("name", EVENT_TYPES)
    def test_are_sent_to_their_exchange_by_their_name(self, document: Document, name: str) -> None:
        operation = document["operations"][name]
        channel = resolve(document, operation["channel"])

        assert operation["action"] == "send"
        assert channel["address"] == name
        assert channel["bindings"]["amqp"]["exchange"]["name"] == EVENTS.name
        assert channel["bindings"]["amqp"]["exchange"]["type"] == EVENTS.type

    @pytest.mark.parametrize("name", EVENT_TYPES)
    def test_say_their_changes_and_properties(self, document: Document, name: str) -> None:
        [message] = [resolve(document, part) for part in document["operations"][name]["messages"]]
        fields = resolve(document, message["payload"])["properties"]
        change = resolve(document, fields["changes"]["items"])["properties"]
        image = resolve(document, change["after"]["anyOf"][0])

        assert set(fields) == set(EVENT_TYPES[name].model_fields)
        assert fields["type"]["const"] == name
        assert set(change["key"]["properties"]) == set(EVENT_TYPES[name].key_fields)
        assert set(image["properties"]) == set(EVENT_TYPES[name].view_type().model_fields)
        assert "message_id" in resolve(document, message["x-amqp-properties"])["required"]

    @pytest.mark.parametrize("name", EVENT_TYPES)
    def test_have_examples_that_a_subscriber_can_read(self, document: Document, name: str) -> None:
        message = document["components"]["messages"][name]
        [example] = message["examples"]
        event = EVENT_TYPES[name].model_validate_json(json.dumps(example["payload"]))

        assert event.stale_keys == event.stale_keys_of(event.changes)
        assert len(message["x-stale-keys"]) >= len(event.stale_keys)
        assert bool(message["x-stale-keys"]) == bool(event.stale_keys)

    def test_say_which_cache_keys_they_make_stale(self, document: Document) -> None:
        assert document["components"]["messages"]["symbol.updated"]["x-stale-keys"] == [
            "symbol:{symbol}:{cat_ex_id}",
            "symbols:exchange:{cat_ex_id}",
            "symbol:decimals:{symbol_id}",
            "symbol:by_id:{symbol_id}",
            "symbols:all",
        ]

    def test_say_how_a_subscriber_declares_its_queue(self, document: Document) -> None:
        assert document["x-subscriber-queue"] == {
            "durable": True,
            "exclusive": False,
            "auto_delete": False,
            "arguments": EVENT_QUEUE_ARGUMENTS,
        }


class TestHeartbeats:
    def test_are_sent_to_an_exchange_of_their_own(self, document: Document) -> None:
        operation = document["operations"]["heartbeat"]
        channel = resolve(document, operation["channel"])
        [message] = [resolve(document, part) for part in operation["messages"]]

        assert operation["action"] == "send"
        assert channel["bindings"]["amqp"]["exchange"]["name"] == HEARTBEATS.name
        assert set(resolve(document, message["payload"])["properties"]) == set(Heartbeat.model_fields)
        assert Heartbeat.model_validate(message["examples"][0]["payload"])


class TestWords:
    def test_come_from_under_the_fields(self, document: Document) -> None:
        timestamp = document["components"]["schemas"]["RecordTrade"]["properties"]["timestamp"]

        assert timestamp["description"] == "When it was executed; the time of storing if left out."

    def test_say_when_an_error_is_which(self, document: Document) -> None:
        texts = document["components"]["schemas"]["ErrorCode"]["x-enumDescriptions"]

        assert set(texts) == {code.value for code in ErrorCode}
        assert texts["conflict"].startswith("It contradicts what is stored")

    def test_are_left_out_where_the_source_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Installed(BaseModel):
            __module__ = "contracts.somewhere"
            field: int

        monkeypatch.setattr("inspect.getsource", _no_source)

        assert attribute_texts(Installed) == {}

    def test_name_no_address_and_no_login(self) -> None:
        assert "://" not in asyncapi.dumps(asyncapi.document())

    def test_say_of_money_whether_it_may_be_negative(self, document: Document) -> None:
        fields = document["components"]["schemas"]["RecordTrade"]["properties"]

        assert fields["size"]["exclusiveMinimum"] == 0
        assert re.search(fields["size"]["pattern"], "0.001")
        assert not re.search(fields["size"]["pattern"], "0.000")
        assert not re.search(fields["size"]["pattern"], "-1")
        assert "pattern" not in fields["fee"]["anyOf"][0]


def _no_source(_: object) -> str:
    raise OSError("could not get source code")


class TestPage:
    def test_names_every_message(self) -> None:
        anchors = set(re.findall(r'id="([^"]+)"', asyncapi.page()))

        assert anchors >= {*REQUEST_TYPES, *EVENT_TYPES}

    def test_links_only_to_itself_and_the_document(self) -> None:
        links = set(re.findall(r'href="([^"]*)"', asyncapi.page()))
        anchors = {f"#{anchor}" for anchor in re.findall(r'id="([^"]+)"', asyncapi.page())}

        assert links - anchors == {"asyncapi"}

    @pytest.mark.parametrize(
        "what", ["://", "<script", "<link", "<img", "<iframe", "<form", "src=", "url(", "@import"]
    )
    def test_loads_and_runs_nothing(self, what: str) -> None:
        assert what not in asyncapi.page()
        assert not re.search(r"<[^>]+\son\w+=", asyncapi.page())

    def test_escapes_every_text(self, document: Document) -> None:
        hostile = '<script>alert("x")</script>'
        page = html.render(_with_every_text_ending_in(document, hostile))

        assert "<script" not in page
        assert hostile in unescape(page)

    def test_closes_what_it_opens(self) -> None:
        void = {"meta", "!doctype"}
        open_: list[str] = []
        for slash, tag in re.findall(r"<(/?)([a-z!][a-z0-9]*)", asyncapi.page()):
            if slash:
                assert open_.pop() == tag
            elif tag not in void:
                open_.append(tag)

        assert open_ == []


def _with_every_text_ending_in(document: Document, ending: str) -> Document:
    """A copy in which all that is said, and nothing that is referred to, ends in ``ending``."""
    told = copy.deepcopy(document)

    def change(part: Any) -> None:
        for name, value in list(part.items() if isinstance(part, dict) else enumerate(part)):
            if isinstance(value, str) and name in ("title", "summary", "description", "default", "version"):
                part[name] = value + ending
            elif isinstance(value, dict | list):
                change(value)

    change(told)
    return told


@pytest.mark.parametrize("kind", [*REQUEST_TYPES.values(), *EVENT_TYPES.values()])
def test_every_message_says_what_it_is(kind: type) -> None:
    assert kind.__doc__
