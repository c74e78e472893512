"""No list asks the database once per row."""

import json
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import (
    AddBot,
    AddBotStrategy,
    AddExchange,
    AddExchangeToBot,
    AddFeedToBot,
    AddSymbol,
    AddUser,
    BalanceFields,
    InstallExchange,
    InstallStrategy,
    PositionFields,
    RecordTicks,
    SaveBotLog,
    TickFields,
    UpsertBalances,
    UpsertPositions,
    View,
)
from contracts.base import LOOKUP_TYPES, Lookup, answer_adapter
from service.vault import Vault
from tests.builders import Asking, Direct, with_credentials
from tests.cases import Scene, a_lookup, a_scene
from tests.observe import statements


def is_list(answer: Any) -> bool:
    """Whether an answer is a list, or holds one."""
    if get_origin(answer) is list:
        return True
    if isinstance(answer, type) and issubclass(answer, View):
        return any(get_origin(field.annotation) is list for field in answer.model_fields.values())
    return any(is_list(part) for part in get_args(answer) if get_origin(answer) is not dict)


# Its list is one of what is wrong with the servers.
NO_LISTS_OF_ROWS = {"check_database_health"}
LISTS = [kind for name, kind in LOOKUP_TYPES.items() if name not in NO_LISTS_OF_ROWS and is_list(kind.answer_type())]


def broad(kind: type[Lookup[Any]], scene: Scene) -> Lookup[Any]:
    """The question with as little narrowing it down as it takes."""
    narrow = a_lookup(kind, scene).model_dump(mode="json")
    required = {name for name, field in kind.model_fields.items() if field.is_required()}
    try:
        return kind.model_validate({name: narrow[name] for name in required})
    except ValidationError:
        return kind.model_validate({"uid": scene.own.user.uid})


def length(answer: Any) -> int:
    """How long the longest list in an answer is."""
    if isinstance(answer, list):
        return len(answer)
    return max((len(part) for part in answer.values() if isinstance(part, list)), default=0)


async def more_of_everything(direct: Direct, scene: Scene, number: int) -> None:
    own, cat_ex_id = scene.own, scene.own.catalog.cat_ex_id
    at = f"2026-01-0{number}T00:00:00Z"
    await direct.call(AddUser(mail=f"a{number}@example.org", manager=own.user.uid))
    account = await direct.call(AddExchange(uid=own.user.uid, cat_ex_id=cat_ex_id, ex_name=f"more {number}"))
    await direct.call(InstallExchange(name=f"a{number}"))
    symbol = await direct.call(AddSymbol(symbol=f"ETH{number}/USD", base="aa", cat_ex_id=cat_ex_id))
    await direct.call(InstallStrategy(name=f"a{number}", params={"a": "1"}))
    bot = await direct.call(AddBot(uid=own.user.uid, name=f"more {number}"))
    await direct.call(AddExchangeToBot(bot_id=bot.bot_id, ex_id=account.ex_id))
    for bot_id in (own.bot.bot_id, bot.bot_id):
        await direct.call(AddBotStrategy(bot_id=bot_id, cat_str_id=scene.template.cat_str_id))
        await direct.call(AddFeedToBot(bot_id=bot_id, symbol_id=symbol.symbol_id, timeframe="1d"))
    await direct.call(AddExchangeToBot(bot_id=own.bot.bot_id, ex_id=account.ex_id))
    await direct.call(SaveBotLog(bot_id=own.bot.bot_id, message="x"))
    await direct.call(own.simulation(name=f"more {number}"))
    await direct.call(own.order())
    await direct.call(own.trade())
    await direct.call(own.trade(symbol_id=symbol.symbol_id))
    await direct.call(own.dry_trade())
    ex_id = own.account.ex_id
    balance = BalanceFields(currency=f"C{number}", free="1", used="0")
    await direct.call(UpsertBalances(ex_id=ex_id, balances=[balance], timestamp=at))
    position = PositionFields(symbol_id=symbol.symbol_id, volume="1")
    await direct.call(UpsertPositions(ex_id=ex_id, positions=[position], timestamp=at))
    tick = TickFields(symbol_id=own.symbol.symbol_id, price="1", timestamp=at)
    await direct.call(RecordTicks(ticks=[tick]))


# Of which it takes more than there is, or which are told which ones to give.
_AS_LONG_AS_BEFORE = {"get_bots_with_details"}


async def test_a_long_list_takes_as_many_statements_as_a_short_one(
    direct: Direct, asking: Asking, vault: Vault, engine: AsyncEngine
) -> None:
    scene = await a_scene(direct, vault)
    await with_credentials(direct, vault, scene.own.account)
    await more_of_everything(direct, scene, 1)

    async def asked() -> dict[str, tuple[int, int]]:
        """Length and number of statements of each list."""
        found = {}
        for kind in LISTS:
            lookup = broad(kind, scene)
            with statements(engine) as sent:
                answer = await asking.ask(lookup)
            as_json = json.loads(answer_adapter(kind).dump_json(answer))
            found[kind.wire_name] = (length(as_json), len(sent))
        return found

    short = await asked()
    for number in (2, 3, 4):
        await more_of_everything(direct, scene, number)
    long = await asked()

    assert {name: count for name, (_, count) in long.items()} == {name: count for name, (_, count) in short.items()}
    assert max(count for _, count in long.values()) <= 5
    grown = {name for name in long if long[name][0] > short[name][0]}
    assert set(long) - grown == _AS_LONG_AS_BEFORE
    assert len(LISTS) >= 35
