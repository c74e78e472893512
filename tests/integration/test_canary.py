"""No secret that is sent, by whatever way and however wrongly, is found where it does not belong."""

import asyncio
import base64
import json
import re
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import asyncpg
import pytest
from aio_pika.abc import AbstractChannel
from redis.asyncio import Redis

from contracts import (
    AddExchange,
    AddUser,
    ErrorCode,
    ExchangeUpdates,
    GetExchange,
    GetExchangeCredentials,
    GetExchangesByUser,
    GetUser,
    GetUserCredentials,
    InstallExchange,
    ModifyUser,
    Refusal,
    UpdateExchange,
    UpdatePassword,
    UserUpdates,
    new_key_pair,
    seal,
    unseal,
)
from contracts.base import COMMAND_TYPES, LOOKUP_TYPES, Lookup
from contracts.client import PersistenceClient, new_message_id
from contracts.topology import COMMANDS, EVENTS, FRESH_HEADER, LOOKUPS
from service.received import Received
from service.vault import Vault
from tests.builders import Asking, Direct, received, sealed
from tests.cases import STORE_NOTHING, a_lookup, a_scene, commands
from tests.conftest import RunningService, StartService
from tests.nursery import REPOSITORY, Nursery

PRIVATE, PUBLIC = new_key_pair()
OWN_PRIVATE, OWN_PUBLIC = new_key_pair()
KEYS = {"SEALING_KEY": PRIVATE, "STORAGE_KEYS": f"only:{base64.b64encode(secrets.token_bytes(32)).decode()}"}

CANARY = f"canary{secrets.token_hex(8)}"
HASH = f"$argon2id$v=19${CANARY}hash"
Send = Callable[..., Awaitable[str]]


@pytest.fixture
async def service(start_service: StartService) -> RunningService:
    return await start_service(**KEYS)


@pytest.fixture
async def channel(service: RunningService) -> AsyncIterator[AbstractChannel]:
    connection = await aio_pika.connect(service.rabbitmq_url)
    yield await connection.channel()
    await connection.close()


