"""What is wrong is refused with its code and its field, command by command, and nothing is written."""

import base64
import json
from collections.abc import Iterator
from typing import Any, Final

import pytest
from sqlalchemy import text

from contracts import FillOrder, SearchSymbols, SearchUsers, UpdateOrderStatus
from contracts.base import COMMAND_TYPES, LOOKUP_TYPES, Command, Reply
from contracts.client import new_message_id
from contracts.topology import FRESH_HEADER
from service.base import Base
from service.database import SessionMaker
from service.executor import Executor
from service.received import Received
from service.vault import Vault
from tests.builders import Asking, Direct, received
from tests.cases import Scene, a_lookup, a_scene, commands

Path = tuple[str | int, ...]
Bad = tuple[str, dict[str, Any], tuple[str, str]]
"""A command, its body, and the code and field that it is refused with."""

# What a refused command leaves behind is its record.
_RECORDS: Final = {"dead_letters", "inbox", "outbox", "event_streams", "relay_lease"}


@pytest.fixture
async def scene(direct: Direct, vault: Vault) -> Scene:
    return await a_scene(direct, vault)


class Judge:
    """Sends what is bad, and sees that it is refused for the right reason without a trace."""

    def __init__(self, executor: Executor, sessions: SessionMaker) -> None:
        self._executor = executor
        self._sessions = sessions

    async def refuses(self, bad: list[Bad]) -> None:
        assert bad
        before = await self._everything()
        replies = await self._executor.execute(
            [Received(name, json.dumps(body).encode(), message_id=str(new_message_id())) for name, body, _ in bad]
        )
        otherwise = [
            (name, expected, reply.error and (reply.error.code.value, reply.error.field))
            for (name, _, expected), reply in zip(bad, replies, strict=True)
            if reply.error is None or (reply.error.code.value, reply.error.field) != expected
        ]
        assert otherwise == []
        assert await self._everything() == before

    async def _everything(self) -> dict[str, str]:
        tables = [name for name in Base.metadata.tables if name not in _RECORDS]
        async with self._sessions() as session:
            return {
                table: await session.scalar(text(f'SELECT md5(string_agg(t::text, $$,$$)) FROM "{table}" AS t')) or ""  # noqa: S608
                for table in tables
            }


@pytest.fixture
def judge(executor: Executor, sessions: SessionMaker) -> Judge:
    return Judge(executor, sessions)


