"""Bots are changed and deleted with what hangs on them, and every cached answer about them is named as stale."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import (
    AddBot,
    AddBotStrategy,
    AddExchange,
    AddExchangeToBot,
    AddFeedToBot,
    AddUser,
    BotUpdates,
    CreateOrder,
    DelBotStrategy,
    DelCatStrategy,
    DeleteBot,
    EditBot,
    EditFeeds,
    EditStrategy,
    EditStrategyParams,
    ErrorCode,
    FeedFields,
    GetBot,
    GetBotExchanges,
    GetBotFullList,
    GetBotList,
    GetBotParams,
    GetBotsByUser,
    GetBotStats,
    GetBotsWithDetails,
    GetBotWithDetails,
    GetCatStrategies,
    GetOrder,
    GetTradingCurrency,
    InstallStrategy,
    RemoveExchangeFromBot,
    SaveBotLog,
    SaveSimulation,
    StrategyUpdates,
    UpdateOrderStatus,
)
from contracts.base import Command, Lookup
from contracts.errors import Refusal
from service.database import SessionMaker
from service.executor import Executor
from service.lookups import ANSWERS
from service.models import Bot, BotLog, Feed, OutboxEvent, Simulation, Strategy
from service.repositories import BotRepository
from tests.builders import Desk, Direct, a_desk, received
from tests.observe import answer, events, refusal, statements


async def furnish(direct: Direct, desk: Desk) -> None:
    """Hang something of each kind on the desk's bot."""
    bot_id = desk.bot.bot_id
    catalog = await direct.call(InstallStrategy(name=f"strategy of {bot_id}", params={"period": "14"}))
    strategy = await direct.call(AddBotStrategy(bot_id=bot_id, cat_str_id=catalog.cat_str_id))
    for timeframe, more in (("1m", {"str_id": strategy.str_id}), ("1h", {"ex_id": desk.account.ex_id})):
        await direct.call(AddFeedToBot(bot_id=bot_id, symbol_id=desk.symbol.symbol_id, timeframe=timeframe, **more))
    await direct.call(SaveBotLog(bot_id=bot_id, message="hello"))
    await direct.call(a_simulation(desk))


def a_simulation(desk: Desk) -> SaveSimulation:
    return SaveSimulation(
        bot_id=desk.bot.bot_id,
        name="first",
        start_date="2024-01-01T00:00:00Z",
        end_date="2024-01-31T00:00:00Z",
        initial_balance="10000",
        final_balance="11250",
        total_trades=156,
    )


def an_order(desk: Desk) -> CreateOrder:
    return CreateOrder(
        bot_id=desk.bot.bot_id,
        uid=desk.user.uid,
        ex_id=desk.account.ex_id,
        symbol_id=desk.symbol.symbol_id,
        side="buy",
        size="10",
        order_type="market",
    )