@pytest.fixture
async def events(channel: AbstractChannel) -> list[str]:
    """Everything that is announced, as it comes."""
    seen: list[str] = []

    async def note(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        seen.append(message.body.decode() + str(message.properties))

    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(EVENTS.name, "#")
    await queue.consume(note, no_ack=True)
    return seen


@pytest.fixture
async def send(channel: AbstractChannel) -> Send:
    """Sends any bytes to any name and gives the reply as it came."""
    replies: asyncio.Queue[str] = asyncio.Queue()
    queue = await channel.declare_queue(exclusive=True)

    async def note(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        await replies.put(message.body.decode())

    await queue.consume(note, no_ack=True)

    async def send(name: str, body: Any, *, exchange: str = COMMANDS.name, **properties: Any) -> str:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        message = aio_pika.Message(
            raw, message_id=str(new_message_id()), reply_to=queue.name, **{"correlation_id": "1", **properties}
        )
        await (await channel.get_exchange(exchange, ensure=False)).publish(message, name)
        async with asyncio.timeout(10):
            return await replies.get()

    return send


async def every_row(database_url: str) -> dict[str, str]:
    """Every row of every table as text, by table."""
    connection = await asyncpg.connect(database_url)
    try:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        found = {}
        for (table,) in tables:
            rows = await connection.fetch(f'SELECT row_to_json(t)::text FROM "{table}" AS t')  # noqa: S608
            text = "\n".join(row[0] for row in rows)
            blobs = re.findall(r'"\\\\x([0-9a-f]*)"', text)
            found[table] = text + "".join(bytes.fromhex(blob).decode(errors="replace") for blob in blobs)
    finally:
        await connection.close()
    return found


async def everything_stored(service: RunningService) -> dict[str, str]:
    """Every row, and every value in the cache."""
    found = await every_row(service.database_url)
    async with Redis.from_url(service.redis_url) as redis:
        keys = await redis.keys("*")
        values = [await (redis.hgetall(key) if await redis.type(key) == b"hash" else redis.get(key)) for key in keys]
    found["cache"] = "".join(repr(part) for part in (*keys, *values))
    return found


async def test_a_secret_is_found_nowhere_but_where_it_is_kept(
    service: RunningService, client: PersistenceClient, events: list[str], send: Send
) -> None:
    user = await client.call(AddUser(mail="ada@example.org", password_hash=HASH))
    catalog = await client.call(InstallExchange(name="kraken"))
    uid, cat_ex_id = user.uid, catalog.cat_ex_id
    sealed = {
        field: seal(f"{CANARY}-{field}", PUBLIC, uid=uid, field=field)
        for field in ("api_key", "api_secret", "passphrase", "f2a")
    }
    keys = {field: sealed[field] for field in ("api_key", "api_secret", "passphrase")}
    account = await client.call(
        AddExchange.model_validate({"uid": uid, "cat_ex_id": cat_ex_id, "ex_name": "main", **keys})
    )
    ex_id = account.ex_id
    await client.call(UpdateExchange(ex_id=ex_id, updates=ExchangeUpdates.model_validate(keys)))
    await client.call(ModifyUser(uid=uid, updates=UserUpdates(f2a=sealed["f2a"])))
    await client.call(UpdatePassword(uid=uid, password_hash=f"{HASH}2"))

    add = {"uid": uid, "cat_ex_id": cat_ex_id, "ex_name": "x"}
    bodies: list[tuple[str, Any]] = [
        *(("add_exchange", {**add, name: CANARY}) for name in keys),
        *(
            ("add_exchange", {**add, name: CANARY})
            for name in ("apiKey", "api-secret", "secret", "key", "pwd", "token")
        ),
        *(("add_exchange", {**add, "api_key": value}) for value in ([CANARY], {"value": CANARY}, f"sealed.{CANARY}")),
        ("add_exchange", {**add, "credentials": {"first": CANARY}}),
        ("add_exchange", {**add, "account": json.dumps({"api_secret": CANARY}), "uid": 999}),
        ("add_exchange", {**add, "uid": 999, "api_key": sealed["api_key"]}),
        ("add_exchange", {**add, "ex_name": "main", **keys}),
        ("add_exchange", f'{{"uid": 1, "api_key": "{CANARY}"'.encode()),
        ("add_exchange", f'{{"uid": 1, "api\\u005fkey": "{CANARY}", "api_key": 1}}'.encode()),
        ("add_exchange", f'{{"api_key": "{CANARY}", "api_key": "{CANARY}"}}'.encode()),
        ("add_exchnage", {**add, "api_key": CANARY}),
        ("update_exchange", {"ex_id": ex_id, "updates": {"api_secret": CANARY}}),
        ("update_exchange", {"ex_id": ex_id, "updates": {"ApiSecret": CANARY}}),
        ("update_exchange", {"ex_id": 999, "updates": {"api_key": sealed["api_key"]}}),
        ("set_exchange_params", {"ex_id": ex_id, "params": {"apiSecret": CANARY}}),
        ("install_exchange", {"name": "x", "params": {"password": CANARY}}),
        *(("add_user", {"mail": "b@example.org", name: CANARY}) for name in ("password", "password_hash", "f2a")),
        ("add_user", {"mail": "ada@example.org", "password_hash": HASH}),
        *(("update_password", {"uid": uid, name: CANARY}) for name in ("password_hash", "new_password", "pass")),
        ("update_password", {"uid": 999, "password_hash": HASH}),
        *(("modify_user", {"uid": uid, "updates": {name: CANARY}}) for name in ("password", "f2a", "password_hash")),
        ("modify_user", {"uid": 999, "updates": {"f2a": sealed["f2a"]}}),
    ]
    replies = [await send(name, body) for name, body in bodies]
    replies.append(await send("add_user", {"mail": "c"}, headers={"X-Api-Key": CANARY}))
    for name, body in (
        ("get_exchange_credentials", {"ex_id": ex_id, "public_key": CANARY}),
        ("get_exchange_credentials", {"ex_id": ex_id, "public_key": PUBLIC, "private_key": CANARY}),
        ("get_user_credentials", {"mail": "ada@example.org", "password": CANARY}),
    ):
        replies.append(await send(name, body, exchange=LOOKUPS.name))
    assert [reply for reply in replies if json.loads(reply)["ok"]] == []

    lookups: list[Lookup[Any]] = [GetUser(uid=uid), GetExchange(ex_id=ex_id), GetExchangesByUser(uid=uid)]
    replies += [repr(await client.lookup(lookup)) for lookup in lookups for _ in range(2)]
    given = await client.lookup(GetExchangeCredentials(ex_id=ex_id, public_key=OWN_PUBLIC))
    person = await client.lookup(GetUserCredentials(mail="ada@example.org", public_key=OWN_PUBLIC))
    replies.append(repr(given) + repr(person))
    async with asyncio.timeout(10):
        while sum("command.rejected" in event for event in events) < len(bodies) + 1:
            await asyncio.sleep(0.05)

    # It is where it belongs ...
    assert given is not None
    assert person is not None
    for field in keys:
        assert unseal(getattr(given, field), OWN_PRIVATE, uid=uid, field=field) == f"{CANARY}-{field}"
    assert person.f2a is not None
    assert unseal(person.f2a, OWN_PRIVATE, uid=uid, field="f2a") == f"{CANARY}-f2a"
    assert person.password_hash == f"{HASH}2"
    stored = await everything_stored(service)
    assert CANARY in stored.pop("users")
    # ... and nowhere else, plain or as its sender sealed it.
    places = {**stored, "events": "".join(events), "log": service.log.read_text(), "replies": "".join(replies)}
    leaks = {place: text for place, text in places.items() if CANARY in text}
    assert leaks == {}
    assert {p for p, text in places.items() if any(secret in text for secret in sealed.values())} == set()
    assert stored["dead_letters"].count('"dead_letter_id":') == len(bodies) + 1
    assert "credentials_given_out" in places["log"]


SECRET_NAMES = ("password", "apiKey", "f2a", "private-key")


def with_secrets(body: Any, name: str, *, is_free: bool = False) -> Iterator[Any]:
    """The body with a secret of that name in each of its objects in turn.

    Not packed into a text where the sender may call texts what he likes: that is a value like another there.
    """
    if isinstance(body, dict):
        yield {**body, name: CANARY}
        yield {**body, "more": {"of it": [{name: CANARY}]}}
        if not is_free:
            yield {**body, "more": json.dumps({name: CANARY})}
        for field, part in body.items():
            inner = with_secrets(part, name, is_free=field == "params")
            yield from ({**body, field: changed} for changed in inner)
    elif isinstance(body, list) and body:
        yield from ([changed, *body[1:]] for changed in with_secrets(body[0], name))


async def test_a_secret_in_a_wrong_place_of_any_message_is_kept_nowhere(
    direct: Direct,
    asking: Asking,
    vault: Vault,
    database_url: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scene = await a_scene(direct, vault)
    bodies = {name: json.loads(received(command).body) for name, command in commands(scene).items()}
    bodies |= {name: {} for name in STORE_NOTHING & COMMAND_TYPES.keys()}
    batch = [
        Received(name, json.dumps(changed).encode(), message_id=str(new_message_id()), reply_to="x")
        for name, body in bodies.items()
        for secret in SECRET_NAMES
        for changed in with_secrets(body, secret)
    ]
    # What is a bot's own to say is kept where it was said, and announced without it.
    said = {"save_bot_log", "save_bot_logs", "save_simulation"}
    replies = []
    for start in range(0, len(batch), 50):
        some = batch[start : start + 50]
        for message, reply in zip(some, await direct.executor.execute(some), strict=True):
            assert not reply.ok or message.command in said, message.body
            replies.append(reply.model_dump_json())
    for name, kind in LOOKUP_TYPES.items():
        body = json.loads(a_lookup(kind, scene).model_dump_json(exclude_unset=True))
        for secret in SECRET_NAMES:
            message = Received(name, json.dumps({**body, secret: CANARY}).encode(), headers={FRESH_HEADER: True})
            replies.append((await asking.server.reply(message)).decode())

    stored = await every_row(database_url)
    where = {table for table, text in stored.items() if CANARY in text}
    assert {table.partition("_p_")[0] for table in where} <= {"bot_logs", "simulations"}
    assert not any(CANARY in reply for reply in replies)
    assert CANARY not in capsys.readouterr().out


async def test_a_secret_in_its_right_place_is_found_nowhere_else(
    direct: Direct, vault: Vault, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command that takes one, carried out, and refused beside something wrong."""
    scene = await a_scene(direct, vault)
    uid = scene.own.user.uid
    keys = {
        field: sealed(vault, f"{CANARY}-{field}", uid=uid, field=field)
        for field in ("api_key", "api_secret", "passphrase", "f2a")
    }
    hashed = {"password_hash": HASH}
    takers: dict[str, dict[str, Any]] = {
        "add_user": hashed,
        "update_password": hashed,
        "modify_user": {"uid": uid, "updates": {"f2a": keys["f2a"]}},
        "add_exchange": {name: keys[name] for name in keys if name != "f2a"},
        "update_exchange": {"updates": {name: keys[name] for name in keys if name != "f2a"}},
        "create_trading_setup": {"user": {"mail": "new@example.org", **hashed}},
    }
    bodies = {name: {**json.loads(received(commands(scene)[name]).body), **more} for name, more in takers.items()}
    bad = [(name, {**body, "x": 1}) for name, body in bodies.items()]
    bad += [(name, {**body, "expected_version": 99}) for name, body in bodies.items()]
    replies = []
    for name, body in (*bad, *bodies.items()):
        [reply] = await direct.executor.execute(
            [Received(name, json.dumps(body).encode(), message_id=str(new_message_id()), reply_to="x")]
        )
        replies.append(reply)

    assert [reply.ok for reply in replies] == [False] * len(bad) + [True] * len(bodies)
    stored = await every_row(database_url)
    assert CANARY in stored.pop("users")
    told = "".join(reply.model_dump_json() for reply in replies) + capsys.readouterr().out
    for secret in (CANARY, *keys.values()):
        assert {table for table, text in stored.items() if secret in text} == set()
        assert secret not in told
    schemas = {name: str(kind.model_json_schema()) for name, kind in COMMAND_TYPES.items()}
    takes_secrets = {name for name, schema in schemas.items() if re.search("'(password_hash|api_key|f2a)'", schema)}
    assert takes_secrets == set(takers)


def test_a_failure_on_a_terminal_shows_no_values() -> None:
    script = f"""
from service.observability import configure_logging
import structlog
configure_logging("INFO", "console")
def fail(word):
    held = word + "-hash"
    raise RuntimeError("no reason")
try:
    fail("".join({list(CANARY)}))
except RuntimeError as error:
    structlog.get_logger().error("failed", exc_info=error)
"""
    shown = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)

    assert "no reason" in shown.stdout
    assert CANARY not in shown.stdout


async def test_the_search_would_find_one(service: RunningService, send: Send) -> None:
    await send("add_user", {"mail": "no address", "note": CANARY})

    stored = await everything_stored(service)

    assert CANARY in stored["dead_letters"]


async def test_secrets_are_given_to_known_askers_only(start_service: StartService) -> None:
    service = await start_service(**KEYS, REQUIRE_AUTHENTICATED_SENDER="true")
    login = urlsplit(service.rabbitmq_url).username
    async with PersistenceClient(service.rabbitmq_url, user_id=login) as known:
        user = await known.call(AddUser(mail="ada@example.org", password_hash=HASH))
        assert await known.lookup(GetExchangeCredentials(ex_id=1, public_key=OWN_PUBLIC)) is None
        assert await known.lookup(GetUserCredentials(mail="ada@example.org")) is not None
    async with PersistenceClient(service.rabbitmq_url) as unknown:
        assert await unknown.lookup(GetUser(uid=user.uid)) == user
        restricted: list[Lookup[Any]] = [
            GetExchangeCredentials(ex_id=1, public_key=OWN_PUBLIC),
            GetUserCredentials(mail="ada@example.org"),
        ]
        for lookup in restricted:
            with pytest.raises(Refusal) as refusal:
                await unknown.lookup(lookup)
            assert (refusal.value.code, refusal.value.field) == (ErrorCode.FORBIDDEN, "user_id")


async def test_its_own_changes_keep_the_cache_fresh(client: PersistenceClient) -> None:
    user = await client.call(AddUser(mail="ada@example.org"))
    assert await client.lookup(GetUser(uid=user.uid)) == user

    changed = await client.call(ModifyUser(uid=user.uid, updates=UserUpdates(name="Ada")))

    async with asyncio.timeout(5):
        while await client.lookup(GetUser(uid=user.uid)) != changed:
            await asyncio.sleep(0.02)


async def test_keys_are_made_and_changed_from_the_command_line(
    service: RunningService, client: PersistenceClient, nursery: Nursery
) -> None:
    _, keys, _ = await nursery.run("keygen", "--json", environment={})
    made = json.loads(keys)
    user = await client.call(AddUser(mail="ada@example.org"))
    catalog = await client.call(InstallExchange(name="kraken"))
    sealed = seal("the key", PUBLIC, uid=user.uid, field="api_key")
    await client.call(AddExchange(uid=user.uid, cat_ex_id=catalog.cat_ex_id, ex_name="main", api_key=sealed))
    urls = {
        "DATABASE_URL": service.database_url,
        "RABBITMQ_URL": service.rabbitmq_url,
        "REDIS_URL": service.redis_url,
    }
    both = {**urls, "STORAGE_KEYS": f"{made['STORAGE_KEYS']},{KEYS['STORAGE_KEYS']}"}

    code, said, _ = await nursery.run("rotate-key", "--json", environment=both)
    assert (code, json.loads(said.splitlines()[-1])["renewed"]) == (0, 1)
    _, said, _ = await nursery.run("rotate-key", "--json", environment=both)
    assert json.loads(said.splitlines()[-1])["renewed"] == 0
    without = {**urls, "STORAGE_KEYS": KEYS["STORAGE_KEYS"]}
    code, said, _ = await nursery.run("rotate-key", environment=without)
    assert (code, "exchanges/1 cannot be read" in said) == (1, True)
    code, _, complaint = await nursery.run("rotate-key", environment=urls)
    assert (code, "STORAGE_KEYS_FILE is not set" in complaint) == (2, True)
