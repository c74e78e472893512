"""Exchange accounts and their settings, by messages and by the library."""

import json
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import (
    AddBot,
    AddExchange,
    AddExchangeToBot,
    AddFeedToBot,
    AddUser,
    CreateOrder,
    DeleteExchange,
    ErrorCode,
    ExchangeUpdates,
    GetActiveExchanges,
    GetExchange,
    GetExchangeCatalog,
    GetExchangeParams,
    GetExchangesByUser,
    InstallExchange,
    Refusal,
    SetExchangeParams,
    UpdateExchange,
    new_key_pair,
)
from service.database import SessionMaker
from service.executor import Executor
from service.models import BotExchange, DryTrade, Exchange, ExchangeCredential, ExchangeParam
from service.repositories import ExchangeRepository
from service.vault import Vault
from tests.builders import Asking, Desk, Direct, furnish, received, sealed
from tests.observe import announced, events, refused, statements

PRIVATE, PUBLIC = new_key_pair()


class TestUpdateExchange:
    async def test_changes_what_it_names_and_names_old_and_new_keys(
        self, direct: Direct, asking: Asking, desk: Desk, sessions: SessionMaker
    ) -> None:
        other = await direct.call(AddUser(mail="other@example.org"))
        account = await direct.call(
            AddExchange(uid=desk.user.uid, cat_ex_id=desk.catalog.cat_ex_id, ex_name="second")
        )
        updates = {"uid": other.uid, "ex_name": "renamed", "account": "sub", "sandbox": True, "active": False}

        changed = await direct.call(
            UpdateExchange(ex_id=account.ex_id, updates=ExchangeUpdates.model_validate(updates), expected_version=1)
        )

        assert changed == account.model_copy(update={**updates, "row_version": 2})
        assert await asking.ask(GetExchange(ex_id=account.ex_id)) == changed
        assert await asking.ask(GetExchangesByUser(uid=other.uid)) == [changed]
        [event] = await announced(sessions, "exchange.updated")
        assert set(event.stale_keys) == {
            f"user:exchanges:{desk.user.uid}",
            f"user:exchanges:{other.uid}",
            f"exchange:params:{account.ex_id}",
            "exchange:active",
        }

    async def test_refuses_what_cannot_be(self, executor: Executor, direct: Direct, desk: Desk) -> None:
        other = await direct.call(AddUser(mail="other@example.org"))
        await direct.call(AddExchange(uid=desk.user.uid, cat_ex_id=desk.catalog.cat_ex_id, ex_name="second"))
        ex_id = desk.account.ex_id

        for values, version, expected in (
            ({"ex_name": "second"}, None, ("conflict", "ex_name")),
            ({"uid": other.uid}, None, ("conflict", "uid")),
            ({"active": False}, 2, ("conflict", "expected_version")),
        ):
            command = UpdateExchange(
                ex_id=ex_id, updates=ExchangeUpdates.model_validate(values), expected_version=version
            )
            assert await refused(executor, command) == expected
        command = UpdateExchange(ex_id=999, updates=ExchangeUpdates(active=False))
        assert await refused(executor, command) == ("not_found", "ex_id")
        lonely = await direct.call(AddExchange(uid=desk.user.uid, cat_ex_id=desk.catalog.cat_ex_id, ex_name="third"))
        command = UpdateExchange(ex_id=lonely.ex_id, updates=ExchangeUpdates(uid=999))
        assert await refused(executor, command) == ("not_found", "uid")

    async def test_an_account_needs_user_and_exchange(self, executor: Executor, desk: Desk) -> None:
        for fields, field in (({"uid": 999}, "uid"), ({"cat_ex_id": 999}, "cat_ex_id")):
            body = {"uid": desk.user.uid, "cat_ex_id": desk.catalog.cat_ex_id, "ex_name": "x", **fields}
            assert await refused(executor, AddExchange.model_validate(body)) == ("not_found", field)


