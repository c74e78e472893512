"""Bots are found with what hangs on them."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import (
    AddBot,
    BotUpdates,
    EditBot,
    ErrorCode,
    GetBot,
    GetBotExchanges,
    GetBotFullList,
    GetBotList,
    GetBotParams,
    GetBotsByUser,
    GetBotStats,
    GetBotsWithDetails,
    GetBotWithDetails,
    GetTradingCurrency,
)
from contracts.base import Lookup
from contracts.errors import Refusal
from service.database import SessionMaker
from service.repositories import BotRepository
from tests.builders import Desk, Direct, a_desk, furnish
from tests.observe import answer, statements


class TestLookups:
    async def test_of_one_bot_agree(self, direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
        await furnish(direct, desk)
        bot_id = desk.bot.bot_id

        details = await answer(sessions, GetBotWithDetails(bot_id=bot_id))
        [same] = await answer(sessions, GetBotsWithDetails(bot_ids=[999, bot_id, bot_id]))
        params = await answer(sessions, GetBotParams(bot_id=bot_id))

        assert details == same
        assert (len(details.strategies), len(details.feeds), len(details.bot_exchanges)) == (1, 2, 1)
        assert details.strategies[0].params == {"period": "14"}
        assert (params.strategies, params.bot_exchanges) == (details.strategies, details.bot_exchanges)
        assert await answer(sessions, GetBot(bot_id=bot_id)) == desk.bot
        assert await answer(sessions, GetBotExchanges(bot_id=bot_id)) == details.bot_exchanges
        currency = GetTradingCurrency(bot_id=bot_id, ex_id=desk.account.ex_id)
        assert await answer(sessions, currency) == "ETH"

    @pytest.mark.parametrize(
        ("lookup", "nothing"),
        [
            (GetBot(bot_id=999), None),
            (GetBotWithDetails(bot_id=999), None),
            (GetBotParams(bot_id=999), None),
            (GetBotStats(bot_id=999), None),
            (GetTradingCurrency(bot_id=999, ex_id=1), None),
            (GetBotExchanges(bot_id=999), []),
            (GetBotsByUser(uid=999), []),
            (GetBotsWithDetails(bot_ids=[]), []),
        ],
        ids=lambda value: getattr(value, "wire_name", ""),
    )
    async def test_of_what_is_absent_give_nothing(
        self, sessions: SessionMaker, lookup: Lookup[Any], nothing: Any
    ) -> None:
        assert await answer(sessions, lookup) == nothing

    async def test_of_lists_go_on_where_they_ended(self, direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
        bots = [desk.bot, *[await direct.call(AddBot(uid=desk.user.uid, name=f"bot {i}")) for i in range(4)]]
        await direct.call(EditBot(bot_id=bots[3].bot_id, updates=BotUpdates(active=True, dry_run=True)))

        seen, cursor = [], None
        for _ in range(3):
            page = await answer(sessions, GetBotList(uid=desk.user.uid, limit=2, cursor=cursor))
            seen += [bot.bot_id for bot in page.bots]
            cursor = page.next_cursor
        full = await answer(sessions, GetBotFullList(limit=3))
        rest = await answer(sessions, GetBotFullList(limit=3, cursor=full.next_cursor))

        assert seen == [bot.bot_id for bot in bots]
        assert cursor is None
        assert [bot.bot_id for bot in full.bots + rest.bots] == seen
        active = await answer(sessions, GetBotList(active=True))
        assert [bot.bot_id for bot in active.bots] == [bots[3].bot_id]

    @pytest.mark.parametrize("cursor", ["x", "W10", "WyJ4Il0", "WzEsMl0", "Wy0xXQ", "W251bGxd", "W3RydWVd"])
    async def test_refuse_a_cursor_that_was_made_up(self, sessions: SessionMaker, cursor: str) -> None:
        with pytest.raises(Refusal) as refused:
            await answer(sessions, GetBotList(cursor=cursor))

        assert (refused.value.code, refused.value.field) == (ErrorCode.VALIDATION, "cursor")

    async def test_of_statistics_count_recent_trades_of_this_bot_only(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        other = await a_desk(direct)
        await direct.call(other.trade())
        await direct.call(desk.trade(size="2", price="10", roi="-0.5", timestamp="2020-01-01T00:00:00Z"))
        none = await answer(sessions, GetBotStats(bot_id=desk.bot.bot_id))
        await direct.call(desk.trade(size="2", price="10.1", roi="-0.5"))
        last = await direct.call(desk.trade(side="sell", size="1", price="0.3", roi="0.7"))
        await direct.call(desk.order())

        stats = await answer(sessions, GetBotStats(bot_id=desk.bot.bot_id, days=7))

        assert (none.total_trades, none.total_volume, none.last_trade) == (0, 0, None)
        assert stats.model_dump(mode="json") == {
            "bot_id": desk.bot.bot_id,
            "days": 7,
            "total_trades": 2,
            "total_volume": "20.5",
            "buy_volume": "20.2",
            "sell_volume": "0.3",
            "total_roi": "0.2",
            "open_orders": 1,
            "last_trade": last.model_dump(mode="json")["timestamp"],
        }


class TestLists:
    @pytest.mark.parametrize(
        "read",
        [
            lambda bots, ids: bots.get_bot_list(),
            lambda bots, ids: bots.get_bot_full_list(),
            lambda bots, ids: bots.get_bots_with_details(ids),
            lambda bots, ids: bots.get_bot_with_details(ids[0]),
        ],
        ids=["list", "full list", "details of many", "details of one"],
    )
    async def test_take_as_many_statements_for_many_bots_as_for_one(
        self,
        direct: Direct,
        sessions: SessionMaker,
        engine: AsyncEngine,
        read: Callable[[BotRepository, list[int]], Awaitable[Any]],
    ) -> None:
        ids: list[int] = []
        numbers = []
        for more in (1, 4):
            for _ in range(more):
                desk = await a_desk(direct)
                await furnish(direct, desk)
                ids.append(desk.bot.bot_id)
            async with sessions() as session:
                with statements(engine) as sent:
                    await read(BotRepository(session), ids)
            numbers.append(len(sent))

        assert numbers[0] == numbers[1] <= 5
