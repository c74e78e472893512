"""Secrets that are sent by mistake get no further than the message they came in."""

import asyncio
import json
from typing import Any
from uuid import UUID

import pytest

from contracts.client import new_message_id
from tests.e2e.conftest import SharedService
from tests.e2e.wire import Listener, Raw, Wire, rows, said

CANARY = "hunter2-canary"
HASH = "$argon2id$" + CANARY


class TestASecret:
    """It never leaves the message it came in."""

    @pytest.mark.parametrize(
        ("routing_key", "body"),
        [
            pytest.param("add_user", {"mail": "", "password_hash": HASH}, id="a hash beside something wrong"),
            pytest.param("add_user", {"mail": "a@b.c", "password_hash": CANARY}, id="a password for a hash"),
            pytest.param("add_user", {"mail": "a@b.c", "password": CANARY}, id="a password"),
            pytest.param("add_exchange", {"api_key": CANARY, "passphrase": CANARY}, id="credentials"),
            pytest.param("add_exchange", {"API_KEY": CANARY, "apiSecret": CANARY}, id="other spellings"),
            pytest.param("add_exchange", {"account": {"keys": [{"api_secret": CANARY}]}}, id="nested credentials"),
            pytest.param("add_exchange", {"api_key": [CANARY, {"a": CANARY}]}, id="a list of secrets"),
            pytest.param("nobody_knows", {"api_key": CANARY}, id="an unknown command"),
            pytest.param("add_user", b'{"password_hash": "%s' % HASH.encode(), id="a truncated hash"),
            pytest.param("add_exchange", b'{"api_key": "%s", "uid"' % CANARY.encode(), id="truncated behind it"),
            pytest.param("add_exchange", b'{"passphrase" : "a\\"%s' % CANARY.encode(), id="an escape in it"),
            pytest.param("add_exchange", b'{"api_key": ["%s", "uid"' % CANARY.encode(), id="a truncated list"),
            pytest.param("add_exchange", b'{"api_key": {"a": "%s", ' % CANARY.encode(), id="a truncated object"),
            pytest.param("add_exchange", b"{'api_key': '%s', 'uid': 1}" % CANARY.encode(), id="single quotes"),
            pytest.param("add_exchange", b'{"api\\u005fkey": "%s", ' % CANARY.encode(), id="a name in escapes"),
            pytest.param(
                "add_exchange", b'{"api_key": "%s", "api_key": null}' % CANARY.encode(), id="a name twice, null last"
            ),
            pytest.param(
                "add_exchange",
                b'{"uid": {"api_key": "%s"}, "uid": 1}' % CANARY.encode(),
                id="an object that a second one of its name hides",
            ),
            pytest.param(
                "add_exchange", json.dumps(json.dumps({"api_key": CANARY})).encode(), id="JSON in a string of JSON"
            ),
            pytest.param(
                "save_bot_log",
                {"bot_id": 2**31 - 1, "message": json.dumps({"api_key": CANARY})},
                id="JSON in a field",
            ),
            pytest.param(
                "add_exchange", json.dumps({"api_key": CANARY}).encode("utf-16")[:-4], id="truncated UTF-16"
            ),
            pytest.param(
                "add_exchange", b'{"uid": 1, "api_key": "\xff%s"}' % CANARY.encode(), id="invalid UTF-8 around it"
            ),
        ],
    )
    async def test_is_redacted_from_record_event_and_log(
        self, shared: SharedService, routing_key: str, body: dict[str, Any] | bytes
    ) -> None:
        message = said(body, routing_key)
        async with (
            Wire.connect(shared.rabbitmq_url) as wire,
            Listener.on(shared.rabbitmq_url) as listener,
        ):
            reply = await wire.ask(message)
            await listener.until(bool)

        assert reply["ok"] is False
        assert not leaks(json.dumps(reply).encode())
        assert not any(map(leaks, listener.raw))
        await keeps_the_secret(shared, message)

    async def test_is_redacted_from_headers(self, shared: SharedService) -> None:
        headers = {"api_key": CANARY, "sender": [{"Passphrase": CANARY, "f2a": CANARY}]}
        message = said({"mail": ""}, "add_user", headers=headers)
        async with Wire.connect(shared.rabbitmq_url) as wire:
            await wire.ask(message)

        [letter] = await keeps_the_secret(shared, message)
        assert json.loads(letter["properties"])["headers"] == {
            "api_key": "***",
            "sender": [{"Passphrase": "***", "f2a": "***"}],
        }

    async def test_leaves_the_rest_of_a_refused_command_readable(self, shared: SharedService) -> None:
        message = said({"mail": "", "password_hash": HASH, "name": "Ada"}, "add_user")
        async with Wire.connect(shared.rabbitmq_url) as wire:
            await wire.ask(message)

        [letter] = await keeps_the_secret(shared, message)
        assert json.loads(letter["body"]) == {"mail": "", "password_hash": "***", "name": "Ada"}
        assert letter["complete"] is False

    async def test_of_a_stored_user_is_in_no_event_inbox_or_log(self, shared: SharedService) -> None:
        message = said({"mail": f"{new_message_id()}@example.org", "password_hash": HASH}, "add_user")
        async with (
            Wire.connect(shared.rabbitmq_url) as wire,
            Listener.on(shared.rabbitmq_url, "user.created") as listener,
        ):
            reply = await wire.ask(message)
            await listener.until(bool)

        assert reply["ok"] is True
        assert not any(map(leaks, [json.dumps(reply).encode(), *listener.raw]))
        inbox = await rows(
            shared.database_url,
            "SELECT reply::text FROM inbox WHERE message_id = $1",
            UUID(message.properties["message_id"]),
        )
        assert not leaks(inbox[0]["reply"].encode())
        assert not leaks(await asyncio.to_thread(shared.log.read_bytes))


def leaks(content: bytes) -> bool:
    return any(CANARY.encode(encoding) in content for encoding in ("utf-8", "utf-16-le", "utf-16-be"))


async def keeps_the_secret(shared: SharedService, message: Raw) -> list[dict[str, Any]]:
    """Look into everything that is kept of ``message``; gives its dead letters."""
    letters = await rows(
        shared.database_url,
        "SELECT * FROM dead_letters WHERE message_id = $1",
        message.properties["message_id"],
    )
    [letter] = letters
    assert not leaks(letter["body"]), letter["body"]
    assert not leaks(json.dumps({**letter, "body": ""}, default=str).encode())
    assert not leaks(await asyncio.to_thread(shared.log.read_bytes))
    return letters
