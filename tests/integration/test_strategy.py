"""Strategies are installed into a catalog, and bots run copies of their own."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from contracts import (
    AddBot,
    AddBotStrategy,
    AddFeedToBot,
    CatStrategyView,
    DelBotStrategy,
    DelCatStrategy,
    EditStrategy,
    EditStrategyParams,
    ErrorCode,
    GetBaseStrParams,
    GetBotFeeds,
    GetBotsStrategies,
    GetBotStrategies,
    GetCatStrategies,
    GetCatStrategiesParams,
    GetCatStrategy,
    GetCatStrId,
    GetStrategy,
    GetStrParams,
    GetUserStrategies,
    InstallStrategy,
    StrategyUpdates,
    StrategyView,
)
from contracts.base import Lookup
from contracts.errors import Refusal
from service.database import SessionMaker
from service.executor import Executor
from service.repositories import StrategyRepository
from tests.builders import Desk, Direct, a_desk, received
from tests.observe import answer, events, refusal, statements


@pytest.fixture
async def cross(direct: Direct) -> CatStrategyView:
    """A strategy in the catalog."""
    installed: CatStrategyView = await direct.call(
        InstallStrategy(
            name="cross",
            class_name="Cross",
            description="Crosses averages: é",
            take_profit="2.50",
            stop_loss="1",
            timeout=3_600,
            pre_load_bars=50,
            feeds=1,
            pairs=True,
            params={"period": "14", "kind": "ema"},
        )
    )
    return installed


@pytest.fixture
async def running(direct: Direct, desk: Desk, cross: CatStrategyView) -> StrategyView:
    """What the desk's bot runs of it."""
    strategy: StrategyView = await direct.call(AddBotStrategy(bot_id=desk.bot.bot_id, cat_str_id=cross.cat_str_id))
    return strategy


class TestInstallStrategy:
    async def test_puts_into_the_catalog_what_was_sent(self, cross: CatStrategyView, sessions: SessionMaker) -> None:
        assert cross.model_dump(mode="json") == {
            "cat_str_id": cross.cat_str_id,
            "name": "cross",
            "class_name": "Cross",
            "description": "Crosses averages: é",
            "take_profit": "2.50",
            "stop_loss": "1",
            "trailing_stop": None,
            "timeout": 3_600,
            "pre_load_bars": 50,
            "feeds": 1,
            "pairs": True,
            "params": {"period": "14", "kind": "ema"},
            "row_version": 1,
        }
        assert await answer(sessions, GetCatStrategies()) == [cross]
        assert await answer(sessions, GetCatStrategy(cat_str_id=cross.cat_str_id)) == cross
        assert await answer(sessions, GetCatStrId(name="cross")) == cross.cat_str_id
        assert await answer(sessions, GetCatStrategiesParams(cat_str_id=cross.cat_str_id)) == cross.params
        [change] = await events(sessions, "strategy.catalog_changed")
        assert (change["before"], change["version"], change["stale_keys"]) == (None, 1, {"strategy:catalog"})

    async def test_under_a_known_name_changes_what_is_stated(
        self, direct: Direct, cross: CatStrategyView, sessions: SessionMaker
    ) -> None:
        changed = await direct.call(InstallStrategy(name="cross", take_profit=None, params={"kind": "sma", "x": ""}))

        assert changed == cross.model_copy(
            update={"take_profit": None, "params": {"kind": "sma", "x": ""}, "row_version": 2}
        )
        assert await answer(sessions, GetCatStrategies()) == [changed]
        [_, change] = await events(sessions, "strategy.catalog_changed")
        assert change["changed"] == ["take_profit", "params", "row_version"]

    async def test_counts_settings_as_part_of_the_version(self, direct: Direct, cross: CatStrategyView) -> None:
        changed = await direct.call(InstallStrategy(name="cross", params={}))

        assert (changed.params, changed.row_version) == ({}, 2)

    async def test_of_the_same_is_a_duplicate(
        self, executor: Executor, cross: CatStrategyView, sessions: SessionMaker
    ) -> None:
        [again] = await executor.execute([received(InstallStrategy(name="cross", params=cross.params))])

        assert again.meta.duplicate
        assert CatStrategyView(**again.data) == cross
        assert len(await events(sessions, "strategy.catalog_changed")) == 1

    @pytest.mark.parametrize(
        ("wrong", "field"),
        [
            (b'{"name":""}', "name"),
            (b'{"name":"a","stop_loss":"-1"}', "stop_loss"),
            (b'{"name":"a","timeout":1.5}', "timeout"),
            (b'{"name":"a","feeds":40000}', "feeds"),
            (b'{"name":"a","params":{"":"x"}}', "params..[key]"),
            (b'{"name":"a","params":{"x":1}}', "params.x"),
        ],
    )
    async def test_refuses_what_is_no_strategy(self, executor: Executor, wrong: bytes, field: str) -> None:
        message = received(InstallStrategy(name="x"))
        message.body = wrong

        error = await refusal(executor, message)

        assert (error.code, error.field) == (ErrorCode.VALIDATION, field)


