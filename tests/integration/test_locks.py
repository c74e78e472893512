"""Who edits a row does not hold up those who only refer to it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text

from contracts import DeleteBot
from contracts.base import Command
from service.base import Base
from service.database import SessionMaker
from service.executor import Executor
from service.models import Bot, Exchange, Symbol, User
from service.repositories.base import moves_key
from service.unit_of_work import UnitOfWork
from tests.builders import Desk, received

Edit = Callable[[UnitOfWork, Desk], Awaitable[Any]]


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda work, desk: work.bots.edit_bot(desk.bot.bot_id, {"dry_run": True}), id="bot"),
        pytest.param(lambda work, desk: work.users.update(desk.user.uid, {"name": "Ada"}), id="user"),
        pytest.param(lambda work, desk: work.exchanges.update(desk.account.ex_id, {"sandbox": True}), id="account"),
        pytest.param(
            lambda work, desk: work.symbols.update_symbol(desk.symbol.symbol_id, {"decimals": 2}), id="symbol"
        ),
    ],
)
async def test_a_trade_is_recorded_while_what_it_refers_to_is_edited(
    executor: Executor, desk: Desk, sessions: SessionMaker, edit: Edit
) -> None:
    commands: list[Command[Any]] = [desk.trade(), desk.order(), desk.dry_trade()]
    async with sessions.begin() as session:
        await edit(UnitOfWork(session), desk)
        assert await session.scalar(text("SELECT count(*) FROM pg_locks WHERE mode = 'RowExclusiveLock'"))

        async with asyncio.timeout(3):
            replies = [await executor.execute([received(command)]) for command in commands]

    assert all(reply.ok for [reply] in replies)


async def test_a_trade_waits_for_the_deletion_of_its_bot(
    executor: Executor, desk: Desk, sessions: SessionMaker
) -> None:
    async with sessions.begin() as session:
        await UnitOfWork(session).bots.delete_bot(desk.bot.bot_id)
        recording = asyncio.ensure_future(executor.execute([received(desk.trade())]))
        done, _ = await asyncio.wait({recording}, timeout=0.3)
        assert not done

    [reply] = await recording
    assert reply.error is not None
    assert (reply.error.code, reply.error.field) == ("not_found", "bot_id")
    [[again]] = [await executor.execute([received(DeleteBot(bot_id=desk.bot.bot_id))])]
    assert again.error is not None


@pytest.mark.parametrize(
    ("model", "names", "moves"),
    [
        (Bot, {"active", "dry_run"}, False),
        (Bot, {"uid"}, True),
        (Exchange, {"active", "account"}, False),
        (Exchange, {"active", "uid"}, True),
        (Symbol, {"decimals", "status"}, False),
        (Symbol, {"cat_ex_id"}, True),
        (Symbol, {"exchange_id"}, True),
        (User, {"name", "active"}, False),
        (User, {"external_id"}, True),
    ],
)
def test_a_column_of_a_key_is_known_as_one(model: type[Base], names: set[str], moves: bool) -> None:
    assert moves_key(model, names) is moves
