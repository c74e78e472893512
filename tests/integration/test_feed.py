"""Feeds belong to a bot, each to one place, and are replaced as a set."""

from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import (
    AddBot,
    AddBotStrategy,
    AddFeedToBot,
    AddSymbol,
    EditFeeds,
    ErrorCode,
    FeedFields,
    FeedView,
    GetBotFeeds,
    InstallStrategy,
    SymbolView,
    UpdateSymbol,
)
from contracts.symbol import SymbolUpdates
from service.database import SessionMaker
from service.executor import Executor
from service.repositories import BotRepository
from tests.builders import Desk, Direct, a_desk, received
from tests.observe import answer, events, refusal, statements


@pytest.fixture
async def second(direct: Direct, desk: Desk) -> SymbolView:
    """Another symbol of the desk's exchange."""
    symbol: SymbolView = await direct.call(AddSymbol(symbol="BTC/USDT", cat_ex_id=desk.catalog.cat_ex_id))
    return symbol


def a_feed(desk: Desk, **changes: Any) -> AddFeedToBot:
    fields = {"bot_id": desk.bot.bot_id, "symbol_id": desk.symbol.symbol_id, "timeframe": "1m"}
    return AddFeedToBot(**{**fields, **changes})


def fields(desk: Desk, **changes: Any) -> FeedFields:
    return FeedFields(**{"symbol_id": desk.symbol.symbol_id, "timeframe": "1m", **changes})


async def a_strategy(direct: Direct, bot_id: int) -> int:
    catalog = await direct.call(InstallStrategy(name="cross"))
    strategy = await direct.call(AddBotStrategy(bot_id=bot_id, cat_str_id=catalog.cat_str_id))
    str_id: int = strategy.str_id
    return str_id