class TestAddBotStrategy:
    async def test_copies_what_is_not_stated_from_the_catalog(
        self, direct: Direct, desk: Desk, cross: CatStrategyView, running: StrategyView, sessions: SessionMaker
    ) -> None:
        assert running.model_dump(mode="json", exclude={"timestamp"}) == {
            "str_id": running.str_id,
            "bot_id": desk.bot.bot_id,
            "cat_str_id": cross.cat_str_id,
            "name": None,
            "take_profit": "2.50",
            "stop_loss": "1",
            "trailing_stop": None,
            "timeout": 3_600,
            "leverage": "1",
            "size_pct": "10",
            "size": None,
            "size_currency": "USD",
            "pre_load_bars": 50,
            "feeds_count": 1,
            "pairs": True,
            "active": True,
            "row_version": 1,
            "params": {"period": "14", "kind": "ema"},
        }
        assert await answer(sessions, GetStrategy(str_id=running.str_id)) == running
        [change] = await events(sessions, "bot.strategy_changed")
        assert (change["before"], change["stale_keys"]) == (None, {f"bot:details:{desk.bot.bot_id}"})

    async def test_keeps_what_is_stated(self, direct: Direct, desk: Desk, cross: CatStrategyView) -> None:
        strategy = await direct.call(
            AddBotStrategy(
                bot_id=desk.bot.bot_id,
                cat_str_id=cross.cat_str_id,
                name="mine",
                take_profit=None,
                leverage="2.50",
                size="100.10",
                size_currency="USDT",
                feeds_count=3,
                active=False,
                params={"kind": "sma", "more": "1"},
            )
        )

        assert (strategy.take_profit, strategy.stop_loss) == (None, cross.stop_loss)
        assert (str(strategy.leverage), str(strategy.size), strategy.size_pct) == ("2.50", "100.10", None)
        assert (strategy.name, strategy.size_currency, strategy.feeds_count) == ("mine", "USDT", 3)
        assert strategy.active is False
        assert strategy.params == {"period": "14", "kind": "sma", "more": "1"}

    async def test_does_not_follow_the_catalog_afterwards(
        self, direct: Direct, cross: CatStrategyView, running: StrategyView, sessions: SessionMaker
    ) -> None:
        await direct.call(InstallStrategy(name="cross", stop_loss="9", params={}))

        assert await answer(sessions, GetStrategy(str_id=running.str_id)) == running

    async def test_refuses_what_is_absent(self, executor: Executor, desk: Desk, cross: CatStrategyView) -> None:
        no_bot = await refusal(executor, AddBotStrategy(bot_id=999, cat_str_id=cross.cat_str_id))
        no_strategy = await refusal(executor, AddBotStrategy(bot_id=desk.bot.bot_id, cat_str_id=999))

        assert (no_bot.code, no_bot.field) == (ErrorCode.NOT_FOUND, "bot_id")
        assert (no_strategy.code, no_strategy.field) == (ErrorCode.NOT_FOUND, "cat_str_id")

    async def test_refuses_two_sizes(self, executor: Executor, running: StrategyView) -> None:
        message = received(AddBotStrategy(bot_id=running.bot_id, cat_str_id=running.cat_str_id, size="1"))
        message.body = message.body.replace(b'"size"', b'"size_pct":"1","size"')

        error = await refusal(executor, message)

        assert (error.code, "exclude" in error.message) == (ErrorCode.VALIDATION, True)