def bodies(scene: Scene) -> dict[str, dict[str, Any]]:
    """A good body of every command."""
    return {name: json.loads(received(command).body) for name, command in commands(scene).items()}


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """What stands in a body, and where; of a list the first only."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from leaves(part, (*path, name))
    elif isinstance(value, list) and value:
        yield from leaves(value[0], (*path, 0))
    else:
        yield path, value


def with_other(body: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    copy: Any = json.loads(json.dumps(body))
    at: Any = copy
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    changed: dict[str, Any] = copy
    return changed


def dotted(path: Path) -> str:
    return ".".join(map(str, path))


# Objects whose names and values are the sender's own.
_FREE: Final = ("data", "params", "results")


async def test_a_wrong_type(scene: Scene, judge: Judge) -> None:
    await judge.refuses(
        [
            (name, with_other(body, path, {"a": [1]}), ("validation", dotted(path)))
            for name, body in bodies(scene).items()
            for path, _ in leaves(body)
            if not any(step in _FREE for step in path)
        ]
    )


# Texts that may be as long as a message.
_UNLIMITED: Final = {"note", "description", "ohlcv_view"}


async def test_a_text_that_is_too_long(scene: Scene, judge: Judge) -> None:
    await judge.refuses(
        [
            (name, with_other(body, path, "X" * 9_000), ("validation", dotted(path)))
            for name, body in bodies(scene).items()
            for path, value in leaves(body)
            if isinstance(value, str) and path[-1] not in _UNLIMITED and not any(step in _FREE for step in path)
        ]
    )


async def test_a_field_that_is_none(scene: Scene, judge: Judge) -> None:
    await judge.refuses(
        [
            (name, {**body, field: "x"}, ("validation", field))
            for name, body in bodies(scene).items()
            for field in ("Uid", "id", "actor_uid")
        ]
    )


_OWNED: Final = ("uid", "manager", "bot_id", "ex_id", "cat_ex_id", "symbol_id", "order_id", "str_id", "cat_str_id")
_FORGIVING: Final = {
    # A log entry may be about an account that is gone.
    *(("save_bot_log", "ex_id"), ("save_bot_logs", "ex_id")),
    # Nothing there is nothing to take away.
    ("remove_exchange_from_bot", "ex_id"),
}


async def test_a_reference_to_nothing(scene: Scene, judge: Judge) -> None:
    bad: list[Bad] = []
    for name, body in bodies(scene).items():
        for path, value in leaves(body):
            field = path[-1]
            if field in _OWNED and isinstance(value, int) and (name, field) not in _FORGIVING:
                # What to change about a row is named without the way there.
                said = str(field) if path[0] == "updates" else dotted(path)
                expected = ("not_found", said)
                if field == "uid" and "symbol_id" in body:
                    # The bot is there, and not that user's.
                    expected = ("forbidden", "bot_id")
                bad.append((name, with_other(body, path, 2**31 - 1), expected))
    # Lists whose entries are judged one by one say so in the answer, and are not refused as a whole.
    await judge.refuses([each for each in bad if each[0] not in ("add_symbols", "record_trades")])


async def test_what_belongs_to_another(scene: Scene, judge: Judge) -> None:
    own, other, good = scene.own, scene.other, bodies(scene)
    foreign = {"bot_id": other.bot.bot_id, "ex_id": other.account.ex_id, "symbol_id": other.symbol.symbol_id}
    bad: list[Bad] = [
        (name, {**good[name], field: value}, ("forbidden", field))
        for name in ("create_order", "record_trade")
        for field, value in foreign.items()
    ]
    dry = {**good["record_dry_trade"], "bot_id": own.bot.bot_id, "uid": own.user.uid, "ex_id": own.account.ex_id}
    dry["symbol_id"] = own.symbol.symbol_id
    bad += [("record_dry_trade", {**dry, field: value}, ("forbidden", field)) for field, value in foreign.items()]
    bad += [
        ("record_trade", {**good["record_trade"], "uid": other.user.uid}, ("forbidden", "bot_id")),
        ("add_exchange_to_bot", {"bot_id": own.bot.bot_id, "ex_id": foreign["ex_id"]}, ("forbidden", "ex_id")),
        ("add_feed_to_bot", {**good["add_feed_to_bot"], "ex_id": foreign["ex_id"]}, ("forbidden", "ex_id")),
        ("add_feed_to_bot", {**good["add_feed_to_bot"], "bot_id": foreign["bot_id"]}, ("forbidden", "str_id")),
        (
            "add_feed_to_bot",
            {**good["add_feed_to_bot"], "symbol_id": foreign["symbol_id"]},
            ("forbidden", "symbol_id"),
        ),
        ("del_bot_strategy", {"bot_id": foreign["bot_id"], "str_id": scene.strategy.str_id}, ("forbidden", "str_id")),
        ("upsert_balances", {**good["upsert_balances"], "uid": other.user.uid}, ("forbidden", "ex_id")),
        *(
            (
                "upsert_positions",
                with_other(good["upsert_positions"], ("positions", 0, field), foreign[field]),
                ("forbidden", f"positions.0.{field}"),
            )
            for field in ("bot_id", "symbol_id")
        ),
        ("edit_bot", {"bot_id": own.bot.bot_id, "updates": {"uid": other.user.uid}}, ("conflict", "uid")),
        ("update_exchange", {"ex_id": own.account.ex_id, "updates": {"uid": other.user.uid}}, ("conflict", "uid")),
    ]
    await judge.refuses(bad)


async def test_an_order_of_another_users_bot(scene: Scene, direct: Direct, judge: Judge) -> None:
    order = await direct.call(scene.other.order())
    body = {**bodies(scene)["record_trade"], "order_id": order.order_id}

    await judge.refuses([("record_trade", body, ("forbidden", "order_id"))])


async def test_a_version_that_has_moved_on(scene: Scene, judge: Judge) -> None:
    good = bodies(scene)
    versioned = {name for name, kind in COMMAND_TYPES.items() if "expected_version" in kind.model_fields}

    await judge.refuses(
        [
            (name, {**good[name], "expected_version": 99}, ("conflict", "expected_version"))
            for name in sorted(versioned & good.keys())
        ]
    )
    assert len(versioned) >= 16


async def test_a_step_that_an_order_cannot_take(scene: Scene, direct: Direct, judge: Judge) -> None:
    over = await direct.call(scene.own.order())
    await direct.call(UpdateOrderStatus(order_id=over.order_id, status="cancelled"))
    half: Command[Any] = FillOrder(order_id=scene.pending.order_id, price="1", size="2")
    await direct.call(half)

    await judge.refuses(
        [
            *(
                (
                    "update_order_status",
                    {"order_id": over.order_id, "status": status},
                    ("invalid_transition", "status"),
                )
                for status in ("pending", "open", "filled", "rejected")
            ),
            ("fill_order", {"order_id": over.order_id, "price": "1"}, ("invalid_transition", "order_id")),
            (
                "update_order_status",
                {"order_id": scene.pending.order_id, "status": "partially_filled", "filled_size": "1"},
                ("invalid_transition", "filled_size"),
            ),
            (
                "update_order_status",
                {"order_id": scene.pending.order_id, "status": "open"},
                ("invalid_transition", "status"),
            ),
            ("cancel_open_orders", {"bot_id": 1, "to_status": "filled"}, ("validation", "body")),
            ("fill_order", {"order_id": 1, "price": "1", "size": "9" * 38}, ("validation", "size")),
        ]
    )


async def test_a_secret_as_it_is(scene: Scene, judge: Judge) -> None:
    good = bodies(scene)
    keys = ("api_key", "api_secret", "passphrase")
    plain = ("hunter2", "sealed.v1.x.y", "5f4dcc3b5aa765d61d8327deb882cf99", "PASSWORD", "$1$abc")

    await judge.refuses(
        [
            *(("add_exchange", {**good["add_exchange"], key: "plain"}, ("validation", key)) for key in keys),
            *(
                (
                    "update_exchange",
                    with_other(good["update_exchange"], ("updates", key), "x"),
                    ("validation", f"updates.{key}"),
                )
                for key in keys
            ),
            ("modify_user", {"uid": scene.user.uid, "updates": {"f2a": "123456"}}, ("validation", "updates.f2a")),
            *(
                ("add_user", {**good["add_user"], "password_hash": word}, ("validation", "password_hash"))
                for word in plain
            ),
            *(
                (
                    "update_password",
                    {**good["update_password"], "password_hash": word},
                    ("validation", "password_hash"),
                )
                for word in plain
            ),
            (
                "create_trading_setup",
                with_other(good["create_trading_setup"], ("user", "password_hash"), "hunter2"),
                ("validation", "user.password_hash"),
            ),
            *(
                (name, {**good[name], "params": {word: "x"}}, ("validation", f"params.{word}.[key]"))
                for name in ("install_exchange", "set_exchange_params", "install_strategy", "edit_strategy_params")
                for word in ("api_key", "Password", "client-secret")
            ),
        ]
    )


async def test_a_symbol_that_is_not_written_like_one(scene: Scene, judge: Judge) -> None:
    good = bodies(scene)
    names = ("btc/usdt", "BTC/usdt", "", "BTC USDT", "BTC\tUSDT", "X" * 41, "BTC\x00")
    bad: list[Bad] = [
        ("add_symbol", {**good["add_symbol"], "symbol": name}, ("validation", "symbol")) for name in names
    ]
    for command, path in (
        ("add_symbols", ("symbols", 0, "symbol")),
        ("update_symbol", ("updates", "symbol")),
        ("sync_exchange_symbols", ("symbols", 1, "symbol")),
    ):
        bad += [(command, with_other(good[command], path, name), ("validation", dotted(path))) for name in names]
    await judge.refuses(bad)


class TestLookups:
    @pytest.fixture
    def good(self, scene: Scene) -> dict[str, dict[str, Any]]:
        return {
            name: json.loads(a_lookup(kind, scene).model_dump_json(exclude_unset=True))
            for name, kind in LOOKUP_TYPES.items()
        }

    async def _refused(self, asking: Asking, name: str, body: dict[str, Any]) -> tuple[str, str | None]:
        raw = await asking.server.reply(Received(name, json.dumps(body).encode(), headers={FRESH_HEADER: True}))
        reply = Reply.model_validate_json(raw)
        assert reply.error is not None, (name, body, reply.data)
        return reply.error.code.value, reply.error.field

    async def test_a_number_outside_of_its_limits(self, asking: Asking, good: dict[str, dict[str, Any]]) -> None:
        limits = {"page": (0, -1, 1_000_001), "page_size": (0, 1_001), "limit": (0, -1, 1_001), "days": (0, 3_651)}
        limits |= {"uid": (0, -1, 2**31), "bot_id": (0, 2**31), "order_id": (0, 2**63)}
        seen = set()
        for name, body in good.items():
            for field in limits.keys() & LOOKUP_TYPES[name].model_fields.keys():
                seen.add(field)
                for value in (*limits[field], "1", 1.5, True):
                    assert await self._refused(asking, name, {**body, field: value}) == ("validation", field)
        assert seen == limits.keys()

    async def test_a_cursor_that_no_list_gave(self, asking: Asking, good: dict[str, dict[str, Any]]) -> None:
        lists = [name for name in good if "cursor" in LOOKUP_TYPES[name].model_fields]
        assert len(lists) >= 15
        for name in lists:
            for cursor in _MADE_UP:
                refused = await self._refused(asking, name, {**good[name], "cursor": cursor})
                assert refused == ("validation", "cursor"), (name, cursor)

    async def test_wildcards_stand_for_themselves(self, asking: Asking, scene: Scene) -> None:
        for word in ("%", "_", "\\", "%%", "a%"):
            assert await asking.ask(SearchUsers(query=word)) == []
            assert await asking.ask(SearchSymbols(query=word)) == []


def _cursor(*key: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


_MADE_UP: Final = [
    *("x", "WzFd" * 20, "Im1hZGUgdXAi", "!!", "", "A" * 501),
    *(_cursor(), _cursor(-1), _cursor("1"), _cursor(True), _cursor(2**63), _cursor(1, 2, 3), _cursor(None)),
    *(_cursor("2024-01-01T00:00:00", 1), _cursor("now", 1), _cursor("2024-01-01T00:00:00Z", "1")),
    *(_cursor("0001-01-01T00:00:00+14:00", -1), _cursor({"a": 1}), _cursor([1])),
]