class TestAddFeedToBot:
    async def test_gives_back_what_was_sent(self, direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
        str_id = await a_strategy(direct, desk.bot.bot_id)

        feed = await direct.call(
            a_feed(desk, timeframe="4h", enabled=False, str_id=str_id, ex_id=desk.account.ex_id, order=7)
        )

        assert feed == FeedView(
            feed_id=feed.feed_id,
            bot_id=desk.bot.bot_id,
            str_id=str_id,
            symbol_id=desk.symbol.symbol_id,
            ex_id=desk.account.ex_id,
            timeframe="4h",
            order=7,
            enabled=False,
            row_version=1,
        )
        assert await answer(sessions, GetBotFeeds(bot_id=desk.bot.bot_id)) == [feed]
        [change] = await events(sessions, "bot.feeds_changed")
        assert (change["key"], change["before"]) == ({"feed_id": feed.feed_id}, None)
        assert change["stale_keys"] == {f"bot:details:{desk.bot.bot_id}"}

    async def test_puts_a_feed_behind_the_others(self, direct: Direct, desk: Desk) -> None:
        feeds = [await direct.call(a_feed(desk, timeframe=timeframe)) for timeframe in ("1m", "1h", "tick")]

        assert [feed.order for feed in feeds] == [1, 2, 3]

    async def test_of_a_known_feed_is_a_duplicate_or_a_conflict(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        feed = await direct.call(a_feed(desk))

        [again] = await executor.execute([received(a_feed(desk))])
        error = await refusal(executor, a_feed(desk, enabled=False))

        assert (again.meta.duplicate, again.data["feed_id"]) == (True, feed.feed_id)
        assert (error.code, error.field) == (ErrorCode.CONFLICT, "timeframe")
        assert "enabled" in error.message
        assert len(await events(sessions, "bot.feeds_changed")) == 1

    async def test_refuses_a_place_that_is_taken(self, executor: Executor, direct: Direct, desk: Desk) -> None:
        await direct.call(a_feed(desk, order=3))

        error = await refusal(executor, a_feed(desk, timeframe="1h", order=3))

        assert (error.code, error.field) == (ErrorCode.CONFLICT, "order")

    async def test_refuses_what_is_absent_or_does_not_belong(
        self, executor: Executor, direct: Direct, desk: Desk
    ) -> None:
        other = await a_desk(direct)
        foreign = await a_strategy(direct, other.bot.bot_id)
        unlinked = await direct.call(AddBot(uid=desk.user.uid, name="unlinked"))
        attempts: list[tuple[dict[str, Any], ErrorCode, str]] = [
            ({"bot_id": 999}, ErrorCode.NOT_FOUND, "bot_id"),
            ({"symbol_id": 999}, ErrorCode.NOT_FOUND, "symbol_id"),
            ({"str_id": 999}, ErrorCode.NOT_FOUND, "str_id"),
            ({"ex_id": 999}, ErrorCode.NOT_FOUND, "ex_id"),
            ({"str_id": foreign}, ErrorCode.FORBIDDEN, "str_id"),
            ({"ex_id": other.account.ex_id}, ErrorCode.FORBIDDEN, "ex_id"),
            ({"bot_id": unlinked.bot_id, "ex_id": desk.account.ex_id}, ErrorCode.FORBIDDEN, "ex_id"),
            ({"symbol_id": other.symbol.symbol_id, "ex_id": desk.account.ex_id}, ErrorCode.FORBIDDEN, "symbol_id"),
        ]

        for changes, code, field in attempts:
            error = await refusal(executor, a_feed(desk, **changes))
            assert (error.code, error.field) == (code, field), changes

    @pytest.mark.parametrize("timeframe", ["", "1", "m1", "0m", "1m\n", "1y", "ticks", "12345m"])
    async def test_refuses_a_timeframe_that_is_none(self, executor: Executor, desk: Desk, timeframe: str) -> None:
        message = received(a_feed(desk))
        message.body = message.body.replace(b'"1m"', f'"{timeframe}"'.replace("\n", "\\n").encode())

        error = await refusal(executor, message)

        assert (error.code, error.field) == (ErrorCode.VALIDATION, "timeframe")


class TestEditFeeds:
    async def test_adds_changes_and_removes_until_the_set_is_right(
        self, direct: Direct, desk: Desk, second: SymbolView, sessions: SessionMaker
    ) -> None:
        edit = EditFeeds(bot_id=desk.bot.bot_id, feeds=[fields(desk), fields(desk, timeframe="1h")])
        minute, hour = await direct.call(edit)

        feeds = await direct.call(
            EditFeeds(
                bot_id=desk.bot.bot_id,
                feeds=[
                    fields(desk, timeframe="1h", ex_id=desk.account.ex_id),
                    fields(desk, symbol_id=second.symbol_id, enabled=False),
                ],
            )
        )

        assert [(feed.timeframe, feed.order, feed.enabled, feed.row_version) for feed in feeds] == [
            ("1h", 1, True, 2),
            ("1m", 2, False, 1),
        ]
        assert (feeds[0].feed_id, feeds[0].ex_id) == (hour.feed_id, desk.account.ex_id)
        assert await answer(sessions, GetBotFeeds(bot_id=desk.bot.bot_id)) == feeds
        changes = (await events(sessions, "bot.feeds_changed"))[2:]
        assert [(change["key"]["feed_id"], change["version"], change["changed"]) for change in changes] == [
            (minute.feed_id, 2, list(FeedView.model_fields)),
            (hour.feed_id, 2, ["ex_id", "order", "row_version"]),
            (feeds[1].feed_id, 1, list(FeedView.model_fields)),
        ]

    async def test_lets_feeds_change_places(self, direct: Direct, desk: Desk) -> None:
        frames = ["1m", "5m", "1h", "1d"]
        there = await direct.call(
            EditFeeds(bot_id=desk.bot.bot_id, feeds=[fields(desk, timeframe=frame) for frame in frames])
        )

        back = await direct.call(
            EditFeeds(bot_id=desk.bot.bot_id, feeds=[fields(desk, timeframe=frame) for frame in reversed(frames)])
        )

        assert [feed.timeframe for feed in back] == frames[::-1]
        assert {feed.feed_id for feed in back} == {feed.feed_id for feed in there}

    async def test_of_the_same_set_changes_and_announces_nothing(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        edit = EditFeeds(bot_id=desk.bot.bot_id, feeds=[fields(desk), fields(desk, timeframe="1h")])
        feeds = await direct.call(edit)

        [again] = await executor.execute([received(edit)])

        assert again.meta.duplicate
        assert [feed["feed_id"] for feed in again.data] == [feed.feed_id for feed in feeds]
        assert len(await events(sessions, "bot.feeds_changed")) == 2

    async def test_of_an_empty_set_leaves_no_feed(self, direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
        await direct.call(EditFeeds(bot_id=desk.bot.bot_id, feeds=[fields(desk)]))

        assert await direct.call(EditFeeds(bot_id=desk.bot.bot_id, feeds=[])) == []

        assert await answer(sessions, GetBotFeeds(bot_id=desk.bot.bot_id)) == []

    async def test_names_the_feed_that_is_wrong_and_changes_none(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        [feed] = await direct.call(EditFeeds(bot_id=desk.bot.bot_id, feeds=[fields(desk)]))
        wrong: list[tuple[FeedFields, ErrorCode, str]] = [
            (fields(desk, symbol_id=999), ErrorCode.NOT_FOUND, "feeds.1.symbol_id"),
            (fields(desk, timeframe="1d", order=1), ErrorCode.VALIDATION, "feeds.1.order"),
            (fields(desk, timeframe="1h"), ErrorCode.VALIDATION, "feeds.1"),
        ]

        for each, code, field in wrong:
            error = await refusal(
                executor, EditFeeds(bot_id=desk.bot.bot_id, feeds=[fields(desk, timeframe="1h"), each])
            )
            assert (error.code, error.field) == (code, field)
        assert await answer(sessions, GetBotFeeds(bot_id=desk.bot.bot_id)) == [feed]

    async def test_takes_as_many_statements_for_many_feeds_as_for_few(
        self, desk: Desk, sessions: SessionMaker, engine: AsyncEngine
    ) -> None:
        numbers = []
        for many in (2, 40):
            async with sessions() as session:
                bots = BotRepository(session)
                frames = [{"symbol_id": desk.symbol.symbol_id, "timeframe": f"{i}m"} for i in range(1, 2 * many)]
                await bots.edit_feeds(desk.bot.bot_id, frames[:many])
                with statements(engine) as sent:
                    # Half of them go, the others move up, and as many come.
                    await bots.edit_feeds(desk.bot.bot_id, frames[many // 2 : many // 2 + many])
            numbers.append(len(sent))

        assert numbers[0] == numbers[1]


class TestSymbolOfAFeed:
    async def test_does_not_move_to_another_exchange(self, executor: Executor, direct: Direct, desk: Desk) -> None:
        other = await a_desk(direct, symbol="ADA/ETH")
        await direct.call(a_feed(desk))

        error = await refusal(
            executor,
            UpdateSymbol(symbol_id=desk.symbol.symbol_id, updates=SymbolUpdates(cat_ex_id=other.catalog.cat_ex_id)),
        )

        assert (error.code, error.field) == (ErrorCode.CONFLICT, "cat_ex_id")