class TestEditStrategy:
    async def test_changes_what_is_named(self, direct: Direct, running: StrategyView, sessions: SessionMaker) -> None:
        edited = await direct.call(
            EditStrategy(
                str_id=running.str_id,
                updates=StrategyUpdates(name="mine", stop_loss=None, size="3"),
                expected_version=1,
            )
        )

        assert edited == running.model_copy(
            update={"name": "mine", "stop_loss": None, "size": 3, "size_pct": None, "row_version": 2}
        )
        assert await answer(sessions, GetBotStrategies(bot_id=running.bot_id)) == [edited]
        [_, change] = await events(sessions, "bot.strategy_changed")
        assert (change["before"]["size_pct"], change["after"]["size_pct"], change["version"]) == ("10", None, 2)

    async def test_of_nothing_new_is_no_event(
        self, direct: Direct, running: StrategyView, sessions: SessionMaker
    ) -> None:
        edit = EditStrategy(str_id=running.str_id, updates=StrategyUpdates(leverage="1.0"))
        params = EditStrategyParams(str_id=running.str_id, params={"period": "14", "absent": None})

        assert [await direct.call(edit), await direct.call(params)] == [running, running]
        assert len(await events(sessions, "bot.strategy_changed")) == 1

    @pytest.mark.parametrize(
        ("updates", "field"),
        [
            (b"{}", "updates"),
            (b'{"leverage":null}', "updates"),
            (b'{"leverage":"0"}', "updates.leverage"),
            (b'{"size_pct":"100.1"}', "updates.size_pct"),
            (b'{"size":"1","size_pct":"1"}', "updates"),
            (b'{"bot_id":1}', "updates.bot_id"),
        ],
    )
    async def test_refuses_what_cannot_be(
        self, executor: Executor, running: StrategyView, updates: bytes, field: str
    ) -> None:
        message = received(EditStrategy(str_id=running.str_id, updates=StrategyUpdates(leverage="2")))
        message.body = message.body.replace(b'{"leverage":"2"}', updates)

        error = await refusal(executor, message)

        assert (error.code, error.field) == (ErrorCode.VALIDATION, field)

    async def test_heeds_versions_and_refuses_what_is_absent(self, executor: Executor, running: StrategyView) -> None:
        updates = StrategyUpdates(leverage="2")
        for command, code, field in (
            (EditStrategy(str_id=999, updates=updates), ErrorCode.NOT_FOUND, "str_id"),
            (EditStrategyParams(str_id=999, params={"a": "1"}), ErrorCode.NOT_FOUND, "str_id"),
            (
                EditStrategy(str_id=running.str_id, updates=updates, expected_version=2),
                ErrorCode.CONFLICT,
                "expected_version",
            ),
            (
                EditStrategyParams(str_id=running.str_id, params={"a": "1"}, expected_version=2),
                ErrorCode.CONFLICT,
                "expected_version",
            ),
        ):
            error = await refusal(executor, command)
            assert (error.code, error.field) == (code, field)


class TestEditStrategyParams:
    async def test_sets_adds_and_removes(self, direct: Direct, running: StrategyView, sessions: SessionMaker) -> None:
        edited = await direct.call(
            EditStrategyParams(str_id=running.str_id, params={"period": "7", "kind": None, "new": "é"})
        )

        assert edited == running.model_copy(update={"params": {"period": "7", "new": "é"}, "row_version": 2})
        [settings] = await answer(sessions, GetStrParams(bot_id=running.bot_id))
        assert settings.model_dump() == {"str_id": running.str_id, "params": edited.params}
        [_, change] = await events(sessions, "bot.strategy_changed")
        assert (change["changed"], change["version"]) == (["row_version", "params"], 2)


