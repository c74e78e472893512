"""Whatever is sent, the answer is one of the contract, and what is good beside it is stored."""

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts.base import COMMAND_TYPES, LOOKUP_TYPES, Reply
from contracts.client import new_message_id
from contracts.errors import ErrorCode
from contracts.topology import FRESH_HEADER
from service.database import SessionMaker
from service.executor import Executor
from service.models import Trade
from service.received import Received
from service.vault import Vault
from tests.builders import Asking, Desk, Direct, a_desk, received
from tests.cases import Scene, a_lookup, a_scene, commands
from tests.fresh import taken_back

_DEEP: Final = json.loads("[" * 70 + "]" * 70)
NASTY: Final[list[Any]] = [
    *(None, True, False, [], {}, [[]], {"a": {"b": [1]}}, _DEEP, [1] * 1_001, ["x"], [None]),
    *(0, -1, 1, 2, 7, 999_999, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**40, 10**120),
    *(1.5, 0.1, -0.0, 1e308, 5e-324, 0.1234567890123456, float("nan"), float("inf")),
    *("", " ", "a", "\x00", "a\x00b", "\ud800", "\udfff\ud800", "é" * 60, "x" * 10_000, "🚀" * 41),
    *("0", "-0", "0.1", "1e-18", "1e-19", "1E+400", "1e999999999", "NaN", "-Infinity", "sNaN", "9" * 39, "1_0", "٣"),
    *("9" * 38, f"{'9' * 20}.{'9' * 18}", f"0.{'0' * 18}1", "-1", "0x10"),
    *("2024-01-01T00:00:00", "2024-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"),
    *("9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "2024-13-01T00:00:00Z", "now"),
    *("%", "_", "\\", "' OR 1=1 --", "btc/usdt", "BTC/USDT", "x" * 41, "x" * 51, "a@b", "filled", "buy", "1m", "0m"),
    *("$argon2id$v=19$x", "f" * 64, "sealed.v1.0123456789abcdef." + "A" * 70, "WzFd", "amq.gen-x"),
]

_NAMES: Final = ["", "a", "api_key", "uid", "\x00", "é", "__class__", "expected_version", "cursor"]

Path = tuple[str | int, ...]


def _paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """Where something stands in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in inner:
        yield (*path, name)
        yield from _paths(part, (*path, name))


def _changed(value: Any, path: Path, draw: Any) -> Any:
    """The value with something else, or nothing, or one thing more, at a place."""
    copy: Any = json.loads(json.dumps(value))
    at: Any = copy
    for step in path[:-1]:
        at = at[step]
    how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "rename", "twice"]))
    if how == "remove":
        del at[path[-1]]
    elif how == "add" and isinstance(at, dict):
        at[
            draw(st.sampled_from(["", "a", "api_key", "uid", "\x00", "é", "__class__", "expected_version", "cursor"]))
        ] = draw(st.sampled_from(NASTY))
    elif how == "rename" and isinstance(at, dict):
        at[draw(st.sampled_from(["x" * 60, "\ud800", "\x00", "Password", ""]))] = at.pop(path[-1])
    elif how == "twice" and isinstance(at, list):
        at.append(at[-1])
    else:
        at[path[-1]] = draw(st.sampled_from(NASTY))
    return copy


@st.composite
def near_valid(draw: Any, good: dict[str, dict[str, Any]]) -> tuple[str, bytes]:
    """A name and a body that is nearly, or still, a good one of that name."""
    name = draw(st.sampled_from(sorted(good)))
    body: Any = good[name]
    for _ in range(draw(st.integers(0, 2))):
        paths = list(_paths(body)) if isinstance(body, dict) else []
        body = _changed(body, draw(st.sampled_from(paths)), draw) if paths else draw(st.sampled_from(NASTY))
    raw = json.dumps(body).encode()
    cut = draw(st.integers(0, 60))
    return name, raw[:-1] if cut == 0 else raw


@pytest.fixture
async def scene(direct: Direct, vault: Vault) -> Scene:
    return await a_scene(direct, vault)


@pytest.fixture
async def keeper(direct: Direct, scene: Scene) -> Desk:
    """A desk whose ids nothing nasty names; what is sent for it is good."""
    return await a_desk(direct)


@given(data=st.data())
async def test_commands_are_carried_out_or_refused_with_a_reason(
    engine: AsyncEngine, scene: Scene, keeper: Desk, data: st.DataObject
) -> None:
    bodies: dict[str, dict[str, Any]] = {name: {} for name in COMMAND_TYPES}
    bodies |= {name: json.loads(received(command).body) for name, command in commands(scene).items()}
    batch: list[Received] = []
    for name, body in data.draw(st.lists(near_valid(bodies), min_size=1, max_size=20)):
        reply_to = "replies" if len(body) % 2 else None
        batch.append(Received(name, body, message_id=str(new_message_id()), reply_to=reply_to))
        batch.append(received(keeper.trade(), reply_to=reply_to))

    async with taken_back(engine, scene.vault) as sessions:
        replies = await Executor(sessions).execute(batch)
        stored = await _trades(sessions, keeper)

    for message, reply in zip(batch, replies, strict=True):
        Reply.model_validate_json(reply.model_dump_json())
        assert reply.ok == (reply.error is None)
        if reply.error is not None:
            said = (message.command, message.body[:500], reply.error)
            assert reply.error.code in _REFUSALS, said
            assert reply.error.message, said
    assert all(reply.ok for reply in replies[1::2])
    assert stored == len(batch) // 2


_REFUSALS: Final = {
    *(ErrorCode.VALIDATION, ErrorCode.NOT_FOUND, ErrorCode.CONFLICT),
    *(ErrorCode.FORBIDDEN, ErrorCode.INVALID_TRANSITION),
}


async def _trades(sessions: SessionMaker, desk: Desk) -> int:
    async with sessions() as session:
        return await session.scalar(select(func.count()).where(Trade.uid == desk.user.uid)) or 0


@given(data=st.data())
async def test_lookups_are_answered_or_refused_with_a_reason(
    asking: Asking, scene: Scene, data: st.DataObject
) -> None:
    good = {
        name: json.loads(a_lookup(kind, scene).model_dump_json(exclude_unset=True))
        for name, kind in LOOKUP_TYPES.items()
    }
    for name, body in data.draw(st.lists(near_valid(good), min_size=1, max_size=20)):
        raw = await asking.server.reply(Received(name, body, headers={FRESH_HEADER: True}))

        reply = Reply.model_validate_json(raw)
        if reply.error is not None:
            assert reply.error.code in _REFUSALS, (name, body[:500], reply.error)


async def test_every_good_lookup_is_answered(asking: Asking, scene: Scene) -> None:
    for kind in LOOKUP_TYPES.values():
        await asking.ask(a_lookup(kind, scene))