class TestEditBot:
    async def test_changes_what_is_named_and_nothing_else(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        edited = await direct.call(EditBot(bot_id=desk.bot.bot_id, updates=BotUpdates(name="new", dry_run=True)))

        assert edited == desk.bot.model_copy(update={"name": "new", "dry_run": True, "row_version": 2})
        assert await answer(sessions, GetBot(bot_id=desk.bot.bot_id)) == edited
        [change] = await events(sessions, "bot.updated")
        assert (change["before"]["name"], change["after"]["name"], change["version"]) == ("bot", "new", 2)
        assert set(change["changed"]) == {"name", "dry_run", "row_version"}

    async def test_that_changes_nothing_is_no_event(self, direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
        same = await direct.call(EditBot(bot_id=desk.bot.bot_id, updates=BotUpdates(name="bot")))

        assert same == desk.bot
        assert await events(sessions, "bot.updated") == []

    async def test_heeds_the_version_it_was_decided_on(self, executor: Executor, desk: Desk) -> None:
        error = await refusal(
            executor, EditBot(bot_id=desk.bot.bot_id, updates=BotUpdates(name="new"), expected_version=7)
        )

        assert (error.code, error.field) == (ErrorCode.CONFLICT, "expected_version")

    async def test_refuses_a_name_that_the_owner_has_given_already(
        self, executor: Executor, direct: Direct, desk: Desk
    ) -> None:
        other = await direct.call(AddBot(uid=desk.user.uid, name="other"))

        error = await refusal(executor, EditBot(bot_id=other.bot_id, updates=BotUpdates(name="bot")))

        assert (error.code, error.field) == (ErrorCode.CONFLICT, "name")

    async def test_refuses_a_bot_that_is_not_there(self, executor: Executor) -> None:
        error = await refusal(executor, EditBot(bot_id=999, updates=BotUpdates(name="new")))

        assert (error.code, error.field) == (ErrorCode.NOT_FOUND, "bot_id")

    async def test_refuses_to_let_a_bot_without_an_account_trade_live(
        self, executor: Executor, direct: Direct, desk: Desk
    ) -> None:
        bot = await direct.call(AddBot(uid=desk.user.uid, name="bare"))
        live = EditBot(bot_id=bot.bot_id, updates=BotUpdates(active=True))

        error = await refusal(executor, live)
        dry = await direct.call(EditBot(bot_id=bot.bot_id, updates=BotUpdates(active=True, dry_run=True)))
        later = await refusal(executor, EditBot(bot_id=bot.bot_id, updates=BotUpdates(dry_run=False)))
        await direct.call(AddExchangeToBot(bot_id=bot.bot_id, ex_id=desk.account.ex_id))
        edited = await direct.call(EditBot(bot_id=bot.bot_id, updates=BotUpdates(dry_run=False)))

        assert (error.code, error.field) == (later.code, later.field) == (ErrorCode.CONFLICT, "active")
        assert dry.active
        assert (edited.active, edited.dry_run) == (True, False)


class TestAnotherOwner:
    async def test_gets_a_bot_that_nothing_of_the_first_is_attached_to(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        bot = await direct.call(AddBot(uid=desk.user.uid, name="gift"))
        heir = await direct.call(AddUser(mail="heir@example.org"))

        await direct.call(EditBot(bot_id=bot.bot_id, updates=BotUpdates(uid=heir.uid)))

        [change] = await events(sessions, "bot.updated")
        assert change["stale_keys"] == {
            f"bot:details:{bot.bot_id}",
            *(f"user:bots:{uid}" for uid in (desk.user.uid, heir.uid)),
            *(f"user:trading_summary:{uid}" for uid in (desk.user.uid, heir.uid)),
        }
        assert await answer(sessions, GetBotsByUser(uid=heir.uid)) == [
            bot.model_copy(update={"uid": heir.uid, "row_version": 2})
        ]

    async def test_does_not_get_accounts_orders_or_trades_with_it(
        self, executor: Executor, direct: Direct, desk: Desk
    ) -> None:
        heir = await direct.call(AddUser(mail="heir@example.org"))
        give = EditBot(bot_id=desk.bot.bot_id, updates=BotUpdates(uid=heir.uid))
        seen = [await refusal(executor, give)]
        await direct.call(an_order(desk))
        await direct.call(RemoveExchangeFromBot(bot_id=desk.bot.bot_id, ex_id=desk.account.ex_id))
        seen.append(await refusal(executor, give))

        assert {(error.code, error.field) for error in seen} == {(ErrorCode.CONFLICT, "uid")}
        assert ["exchange accounts" in seen[0].message, "orders" in seen[1].message] == [True, True]

    async def test_has_to_exist(self, executor: Executor, direct: Direct, desk: Desk) -> None:
        bot = await direct.call(AddBot(uid=desk.user.uid, name="gift"))

        error = await refusal(executor, EditBot(bot_id=bot.bot_id, updates=BotUpdates(uid=999)))

        assert (error.code, error.field) == (ErrorCode.NOT_FOUND, "uid")


class TestDeleteBot:
    async def test_takes_everything_with_it_but_orders_and_trades(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        other = await a_desk(direct)
        for each in (desk, other):
            await furnish(direct, each)
        order = await direct.call(an_order(desk))
        await direct.call(UpdateOrderStatus(order_id=order.order_id, status="filled"))
        trade = await direct.call(desk.trade(order_id=order.order_id))

        removal = await direct.call(DeleteBot(bot_id=desk.bot.bot_id))

        assert removal.model_dump() == {
            "bot_id": desk.bot.bot_id,
            "bot_exchanges": 1,
            "strategies": 1,
            "feeds": 2,
            "simulations": 1,
            "logs": 1,
        }
        assert await answer(sessions, GetBotWithDetails(bot_id=desk.bot.bot_id)) is None
        assert (await answer(sessions, GetOrder(order_id=order.order_id))).bot_id is None
        assert trade.bot_id == desk.bot.bot_id
        async with sessions() as session:
            for model in (Bot, Feed, Strategy, Simulation, BotLog):
                left = list(await session.scalars(select(model.bot_id)))
                assert set(left) == {other.bot.bot_id}, model

    async def test_announces_all_that_goes_with_its_stale_keys(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        await furnish(direct, desk)

        await direct.call(DeleteBot(bot_id=desk.bot.bot_id))

        gone = {
            kind: [change for change in await events(sessions, kind) if change["after"] is None]
            for kind in ("bot.deleted", "bot.exchange_removed", "bot.strategy_changed", "bot.feeds_changed")
        }
        assert {kind: len(changes) for kind, changes in gone.items()} == {
            "bot.deleted": 1,
            "bot.exchange_removed": 1,
            "bot.strategy_changed": 1,
            "bot.feeds_changed": 2,
        }
        [deleted] = gone["bot.deleted"]
        assert (deleted["version"], deleted["before"]["name"]) == (2, "bot")
        assert set().union(*(change["stale_keys"] for changes in gone.values() for change in changes)) == {
            f"bot:details:{desk.bot.bot_id}",
            f"bot:currency:{desk.bot.bot_id}:{desk.account.ex_id}",
            f"user:bots:{desk.user.uid}",
            f"user:trading_summary:{desk.user.uid}",
        }

    async def test_is_refused_while_that_would_hurt_unless_forced(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        order = await direct.call(an_order(desk))
        delete = DeleteBot(bot_id=desk.bot.bot_id)
        open_order = await refusal(executor, delete)
        await direct.call(UpdateOrderStatus(order_id=order.order_id, status="cancelled"))
        await direct.call(EditBot(bot_id=desk.bot.bot_id, updates=BotUpdates(active=True)))
        live = await refusal(executor, delete)

        assert [(error.code, error.field) for error in (open_order, live)] == [(ErrorCode.CONFLICT, "force")] * 2
        assert await answer(sessions, GetBot(bot_id=desk.bot.bot_id)) is not None
        assert (await direct.call(DeleteBot(bot_id=desk.bot.bot_id, force=True))).bot_id == desk.bot.bot_id

    async def test_lets_an_active_dry_run_go(self, direct: Direct, desk: Desk) -> None:
        await direct.call(EditBot(bot_id=desk.bot.bot_id, updates=BotUpdates(active=True, dry_run=True)))

        assert await direct.call(DeleteBot(bot_id=desk.bot.bot_id))

    async def test_refuses_a_bot_that_is_not_there_and_a_version_that_is_not_its(
        self, executor: Executor, desk: Desk
    ) -> None:
        absent = await refusal(executor, DeleteBot(bot_id=999))
        outdated = await refusal(executor, DeleteBot(bot_id=desk.bot.bot_id, expected_version=2))

        assert (absent.code, absent.field) == (ErrorCode.NOT_FOUND, "bot_id")
        assert (outdated.code, outdated.field) == (ErrorCode.CONFLICT, "expected_version")

    async def test_waits_for_an_order_that_is_being_placed(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        """Whoever comes first, no order ends up open without its bot having been forced away."""
        replies = await asyncio.gather(
            direct.executor.execute([received(an_order(desk))]),
            direct.executor.execute([received(DeleteBot(bot_id=desk.bot.bot_id))]),
        )

        [[order], [deleted]] = replies
        assert order.ok != deleted.ok


class TestRemovalOfManyBots:
    async def test_takes_no_more_statements_than_of_one(
        self, direct: Direct, sessions: SessionMaker, engine: AsyncEngine
    ) -> None:
        desks = [await a_desk(direct) for _ in range(4)]
        for desk in desks:
            await furnish(direct, desk)
        numbers = []
        for some in (desks[:1], desks[1:]):
            async with sessions.begin() as session:
                ids = [desk.bot.bot_id for desk in some]
                bots = list(await session.scalars(select(Bot).where(Bot.bot_id.in_(ids))))
                with statements(engine) as sent:
                    removals = await BotRepository(session).remove(bots)
                numbers.append(len(sent))
                assert [removal.feeds for removal in removals] == [2] * len(some)

        assert numbers[0] == numbers[1]


class TestRemoveExchangeFromBot:
    async def test_leaves_feeds_without_an_account(self, direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
        await furnish(direct, desk)

        removed = await direct.call(RemoveExchangeFromBot(bot_id=desk.bot.bot_id, ex_id=desk.account.ex_id))

        assert removed is True
        bot = await answer(sessions, GetBotWithDetails(bot_id=desk.bot.bot_id))
        assert bot.bot_exchanges == []
        assert [feed.ex_id for feed in bot.feeds] == [None, None]
        [change] = await events(sessions, "bot.exchange_removed")
        assert change["after"] is None
        assert change["stale_keys"] == {
            f"bot:details:{desk.bot.bot_id}",
            f"bot:currency:{desk.bot.bot_id}:{desk.account.ex_id}",
        }
        changed = [change for change in await events(sessions, "bot.feeds_changed") if change["before"]]
        assert [(change["changed"], change["version"]) for change in changed] == [(["ex_id", "row_version"], 2)]

    async def test_has_the_same_outcome_a_second_time(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        remove = RemoveExchangeFromBot(bot_id=desk.bot.bot_id, ex_id=desk.account.ex_id)
        await direct.call(remove)

        [again] = await executor.execute([received(remove)])

        assert (again.ok, again.data, again.meta.duplicate) == (True, False, True)
        assert len(await events(sessions, "bot.exchange_removed")) == 1

    async def test_refuses_a_bot_that_is_not_there(self, executor: Executor, desk: Desk) -> None:
        error = await refusal(executor, RemoveExchangeFromBot(bot_id=999, ex_id=desk.account.ex_id))

        assert (error.code, error.field) == (ErrorCode.NOT_FOUND, "bot_id")


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
        await direct.call(an_order(desk))

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


class TestManualsExample:
    """What the manual shows of the repository, as it shows it."""

    async def test_runs(self, direct: Direct, sessions: SessionMaker) -> None:
        desk = await a_desk(direct)
        async with sessions() as session:
            bot_repo = BotRepository(session)
            bot = await bot_repo.add_bot(
                {"uid": desk.user.uid, "name": "Multi-Exchange", "dry_run": False, "active": True}
            )
            await bot_repo.add_exchange_to_bot(
                bot.bot_id,
                {"exchange_id": desk.account.ex_id, "trading_currency": "USDT", "max_exposure": 10000.0},
            )
            for feed_data in (
                {"symbol_id": desk.symbol.symbol_id, "timeframe": "1m", "enabled": True},
                {"symbol_id": desk.symbol.symbol_id, "timeframe": "5m", "enabled": True},
            ):
                await bot_repo.add_feed_to_bot(bot.bot_id, feed_data)
            first = await bot_repo.get_bot_with_details(bot.bot_id)
            assert first is not None
            assert [feed.timeframe for feed in first.feeds] == ["1m", "5m"]
            [feed] = await bot_repo.edit_feeds(
                bot.bot_id, [{"symbol_id": desk.symbol.symbol_id, "timeframe": "5m", "enabled": False}]
            )
            full = await bot_repo.get_bot_with_details(bot.bot_id)
            assert full is not None
            assert full.feeds == [feed]
            assert await bot_repo.get_trading_currency(bot_id=bot.bot_id, exchange_id=desk.account.ex_id) == "USDT"
            params = await bot_repo.get_bot_params(bot.bot_id)
            assert params["bot_exchanges"][0]["max_exposure"] == "10000.0"
            await bot_repo.edit_bot(bot.bot_id, {"active": False})
            await bot_repo.delete_bot(bot.bot_id)
            assert await bot_repo.get_bot_with_details(bot.bot_id) is None
            await bot_repo.commit()


class TestStaleKeys:
    """Of every write: what it changed in a cached answer, its events name."""

    async def test_name_every_cached_answer_that_a_write_changes(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        await furnish(direct, desk)
        heir = await direct.call(AddUser(mail="heir@example.org"))
        second = await direct.call(AddExchange(uid=desk.user.uid, cat_ex_id=desk.catalog.cat_ex_id, ex_name="second"))
        bot_id = desk.bot.bot_id
        [strategy] = (await answer(sessions, GetBotWithDetails(bot_id=bot_id))).strategies
        symbol_id = desk.symbol.symbol_id
        gift = await direct.call(AddBot(uid=desk.user.uid, name="gift"))
        cached: list[Lookup[Any]] = [
            GetCatStrategies(),
            *(GetBotWithDetails(bot_id=each) for each in (bot_id, gift.bot_id, gift.bot_id + 1)),
            *(GetBotsByUser(uid=uid) for uid in (desk.user.uid, heir.uid)),
            *(GetTradingCurrency(bot_id=bot_id, ex_id=ex_id) for ex_id in (desk.account.ex_id, second.ex_id)),
        ]
        writes: list[Command[Any]] = [
            AddBot(uid=heir.uid, name="new"),
            EditBot(bot_id=bot_id, updates=BotUpdates(name="renamed")),
            EditBot(bot_id=gift.bot_id, updates=BotUpdates(uid=heir.uid)),
            AddExchangeToBot(bot_id=bot_id, ex_id=second.ex_id, trading_currency="BTC"),
            AddExchangeToBot(bot_id=bot_id, ex_id=second.ex_id, trading_currency="USD"),
            AddFeedToBot(bot_id=bot_id, symbol_id=symbol_id, timeframe="1d", ex_id=second.ex_id),
            EditFeeds(bot_id=bot_id, feeds=[FeedFields(symbol_id=symbol_id, timeframe="1w", ex_id=second.ex_id)]),
            RemoveExchangeFromBot(bot_id=bot_id, ex_id=second.ex_id),
            InstallStrategy(name="another", params={"a": "1"}),
            InstallStrategy(name="another", params={"a": "2"}),
            AddBotStrategy(bot_id=bot_id, cat_str_id=strategy.cat_str_id),
            EditStrategy(str_id=strategy.str_id, updates=StrategyUpdates(leverage="2")),
            EditStrategyParams(str_id=strategy.str_id, params={"period": "7"}),
            DelBotStrategy(bot_id=bot_id),
            DelCatStrategy(name="another"),
            DeleteBot(bot_id=bot_id),
        ]

        for write in writes:
            before = {_key(lookup): await answer(sessions, lookup) for lookup in cached}
            known = await _last_event(sessions)
            await direct.call(write)
            changed = {_key(lookup) for lookup in cached if await answer(sessions, lookup) != before[_key(lookup)]}
            named = await _stale_keys_since(sessions, known)

            assert changed, write
            assert changed <= named, write


def _key(lookup: Lookup[Any]) -> str:
    key = ANSWERS[type(lookup)].key
    assert key is not None
    return str(key(lookup))


async def _last_event(sessions: SessionMaker) -> int:
    async with sessions() as session:
        return await session.scalar(select(func.max(OutboxEvent.id))) or 0


async def _stale_keys_since(sessions: SessionMaker, known: int) -> set[str]:
    async with sessions() as session:
        rows = await session.scalars(select(OutboxEvent.stale_keys).where(OutboxEvent.id > known))
        return {key for keys in rows for key in keys}