class TestDelBotStrategy:
    async def test_takes_its_feeds_with_it(
        self, direct: Direct, desk: Desk, running: StrategyView, sessions: SessionMaker
    ) -> None:
        bot_id = desk.bot.bot_id
        other = await direct.call(AddBotStrategy(bot_id=bot_id, cat_str_id=running.cat_str_id))
        feeds = [
            await direct.call(
                AddFeedToBot(bot_id=bot_id, symbol_id=desk.symbol.symbol_id, timeframe="1m", str_id=str_id)
            )
            for str_id in (running.str_id, other.str_id, None)
        ]

        assert await direct.call(DelBotStrategy(bot_id=bot_id, str_id=running.str_id)) == 1

        assert await answer(sessions, GetBotStrategies(bot_id=bot_id)) == [other]
        assert await answer(sessions, GetBotFeeds(bot_id=bot_id)) == feeds[1:]
        gone = [change for change in await events(sessions, "bot.feeds_changed") if change["after"] is None]
        assert [change["key"]["feed_id"] for change in gone] == [feeds[0].feed_id]
        gone = [change for change in await events(sessions, "bot.strategy_changed") if change["after"] is None]
        assert [(change["key"]["str_id"], change["before"]["params"]) for change in gone] == [
            (running.str_id, running.params)
        ]

    async def test_takes_all_and_then_none(
        self, executor: Executor, direct: Direct, running: StrategyView, sessions: SessionMaker
    ) -> None:
        await direct.call(AddBotStrategy(bot_id=running.bot_id, cat_str_id=running.cat_str_id))

        first, again = [
            (await executor.execute([received(DelBotStrategy(bot_id=running.bot_id))]))[0] for _ in range(2)
        ]

        assert [(reply.data, reply.meta.duplicate) for reply in (first, again)] == [(2, False), (0, True)]
        assert await answer(sessions, GetBotStrategies(bot_id=running.bot_id)) == []

    async def test_refuses_the_strategy_of_another_bot_and_a_bot_that_is_not_there(
        self, executor: Executor, direct: Direct, desk: Desk, running: StrategyView
    ) -> None:
        bot = await direct.call(AddBot(uid=desk.user.uid, name="other"))

        foreign = await refusal(executor, DelBotStrategy(bot_id=bot.bot_id, str_id=running.str_id))
        absent = await refusal(executor, DelBotStrategy(bot_id=999))

        assert (foreign.code, foreign.field) == (ErrorCode.FORBIDDEN, "str_id")
        assert (absent.code, absent.field) == (ErrorCode.NOT_FOUND, "bot_id")


class TestDelCatStrategy:
    async def test_waits_until_no_bot_runs_it(
        self,
        executor: Executor,
        direct: Direct,
        cross: CatStrategyView,
        running: StrategyView,
        sessions: SessionMaker,
    ) -> None:
        in_use = await refusal(executor, DelCatStrategy(cat_str_id=cross.cat_str_id))
        await direct.call(DelBotStrategy(bot_id=running.bot_id))
        outdated = await refusal(executor, DelCatStrategy(name="cross", expected_version=2))

        assert await direct.call(DelCatStrategy(name="cross")) == cross

        assert (in_use.code, in_use.field) == (ErrorCode.CONFLICT, "cat_str_id")
        assert (outdated.code, outdated.field) == (ErrorCode.CONFLICT, "expected_version")
        assert await answer(sessions, GetCatStrategies()) == []
        change = (await events(sessions, "strategy.catalog_changed"))[-1]
        assert (change["after"], change["version"], change["stale_keys"]) == (None, 2, {"strategy:catalog"})

    async def test_refuses_what_is_absent_and_what_is_ambiguous(
        self, executor: Executor, cross: CatStrategyView
    ) -> None:
        absent = [await refusal(executor, DelCatStrategy(**which)) for which in ({"name": "x"}, {"cat_str_id": 999})]
        both = received(DelCatStrategy(name="cross"))
        both.body = b'{"name":"cross","cat_str_id":1}'
        neither = received(DelCatStrategy(name="cross"))
        neither.body = b"{}"

        assert [(error.code, error.field) for error in absent] == [
            (ErrorCode.NOT_FOUND, "name"),
            (ErrorCode.NOT_FOUND, "cat_str_id"),
        ]
        for message in (both, neither):
            assert (await refusal(executor, message)).code is ErrorCode.VALIDATION


