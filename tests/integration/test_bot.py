"""Bots are changed and deleted with what hangs on them, and every cached answer about them is named as stale."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import (
    AddBot,
    AddExchange,
    AddExchangeToBot,
    AddUser,
    BotUpdates,
    DeleteBot,
    EditBot,
    ErrorCode,
    ExchangeUpdates,
    GetBot,
    GetBotsByUser,
    GetBotWithDetails,
    GetOrder,
    RemoveExchangeFromBot,
    UpdateExchange,
    UpdateOrderStatus,
)
from contracts.base import Command
from contracts.errors import Refusal
from service.database import SessionMaker
from service.executor import Executor
from service.models import Bot, BotLog, DryTrade, Feed, Simulation, Strategy
from service.repositories import BotRepository
from service.vault import Vault
from tests.builders import Desk, Direct, a_desk, furnish, received, with_credentials
from tests.observe import answer, events, refusal, refused, statements


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

    async def test_refuses_to_let_a_bot_without_credentials_trade_live(
        self, executor: Executor, direct: Direct, desk: Desk, vault: Vault
    ) -> None:
        bot = await direct.call(AddBot(uid=desk.user.uid, name="bare"))
        live = EditBot(bot_id=bot.bot_id, updates=BotUpdates(active=True))

        error = await refusal(executor, live)
        dry = await direct.call(EditBot(bot_id=bot.bot_id, updates=BotUpdates(active=True, dry_run=True)))
        later = await refusal(executor, EditBot(bot_id=bot.bot_id, updates=BotUpdates(dry_run=False)))
        await direct.call(AddExchangeToBot(bot_id=bot.bot_id, ex_id=desk.account.ex_id))
        still = await refusal(executor, EditBot(bot_id=bot.bot_id, updates=BotUpdates(dry_run=False)))
        await with_credentials(direct, vault, desk.account)
        edited = await direct.call(EditBot(bot_id=bot.bot_id, updates=BotUpdates(dry_run=False)))

        assert {(each.code, each.field) for each in (error, later, still)} == {(ErrorCode.CONFLICT, "active")}
        assert dry.active
        assert (edited.active, edited.dry_run) == (True, False)


class TestLiveBot:
    """Active, and trading for real: it always has credentials for one account at least."""

    async def test_keeps_the_last_account_it_has_credentials_for(
        self, executor: Executor, direct: Direct, desk: Desk, vault: Vault
    ) -> None:
        bot_id, ex_id = desk.bot.bot_id, desk.account.ex_id
        second = await direct.call(AddExchange(uid=desk.user.uid, cat_ex_id=desk.catalog.cat_ex_id, ex_name="second"))
        await direct.call(AddExchangeToBot(bot_id=bot_id, ex_id=second.ex_id))
        await with_credentials(direct, vault, desk.account)
        await direct.call(EditBot(bot_id=bot_id, updates=BotUpdates(active=True)))
        takes_away: list[tuple[Command[Any], str]] = [
            (RemoveExchangeFromBot(bot_id=bot_id, ex_id=ex_id), "ex_id"),
            (UpdateExchange(ex_id=ex_id, updates=ExchangeUpdates(api_key=None)), "api_key"),
        ]

        for command, field in takes_away:
            assert await refused(executor, command) == ("conflict", field)
        # With credentials for another one, each is carried out.
        await with_credentials(direct, vault, second)
        for command, _ in takes_away:
            await direct.call(command)
        assert await refused(executor, RemoveExchangeFromBot(bot_id=bot_id, ex_id=second.ex_id)) == (
            "conflict",
            "ex_id",
        )
        await direct.call(EditBot(bot_id=bot_id, updates=BotUpdates(dry_run=True)))
        assert await direct.call(RemoveExchangeFromBot(bot_id=bot_id, ex_id=second.ex_id))

    async def test_is_not_made_while_its_credentials_are_taken_away(
        self, direct: Direct, desk: Desk, vault: Vault, executor: Executor
    ) -> None:
        """Whoever comes first, no live bot is left without any."""
        await with_credentials(direct, vault, desk.account)

        replies = await asyncio.gather(
            executor.execute([received(EditBot(bot_id=desk.bot.bot_id, updates=BotUpdates(active=True)))]),
            executor.execute(
                [received(UpdateExchange(ex_id=desk.account.ex_id, updates=ExchangeUpdates(api_key=None)))]
            ),
        )

        [[activated], [taken]] = replies
        assert activated.ok != taken.ok

    async def test_may_be_added_before_its_accounts_are_which_is_logged(
        self, direct: Direct, desk: Desk, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bot = await direct.call(AddBot(uid=desk.user.uid, name="live", active=True))

        assert bot.active
        assert "live_bot_without_account" in capsys.readouterr().out


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
        await direct.call(desk.order())
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
        order = await direct.call(desk.order())
        await direct.call(UpdateOrderStatus(order_id=order.order_id, status="filled"))
        trade = await direct.call(desk.trade(order_id=order.order_id))

        removal = await direct.call(DeleteBot(bot_id=desk.bot.bot_id))

        assert removal.model_dump() == {
            "bot_id": desk.bot.bot_id,
            "bot_exchanges": 1,
            "strategies": 1,
            "feeds": 2,
            "dry_trades": 1,
            "simulations": 1,
            "logs": 1,
        }
        assert await answer(sessions, GetBotWithDetails(bot_id=desk.bot.bot_id)) is None
        assert (await answer(sessions, GetOrder(order_id=order.order_id))).bot_id is None
        assert trade.bot_id == desk.bot.bot_id
        async with sessions() as session:
            for model in (Bot, Feed, Strategy, Simulation, BotLog, DryTrade):
                left = list(await session.scalars(select(model.bot_id)))
                assert set(left) == {other.bot.bot_id}, model

    async def test_announces_all_that_goes_with_its_stale_keys(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        await furnish(direct, desk)

        await direct.call(DeleteBot(bot_id=desk.bot.bot_id))

        gone = {
            kind: [change for change in await events(sessions, kind) if change["after"] is None]
            for kind in (
                "bot.deleted",
                "bot.exchange_removed",
                "bot.strategy_changed",
                "bot.feeds_changed",
                "dry_trade.cleared",
            )
        }
        assert {kind: len(changes) for kind, changes in gone.items()} == {
            "bot.deleted": 1,
            "bot.exchange_removed": 1,
            "bot.strategy_changed": 1,
            "bot.feeds_changed": 2,
            "dry_trade.cleared": 1,
        }
        [cleared] = gone["dry_trade.cleared"]
        assert cleared["before"] == {"bot_id": desk.bot.bot_id, "ex_id": None, "last_dry_trade_id": 1, "count": 1}
        [deleted] = gone["bot.deleted"]
        assert (deleted["version"], deleted["before"]["name"]) == (2, "bot")
        assert set().union(*(change["stale_keys"] for changes in gone.values() for change in changes)) == {
            f"bot:details:{desk.bot.bot_id}",
            f"bot:currency:{desk.bot.bot_id}:{desk.account.ex_id}",
            f"user:bots:{desk.user.uid}",
            f"user:trading_summary:{desk.user.uid}",
        }

    async def test_is_refused_while_that_would_hurt_unless_forced(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker, vault: Vault
    ) -> None:
        await with_credentials(direct, vault, desk.account)
        order = await direct.call(desk.order())
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
            direct.executor.execute([received(desk.order())]),
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
                assert [(removal.feeds, removal.dry_trades) for removal in removals] == [(2, 1)] * len(some)

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


class TestARefusedChange:
    async def test_leaves_the_bot_as_it_was_for_a_program_that_goes_on(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        async with sessions.begin() as session:
            bots = BotRepository(session)
            for updates, field in (({"active": True}, "active"), ({"name": "other", "nope": 1}, "nope")):
                with pytest.raises(Refusal) as refused:
                    await bots.edit_bot(desk.bot.bot_id, updates)
                assert refused.value.field == field

        async with sessions() as session:
            bot = await BotRepository(session).get_by_id(desk.bot.bot_id)
            assert bot is not None
            assert (bot.active, bot.name, bot.row_version) == (False, "bot", desk.bot.row_version)
