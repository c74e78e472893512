"""A user, an account and a bot, set up together or not at all."""

from typing import Any

import pytest
from sqlalchemy import func, select

from contracts import (
    CreateTradingSetup,
    GetBotWithDetails,
    GetExchange,
    GetTradingCurrency,
    GetUser,
    InstallExchange,
)
from service.database import SessionMaker
from service.executor import Executor
from service.models import Bot, Exchange, User
from tests.builders import Desk, Direct, received
from tests.observe import answer, events, refused

HASH = "0" * 64


def a_setup(cat_ex_id: int, **changes: dict[str, Any]) -> CreateTradingSetup:
    body: dict[str, Any] = {
        "user": {"mail": "ada@example.org", "password_hash": HASH, "name": "Ada"},
        "exchange": {"cat_ex_id": cat_ex_id, "ex_name": "main", "sandbox": True},
        "bot": {"name": "bot", "dry_run": True, "active": True},
    }
    for part, fields in changes.items():
        body[part] = {**body[part], **fields}
    return CreateTradingSetup.model_validate(body)


async def test_stores_and_announces_all_of_it(direct: Direct, sessions: SessionMaker) -> None:
    catalog = await direct.call(InstallExchange(name="kraken"))

    setup = await direct.call(a_setup(catalog.cat_ex_id))

    user = await answer(sessions, GetUser(uid=setup.uid))
    account = await answer(sessions, GetExchange(ex_id=setup.ex_id))
    bot = await answer(sessions, GetBotWithDetails(bot_id=setup.bot_id))
    assert (user.mail, user.name, account.uid, account.sandbox) == ("ada@example.org", "Ada", setup.uid, True)
    assert (bot.uid, bot.active, bot.dry_run) == (setup.uid, True, True)
    assert [link.ex_id for link in bot.bot_exchanges] == [setup.ex_id]
    assert await answer(sessions, GetTradingCurrency(bot_id=setup.bot_id, ex_id=setup.ex_id)) == "USDT"
    for kind in ("user.created", "exchange.created", "bot.created", "bot.exchange_added"):
        assert len(await events(sessions, kind)) == 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"user": {"mail": "taken@example.org"}}, ("conflict", "user.mail")),
        ({"user": {"manager": 999}}, ("not_found", "user.manager")),
        ({"exchange": {"cat_ex_id": 999}}, ("not_found", "exchange.cat_ex_id")),
    ],
)
async def test_stores_nothing_if_a_part_is_refused(
    direct: Direct,
    sessions: SessionMaker,
    desk: Desk,
    changes: dict[str, dict[str, Any]],
    expected: tuple[str, str],
) -> None:
    await direct.call(a_setup(desk.catalog.cat_ex_id, user={"mail": "taken@example.org"}))
    before = await _rows(sessions)

    assert await refused(direct.executor, a_setup(desk.catalog.cat_ex_id, **changes)) == expected

    assert await _rows(sessions) == before
    assert len(await events(sessions, "user.created")) == 2


async def test_is_set_up_once_however_often_it_is_delivered(
    direct: Direct, executor: Executor, desk: Desk, sessions: SessionMaker
) -> None:
    message = received(a_setup(desk.catalog.cat_ex_id))

    [first] = await executor.execute([message])
    [second] = await executor.execute([message])

    assert first.ok
    assert (second.data, second.meta.duplicate) == (first.data, True)
    assert await _rows(sessions) == [2, 2, 2]


async def _rows(sessions: SessionMaker) -> list[int]:
    async with sessions() as session:
        return [await session.scalar(select(func.count()).select_from(model)) or 0 for model in (User, Exchange, Bot)]