class TestLookups:
    async def test_of_what_bots_run_agree(
        self, direct: Direct, desk: Desk, running: StrategyView, sessions: SessionMaker
    ) -> None:
        bot_id = desk.bot.bot_id
        [base] = await answer(sessions, GetBaseStrParams(bot_id=bot_id))

        assert base.model_dump() == running.model_dump(exclude={"params"})
        assert (await answer(sessions, GetUserStrategies(uid=desk.user.uid))).strategies == [running]
        assert (await answer(sessions, GetBotsStrategies(name="cross"))).strategies == [running]
        assert await answer(sessions, GetStrParams(bot_id=bot_id, str_id=running.str_id + 1)) == []

    async def test_go_on_where_they_ended(
        self, direct: Direct, desk: Desk, running: StrategyView, sessions: SessionMaker
    ) -> None:
        other = await a_desk(direct)
        for bot_id in (desk.bot.bot_id, other.bot.bot_id, desk.bot.bot_id):
            await direct.call(AddBotStrategy(bot_id=bot_id, cat_str_id=running.cat_str_id))

        first = await answer(sessions, GetUserStrategies(uid=desk.user.uid, limit=2))
        rest = await answer(sessions, GetUserStrategies(uid=desk.user.uid, limit=2, cursor=first.next_cursor))
        everyone = await answer(sessions, GetBotsStrategies(name="cross"))

        assert len(first.strategies + rest.strategies) == 3
        assert rest.next_cursor is None
        assert len(everyone.strategies) == 4
        with pytest.raises(Refusal, match="cursor"):
            await answer(sessions, GetUserStrategies(uid=desk.user.uid, cursor="bogus"))

    @pytest.mark.parametrize(
        ("lookup", "nothing"),
        [
            (GetCatStrategy(cat_str_id=999), None),
            (GetCatStrId(name="x"), None),
            (GetCatStrategiesParams(cat_str_id=999), {}),
            (GetStrategy(str_id=999), None),
            (GetBotStrategies(bot_id=999), []),
            (GetBaseStrParams(bot_id=999), []),
            (GetStrParams(bot_id=999), []),
        ],
        ids=lambda value: getattr(value, "wire_name", ""),
    )
    async def test_of_what_is_absent_give_nothing(
        self, sessions: SessionMaker, lookup: Lookup[Any], nothing: Any
    ) -> None:
        assert await answer(sessions, lookup) == nothing

    @pytest.mark.parametrize(
        "read",
        [
            lambda strategies, desk: strategies.get_bot_strategies(desk.bot.bot_id),
            lambda strategies, desk: strategies.get_user_strategies(desk.user.uid),
            lambda strategies, desk: strategies.get_bots_strategies("cross"),
            lambda strategies, desk: strategies.get_base_str_params(desk.bot.bot_id),
            lambda strategies, desk: strategies.get_str_params(desk.bot.bot_id),
            lambda strategies, desk: strategies.get_cat_strategies(),
        ],
        ids=["of a bot", "of a user", "of a name", "base", "params", "catalog"],
    )
    async def test_take_as_many_statements_for_many_as_for_one(
        self,
        direct: Direct,
        desk: Desk,
        running: StrategyView,
        engine: AsyncEngine,
        read: Callable[[StrategyRepository, Desk], Awaitable[Any]],
    ) -> None:
        numbers = []
        for more in (0, 4):
            for i in range(more):
                await direct.call(AddBotStrategy(bot_id=desk.bot.bot_id, cat_str_id=running.cat_str_id))
                await direct.call(InstallStrategy(name=f"strategy {i}", params={"a": "b"}))
            async with AsyncSession(engine) as session:
                with statements(engine) as sent:
                    await read(StrategyRepository(session), desk)
            numbers.append(len(sent))

        assert numbers[0] == numbers[1] <= 2
