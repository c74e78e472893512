"""What was refused is kept, and carried out or discarded when an operator says so."""

import json
from typing import Any

from contracts import AddSymbol
from contracts.client import PersistenceClient
from tests.builders import a_desk
from tests.e2e.conftest import SharedService
from tests.e2e.run import all_is_announced, changes, stored
from tests.e2e.wire import Listener, eventually, rows


class TestADeadLetter:
    async def test_is_carried_out_by_a_replay_once_its_reason_is_gone(
        self, shared: SharedService, bot: PersistenceClient
    ) -> None:
        desk = await a_desk(bot)
        trade = desk.trade(symbol_id=desk.symbol.symbol_id + 1)
        await all_is_announced(shared.database_url)
        async with Listener.on(shared.rabbitmq_url) as listener:
            message_id = await bot.publish(trade)
            await listener.until(bool)

            [listed] = await open_letters(shared, message_id)
            assert {
                name: listed[name] for name in ("command", "message_id", "code", "field", "state", "attempts")
            } == {
                "command": "record_trade",
                "message_id": str(message_id),
                "code": "not_found",
                "field": "symbol_id",
                "state": "open",
                "attempts": 1,
            }
            number = str(listed["dead_letter_id"])
            await persistence(shared, "dead-letters", "replay", number)
            await eventually(lambda: letter_is(shared.database_url, message_id, attempts=2, state="open"))

            added = await bot.call(AddSymbol(symbol="ADA/ETH", cat_ex_id=desk.catalog.cat_ex_id))
            assert added.symbol_id == trade.symbol_id
            await persistence(shared, "dead-letters", "replay", number)
            await eventually(lambda: letter_is(shared.database_url, message_id, attempts=2, state="replayed"))
            await bot.call(desk.trade())
            await listener.until(lambda heard: len(changes(heard)) >= 4)

        assert await open_letters(shared, message_id) == []
        shown = json.loads(await persistence(shared, "dead-letters", "show", number, "--json"))
        assert (shown["state"], json.loads(shown["body"])["ex_trade_id"]) == ("replayed", trade.ex_trade_id)
        assert next(iter(await stored(shared.database_url, desk))).ex_trade_id == trade.ex_trade_id
        assert [event["type"] for event in listener.distinct] == [
            "command.rejected",
            "symbol.created",
            "trade.recorded",
            "trade.recorded",
        ]
        # The message itself is done with: its sender gets the answer and nothing happens again.
        answer, meta = await bot.call_with_meta(trade, message_id=message_id)
        assert (answer.ex_trade_id, meta.duplicate) == (trade.ex_trade_id, True)
        complaint = await persistence(shared, "dead-letters", "replay", number, fails=True)
        assert "is replayed, not open" in complaint

    async def test_can_be_discarded_and_is_then_never_carried_out(
        self, shared: SharedService, bot: PersistenceClient
    ) -> None:
        desk = await a_desk(bot)
        message_id = await bot.publish(desk.trade(symbol_id=desk.symbol.symbol_id + 1))
        await eventually(lambda: letter_is(shared.database_url, message_id, attempts=1, state="open"))
        [letter] = await open_letters(shared, message_id)
        number = str(letter["dead_letter_id"])

        await persistence(shared, "dead-letters", "discard", number)

        assert await letter_is(shared.database_url, message_id, attempts=1, state="discarded")
        complaint = await persistence(shared, "dead-letters", "replay", number, fails=True)
        assert "is discarded, not open" in complaint
        complaint = await persistence(shared, "dead-letters", "discard", number, fails=True)
        assert f"no open dead letter {number}" in complaint


async def letter_is(database_url: str, message_id: object, *, attempts: int, state: str) -> bool:
    query = "SELECT attempts, state FROM dead_letters WHERE message_id = $1"
    [letter] = await rows(database_url, query, str(message_id)) or [{}]
    return letter == {"attempts": attempts, "state": state}


async def open_letters(shared: SharedService, message_id: object) -> list[dict[str, Any]]:
    """What ``dead-letters list`` tells programs of a message."""
    letters = json.loads(await persistence(shared, "dead-letters", "list", "--json"))
    return [letter for letter in letters if letter["message_id"] == str(message_id)]


async def persistence(shared: SharedService, *arguments: str, fails: bool = False) -> str:
    """What ``persistence`` prints."""
    code, output, complaint = await shared.persistence(*arguments, COLUMNS="200")
    assert (code != 0) == fails, complaint
    assert "Traceback" not in complaint
    return complaint if fails else output