class TestDeleteExchange:
    async def test_takes_everything_along_and_announces_it(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        ex_id = desk.account.ex_id
        await executor.execute([received(desk.trade()) for _ in range(3)])
        await furnish(direct, desk)
        await direct.call(SetExchangeParams(ex_id=ex_id, params={"a": "1"}))

        deletion = await direct.call(DeleteExchange(ex_id=ex_id))

        assert deletion.model_dump() == {"ex_id": ex_id, "orders": 0, "trades": 3}
        async with sessions() as session:
            for table in (Exchange, BotExchange, ExchangeParam, ExchangeCredential, DryTrade):
                assert await session.scalar(select(func.count()).select_from(table)) == 0
        [event] = await announced(sessions, "exchange.deleted")
        assert set(event.stale_keys) == {
            f"user:exchanges:{desk.user.uid}",
            f"exchange:params:{ex_id}",
            "exchange:active",
            f"user:trading_summary:{desk.user.uid}",
        }
        feed = (await events(sessions, "bot.feeds_changed"))[-1]
        assert (feed["before"]["ex_id"], feed["after"]["ex_id"], feed["version"]) == (ex_id, None, 2)
        [cleared] = await events(sessions, "dry_trade.cleared")
        assert (cleared["before"]["ex_id"], cleared["before"]["count"]) == (ex_id, 1)
        [link] = await announced(sessions, "bot.exchange_removed")
        assert set(link.stale_keys) == {
            f"bot:details:{desk.bot.bot_id}",
            f"bot:currency:{desk.bot.bot_id}:{ex_id}",
        }

    async def test_takes_the_same_few_statements_however_many_bots_use_it(
        self, direct: Direct, desk: Desk, engine: AsyncEngine
    ) -> None:
        counts = []
        for bots in (1, 7):
            account = await direct.call(
                AddExchange(uid=desk.user.uid, cat_ex_id=desk.catalog.cat_ex_id, ex_name=f"of {bots}")
            )
            for number in range(bots):
                bot = await direct.call(AddBot(uid=desk.user.uid, name=f"bot {bots}-{number}"))
                link = {"bot_id": bot.bot_id, "ex_id": account.ex_id}
                await direct.call(AddExchangeToBot.model_validate(link))
                feed = {**link, "symbol_id": desk.symbol.symbol_id, "timeframe": "1m"}
                await direct.call(AddFeedToBot.model_validate(feed))
                await direct.call(desk.dry_trade(**link))
            with statements(engine) as sent:
                await direct.call(DeleteExchange(ex_id=account.ex_id))
            counts.append(len(sent))

        assert counts[0] == counts[1]

    async def test_waits_until_nothing_is_open_unless_forced(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        ex_id = desk.account.ex_id
        async with sessions.begin() as session:
            await session.execute(text("UPDATE bots SET active = true"))
        assert await refused(executor, DeleteExchange(ex_id=ex_id)) == ("conflict", "ex_id")
        async with sessions.begin() as session:
            await session.execute(text("UPDATE bots SET active = false"))
        order = {"bot_id": desk.bot.bot_id, "uid": desk.user.uid, "ex_id": ex_id, "side": "buy", "size": "1"}
        await direct.call(
            CreateOrder.model_validate({**order, "symbol_id": desk.symbol.symbol_id, "order_type": "market"})
        )
        assert await refused(executor, DeleteExchange(ex_id=ex_id)) == ("conflict", "ex_id")
        assert await refused(executor, DeleteExchange(ex_id=999)) == ("not_found", "ex_id")
        command = DeleteExchange(ex_id=ex_id, force=True, expected_version=5)
        assert await refused(executor, command) == ("conflict", "expected_version")

        assert (await direct.call(DeleteExchange(ex_id=ex_id, force=True))).orders == 1


class TestParams:
    async def test_of_an_account_go_before_those_of_the_catalog(
        self, direct: Direct, asking: Asking, sessions: SessionMaker
    ) -> None:
        user = await direct.call(AddUser(mail="a@example.org"))
        catalog = await direct.call(InstallExchange(name="kraken", params={"rate": "10", "url": "x"}))
        accounts = [
            (await direct.call(AddExchange(uid=user.uid, cat_ex_id=catalog.cat_ex_id, ex_name=name))).ex_id
            for name in ("a", "b")
        ]

        own = await direct.call(SetExchangeParams(ex_id=accounts[0], params={"rate": "20", "extra": "1"}))
        assert (own.params, own.row_version) == ({"extra": "1", "rate": "20"}, 2)
        everyone = await direct.call(
            SetExchangeParams(cat_ex_id=catalog.cat_ex_id, params={"rate": "11", "url": None, "new": ""})
        )
        assert (everyone.params, everyone.row_version) == ({"new": "", "rate": "11"}, 2)

        assert await asking.ask(GetExchangeParams(ex_id=accounts[0])) == {"extra": "1", "new": "", "rate": "20"}
        assert await asking.ask(GetExchangeParams(ex_id=accounts[1])) == {"new": "", "rate": "11"}
        assert await asking.ask(GetExchangeParams(ex_id=999)) is None
        first, second = await announced(sessions, "exchange.params_changed")
        assert f"exchange:params:{accounts[0]}" in first.stale_keys
        assert f"exchange:params:{accounts[1]}" not in first.stale_keys
        assert {f"exchange:params:{ex_id}" for ex_id in accounts} <= set(second.stale_keys)
        [change] = json.loads(second.changes)
        assert change["key"] == {"cat_ex_id": catalog.cat_ex_id, "ex_id": None}
        assert change["before"]["params"] == {"rate": "10", "url": "x"}
        await direct.call(SetExchangeParams(ex_id=accounts[0], params={"rate": None}))
        assert (await asking.ask(GetExchangeParams(ex_id=accounts[0])))["rate"] == "11"

    async def test_that_are_so_already_are_no_change(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        ex_id = desk.account.ex_id
        first = await direct.call(SetExchangeParams(ex_id=ex_id, params={"a": "1"}))
        again = await direct.call(SetExchangeParams(ex_id=ex_id, params={"a": "1", "b": None}))

        assert again == first
        assert len(await announced(sessions, "exchange.params_changed")) == 1

    async def test_of_very_many_accounts_are_announced_in_the_same_few_statements(
        self, direct: Direct, desk: Desk, sessions: SessionMaker, engine: AsyncEngine
    ) -> None:
        cat_ex_id = desk.catalog.cat_ex_id
        async with sessions.begin() as session:
            await session.execute(
                text(
                    "INSERT INTO exchanges (uid, cat_ex_id, ex_name) SELECT :uid, :cat_ex_id, n::text "
                    "FROM generate_series(1, 2500) AS n"
                ),
                {"uid": desk.user.uid, "cat_ex_id": cat_ex_id},
            )

        with statements(engine) as sent:
            await direct.call(SetExchangeParams(cat_ex_id=cat_ex_id, params={"a": "1"}))

        found = await announced(sessions, "exchange.params_changed")
        changes = [change for event in found for change in json.loads(event.changes)]
        assert [len(change["after"]["accounts"]) for change in changes] == [1_000, 1_000, 501]
        keys = {key for event in found for key in event.stale_keys if key.startswith("exchange:params:")}
        assert len(keys) == 2_501
        assert len(sent) < 15

    async def test_need_one_exchange_or_account(self, executor: Executor, desk: Desk) -> None:
        assert await refused(executor, SetExchangeParams(ex_id=999, params={"a": "1"})) == ("not_found", "ex_id")
        command = SetExchangeParams(cat_ex_id=999, params={"a": "1"})
        assert await refused(executor, command) == ("not_found", "cat_ex_id")
        command = SetExchangeParams(ex_id=desk.account.ex_id, params={"a": "1"}, expected_version=7)
        assert await refused(executor, command) == ("conflict", "expected_version")

    @pytest.mark.parametrize(
        "fields",
        [
            {"params": {"a": "1"}},
            {"ex_id": 1, "cat_ex_id": 1, "params": {"a": "1"}},
            {"ex_id": 1, "params": {}},
            {"ex_id": 1, "params": {"": "1"}},
            {"ex_id": 1, "params": {"a": 1}},
            {"ex_id": 1, "params": {"apiSecret": "canary"}},
        ],
    )
    def test_have_limits(self, fields: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="1 validation error"):
            SetExchangeParams.model_validate(fields)


class TestLookups:
    async def test_list_accounts_and_catalog_in_one_statement_each(
        self, direct: Direct, asking: Asking, desk: Desk, engine: AsyncEngine
    ) -> None:
        off = await direct.call(
            AddExchange(uid=desk.user.uid, cat_ex_id=desk.catalog.cat_ex_id, ex_name="off", active=False)
        )

        with statements(engine) as sent:
            assert await asking.ask(GetExchangesByUser(uid=desk.user.uid)) == [desk.account, off]
            assert await asking.ask(GetActiveExchanges()) == [desk.account]
            assert await asking.ask(GetExchangeCatalog()) == [desk.catalog]

        assert len(sent) == 3
        assert await asking.ask(GetExchangesByUser(uid=999)) == []
        assert await asking.ask(GetExchange(ex_id=999)) is None


class TestTheLibrary:
    """The manual's examples, on the same repository."""

    async def test_keeps_accounts(self, sessions: SessionMaker, desk: Desk, vault: Vault) -> None:
        uid, cat_ex_id = desk.user.uid, desk.catalog.cat_ex_id
        async with sessions.begin() as session:
            exchanges = ExchangeRepository(session)
            account = await exchanges.create(
                {
                    "uid": uid,
                    "cat_ex_id": cat_ex_id,
                    "ex_name": "Binance Main",
                    "account": "main_trading",
                    "api_key": sealed(vault, "key", uid=uid, field="api_key"),
                    "sandbox": False,
                }
            )
            assert [row.ex_id for row in await exchanges.get_exchanges_by_user(uid)] == [
                desk.account.ex_id,
                account.ex_id,
            ]
            assert await exchanges.get_exchange_params(account.ex_id) == {}
            assert [row.cat_ex_id for row in await exchanges.get_exchange_catalog()] == [cat_ex_id]
            assert len(await exchanges.get_user_exchanges(uid)) == 2
            updated = await exchanges.update(account.ex_id, {"active": False})
            assert (updated is account, updated.active, updated.has_credentials) == (True, False, True)
            assert [row.ex_id for row in await exchanges.get_active_exchanges()] == [desk.account.ex_id]
            assert await exchanges.get_by_id(account.ex_id) is account
            assert await exchanges.get_exchange(uid=uid, active=False) == [account]
            assert await exchanges.get_exchange_id("Binance Main", uid) == account.ex_id
            assert await exchanges.get_exchange_cat_id(desk.catalog.name) == cat_ex_id
            assert await exchanges.get_exchange_cat_id(ex_id=account.ex_id) == cat_ex_id
            assert [row.id for row in await exchanges.get_exchange_symbols(cat_ex_id)] == [desk.symbol.symbol_id]
            await exchanges.delete(account.ex_id)
            assert await exchanges.get_by_id(account.ex_id) is None

    async def test_takes_no_plain_credentials_and_no_unknown_columns(
        self, sessions: SessionMaker, desk: Desk
    ) -> None:
        async with sessions() as session:
            exchanges = ExchangeRepository(session)
            for updates, field in (({"api_key": "plain"}, "api_key"), ({"ex_id": 5}, "ex_id"), ({"x": 1}, "x")):
                with pytest.raises(Refusal) as refusal:
                    await exchanges.update(desk.account.ex_id, updates)
                assert (refusal.value.code, refusal.value.field) == (ErrorCode.VALIDATION, field)
                await session.rollback()


class TestARefusedCredential:
    """A program that goes on after it, in the same session, finds nothing half done."""

    async def test_takes_a_new_account_back(self, sessions: SessionMaker, desk: Desk) -> None:
        async with sessions.begin() as session:
            account = {"uid": desk.user.uid, "cat_ex_id": desk.catalog.cat_ex_id, "ex_name": "half"}
            with pytest.raises(Refusal):
                await ExchangeRepository(session).create({**account, "api_key": "plain"})

        async with sessions() as session:
            assert [
                each.ex_name for each in await ExchangeRepository(session).get_exchanges_by_user(desk.user.uid)
            ] == ["main"]

    async def test_takes_a_change_back(self, sessions: SessionMaker, desk: Desk) -> None:
        async with sessions.begin() as session:
            with pytest.raises(Refusal):
                await ExchangeRepository(session).update(
                    desk.account.ex_id, {"ex_name": "again", "passphrase": "plain"}
                )

        async with sessions() as session:
            account = await ExchangeRepository(session).get_by_id(desk.account.ex_id)
            assert account is not None
            assert (account.ex_name, account.row_version) == ("main", desk.account.row_version)
