"""Exchange accounts, their settings and their credentials, by messages and by the library."""

import json
import secrets
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import (
    AddExchange,
    AddUser,
    CreateOrder,
    DeleteExchange,
    DeleteUser,
    ErrorCode,
    ExchangeUpdates,
    GetActiveExchanges,
    GetExchange,
    GetExchangeCatalog,
    GetExchangeCredentials,
    GetExchangeParams,
    GetExchangesByUser,
    GetSealingKey,
    GetUser,
    GetUserByEmail,
    GetUserCredentials,
    GetUserId,
    InstallExchange,
    ModifyUser,
    Refusal,
    SetExchangeParams,
    SetUserActive,
    UpdateExchange,
    UpdatePassword,
    UserUpdates,
    new_key_pair,
    seal,
    unseal,
)
from contracts.base import Command, Lookup
from service.cli.keys import Rotation, rotate
from service.database import SessionMaker, build_session_maker
from service.executor import Executor
from service.lookups import ANSWERS
from service.models import BotExchange, Exchange, ExchangeCredential, ExchangeParam, OutboxEvent
from service.repositories import ExchangeRepository
from service.vault import Vault
from tests.builders import Asking, Desk, Direct, a_desk, a_vault, counted_statements, received

PRIVATE, PUBLIC = new_key_pair()


@pytest.fixture
def vault() -> Vault:
    return a_vault()


@pytest.fixture
def sessions(engine: AsyncEngine, vault: Vault) -> SessionMaker:
    """Sessions that can keep credentials."""
    return build_session_maker(engine, vault)


@pytest.fixture
def executor(sessions: SessionMaker) -> Executor:
    return Executor(sessions)


@pytest.fixture
def direct(executor: Executor) -> Direct:
    return Direct(executor)


@pytest.fixture
def asking(sessions: SessionMaker) -> Asking:
    return Asking(sessions)


@pytest.fixture
async def desk(direct: Direct) -> Desk:
    return await a_desk(direct)


def sealed(vault: Vault, secret: str, *, uid: int, field: str) -> str:
    assert vault.public_key is not None
    return seal(secret, vault.public_key, uid=uid, field=field)


async def events(sessions: SessionMaker, kind: str) -> list[OutboxEvent]:
    async with sessions() as session:
        return list(
            await session.scalars(select(OutboxEvent).where(OutboxEvent.type == kind).order_by(OutboxEvent.id))
        )


async def refused(executor: Executor, command: Command[Any]) -> tuple[str, str | None]:
    [reply] = await executor.execute([received(command)])
    assert reply.error is not None, reply
    return reply.error.code.value, reply.error.field


async def credentials(asking: Asking, ex_id: int) -> dict[str, str | None] | None:
    """What an asker finds after opening what it is given."""
    found = await asking.ask(GetExchangeCredentials(ex_id=ex_id, public_key=PUBLIC))
    if found is None:
        return None
    values = found.model_dump(exclude={"ex_id", "uid"})
    return {field: value and unseal(value, PRIVATE, uid=found.uid, field=field) for field, value in values.items()}


class TestCredentials:
    async def test_come_back_as_they_were_and_are_seen_nowhere_else(
        self, direct: Direct, asking: Asking, desk: Desk, vault: Vault, sessions: SessionMaker
    ) -> None:
        uid = desk.user.uid
        account = await direct.call(
            AddExchange(
                uid=uid,
                cat_ex_id=desk.catalog.cat_ex_id,
                ex_name="with keys",
                api_key=sealed(vault, "the key", uid=uid, field="api_key"),
                api_secret=sealed(vault, "the secret\n" * 300, uid=uid, field="api_secret"),
            )
        )

        assert (account.has_credentials, account.row_version) == (True, 1)
        assert await asking.ask(GetExchange(ex_id=account.ex_id)) == account
        assert await credentials(asking, account.ex_id) == {
            "api_key": "the key",
            "api_secret": "the secret\n" * 300,
            "passphrase": None,
        }
        async with sessions() as session:
            stored = await session.get(ExchangeCredential, account.ex_id)
        assert stored is not None
        assert stored.to_dict().keys() == {"ex_id", "uid", "updated_at"}
        assert "the key" not in str(stored.api_key)

    async def test_can_be_changed_one_by_one_and_taken_away(
        self, direct: Direct, asking: Asking, desk: Desk, vault: Vault, sessions: SessionMaker
    ) -> None:
        uid, ex_id = desk.user.uid, desk.account.ex_id

        async def change(**secrets: str | None) -> Any:
            updates = {name: s and sealed(vault, s, uid=uid, field=name) for name, s in secrets.items()}
            return await direct.call(UpdateExchange(ex_id=ex_id, updates=ExchangeUpdates.model_validate(updates)))

        assert await credentials(asking, ex_id) is None
        first = await change(api_key="a", api_secret="b", passphrase="c")
        second = await change(api_secret="new", passphrase=None)
        assert await credentials(asking, ex_id) == {"api_key": "a", "api_secret": "new", "passphrase": None}
        third = await change(api_key=None, api_secret=None)

        assert await credentials(asking, ex_id) is None
        assert [(v.has_credentials, v.row_version) for v in (first, second, third)] == [
            (True, 2),
            (True, 3),
            (False, 4),
        ]
        versions = [json.loads(e.changes)[0]["version"] for e in await events(sessions, "exchange.updated")]
        assert versions == [2, 3, 4]

    async def test_of_one_user_are_worth_nothing_to_another(
        self, direct: Direct, executor: Executor, desk: Desk, vault: Vault
    ) -> None:
        seen = sealed(vault, "the key", uid=desk.user.uid, field="api_key")
        thief = await direct.call(AddUser(mail="thief@example.org"))
        body = {"uid": thief.uid, "cat_ex_id": desk.catalog.cat_ex_id, "ex_name": "x", "api_key": seen}

        assert await refused(executor, AddExchange.model_validate(body)) == ("validation", "api_key")

    async def test_do_not_go_to_another_owner(self, direct: Direct, asking: Asking, desk: Desk, vault: Vault) -> None:
        uid = desk.user.uid
        other = await direct.call(AddUser(mail="other@example.org"))
        account = await direct.call(
            AddExchange(
                uid=uid,
                cat_ex_id=desk.catalog.cat_ex_id,
                ex_name="moves",
                api_key=sealed(vault, "first", uid=uid, field="api_key"),
            )
        )

        moved = await direct.call(UpdateExchange(ex_id=account.ex_id, updates=ExchangeUpdates(uid=other.uid)))
        assert (moved.uid, moved.has_credentials, moved.row_version) == (other.uid, False, 2)
        assert await credentials(asking, account.ex_id) is None

        back = ExchangeUpdates(uid=uid, api_key=sealed(vault, "second", uid=uid, field="api_key"))
        assert (await direct.call(UpdateExchange(ex_id=account.ex_id, updates=back))).has_credentials
        assert await credentials(asking, account.ex_id) == {
            "api_key": "second",
            "api_secret": None,
            "passphrase": None,
        }

    async def test_are_refused_where_there_are_no_keys_and_nothing_else_is(self, engine: AsyncEngine) -> None:
        executor = Executor(build_session_maker(engine))
        desk = await a_desk(Direct(executor))
        body = {
            "uid": desk.user.uid,
            "cat_ex_id": desk.catalog.cat_ex_id,
            "ex_name": "x",
            "api_key": seal("x", PUBLIC, uid=desk.user.uid, field="api_key"),
        }

        [reply] = await executor.execute([received(AddExchange.model_validate(body))])

        assert reply.error is not None
        assert (reply.error.code, reply.error.field) == (ErrorCode.UNAVAILABLE, "api_key")
        assert "SEALING_KEY_FILE" in reply.error.message
        asking = Asking(build_session_maker(engine))
        assert await asking.ask(GetExchange(ex_id=desk.account.ex_id)) == desk.account
        assert await asking.ask(GetSealingKey()) is None
        assert len(await asking.ask(GetExchangesByUser(uid=desk.user.uid))) == 1

    async def test_are_sealed_with_the_key_that_a_lookup_gives(self, asking: Asking, vault: Vault) -> None:
        assert (await asking.ask(GetSealingKey())).public_key == vault.public_key

    async def test_that_were_moved_in_the_database_do_not_open(
        self, direct: Direct, asking: Asking, desk: Desk, vault: Vault, sessions: SessionMaker
    ) -> None:
        uid, ex_id = desk.user.uid, desk.account.ex_id
        updates = {"api_key": sealed(vault, "x", uid=uid, field="api_key")}
        await direct.call(UpdateExchange(ex_id=ex_id, updates=ExchangeUpdates.model_validate(updates)))
        async with sessions.begin() as session:
            await session.execute(text("UPDATE exchange_credentials SET api_secret = api_key, api_key = NULL"))

        with pytest.raises(Refusal) as refusal:
            await asking.ask(GetExchangeCredentials(ex_id=ex_id, public_key=PUBLIC))
        assert (refusal.value.code, refusal.value.field) == (ErrorCode.UNAVAILABLE, "api_secret")

    async def test_second_factors_are_kept_likewise(
        self, direct: Direct, executor: Executor, asking: Asking, desk: Desk, vault: Vault
    ) -> None:
        uid, mail = desk.user.uid, desk.user.mail
        other = await direct.call(AddUser(mail="other@example.org"))
        f2a = sealed(vault, "JBSWY3DPEHPK3PXP", uid=uid, field="f2a")

        await direct.call(ModifyUser(uid=uid, updates=UserUpdates(f2a=f2a)))
        found = await asking.ask(GetUserCredentials(mail=mail, public_key=PUBLIC))

        assert unseal(found.f2a, PRIVATE, uid=uid, field="f2a") == "JBSWY3DPEHPK3PXP"
        assert (await asking.ask(GetUserCredentials(mail=mail))).f2a is None
        command = ModifyUser(uid=other.uid, updates=UserUpdates(f2a=f2a))
        assert await refused(executor, command) == ("validation", "f2a")
        await direct.call(ModifyUser(uid=uid, updates=UserUpdates(f2a=None)))
        assert (await asking.ask(GetUserCredentials(mail=mail, public_key=PUBLIC))).f2a is None


class TestRotation:
    async def test_can_be_broken_off_and_gone_on_with(
        self, engine: AsyncEngine, vault: Vault, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        uid = desk.user.uid
        ex_ids = []
        for number in range(5):
            account = await direct.call(
                AddExchange(
                    uid=uid,
                    cat_ex_id=desk.catalog.cat_ex_id,
                    ex_name=f"account {number}",
                    api_key=sealed(vault, f"key {number}", uid=uid, field="api_key"),
                    api_secret=sealed(vault, f"secret {number}", uid=uid, field="api_secret"),
                )
            )
            ex_ids.append(account.ex_id)
        f2a = sealed(vault, "second factor", uid=uid, field="f2a")
        before = await direct.call(ModifyUser(uid=uid, updates=UserUpdates(f2a=f2a)))
        old = vault._ciphers["first"]
        newer = Vault([], {"second": secrets.token_bytes(32)})
        newer._ciphers["first"] = old
        newest = build_session_maker(engine, newer)

        class BrokenOff(Exception):  # noqa: N818
            pass

        def break_off(rotation: Rotation) -> None:
            if rotation.seen == 4:
                raise BrokenOff

        with pytest.raises(BrokenOff):
            await rotate(newest, newer, batch_size=2, progress=break_off)
        steps: list[int] = []
        rotation = await rotate(newest, newer, batch_size=2, progress=lambda r: steps.append(r.renewed))

        assert (rotation.seen, rotation.renewed, rotation.unreadable) == (6, 2, [])
        assert steps == [0, 0, 1, 2]
        del newer._ciphers["first"]
        reading = Asking(newest)
        for number, ex_id in enumerate(ex_ids):
            found = await credentials(reading, ex_id)
            assert found == {"api_key": f"key {number}", "api_secret": f"secret {number}", "passphrase": None}
        person = await reading.ask(GetUserCredentials(mail=desk.user.mail, public_key=PUBLIC))
        assert unseal(person.f2a, PRIVATE, uid=uid, field="f2a") == "second factor"
        # Nobody sees a new version of anything.
        assert await reading.ask(GetUser(uid=uid)) == before
        assert await events(sessions, "exchange.updated") == []
        assert (await rotate(newest, newer)).renewed == 0

    async def test_leaves_what_it_cannot_read_and_says_so(
        self, engine: AsyncEngine, vault: Vault, direct: Direct, desk: Desk
    ) -> None:
        updates = {"api_key": sealed(vault, "x", uid=desk.user.uid, field="api_key")}
        await direct.call(UpdateExchange(ex_id=desk.account.ex_id, updates=ExchangeUpdates.model_validate(updates)))
        stranger = Vault([], {"second": secrets.token_bytes(32)})

        rotation = await rotate(build_session_maker(engine, stranger), stranger)

        assert (rotation.renewed, rotation.unreadable) == (0, [f"exchanges/{desk.account.ex_id}"])


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
        [event] = await events(sessions, "exchange.updated")
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
        await direct.call(SetExchangeParams(ex_id=ex_id, params={"a": "1"}))

        deletion = await direct.call(DeleteExchange(ex_id=ex_id))

        assert deletion.model_dump() == {"ex_id": ex_id, "orders": 0, "trades": 3}
        async with sessions() as session:
            for table in (Exchange, BotExchange, ExchangeParam, ExchangeCredential):
                assert await session.scalar(select(func.count()).select_from(table)) == 0
        [event] = await events(sessions, "exchange.deleted")
        assert set(event.stale_keys) == {
            f"user:exchanges:{desk.user.uid}",
            f"exchange:params:{ex_id}",
            "exchange:active",
            f"user:trading_summary:{desk.user.uid}",
        }
        [link] = await events(sessions, "bot.exchange_removed")
        assert set(link.stale_keys) == {
            f"bot:details:{desk.bot.bot_id}",
            f"bot:currency:{desk.bot.bot_id}:{ex_id}",
        }

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
        first, second = await events(sessions, "exchange.params_changed")
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
        assert len(await events(sessions, "exchange.params_changed")) == 1

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

        with counted_statements(engine) as statements:
            await direct.call(SetExchangeParams(cat_ex_id=cat_ex_id, params={"a": "1"}))

        found = await events(sessions, "exchange.params_changed")
        changes = [change for event in found for change in json.loads(event.changes)]
        assert [len(change["after"]["accounts"]) for change in changes] == [1_000, 1_000, 501]
        keys = {key for event in found for key in event.stale_keys if key.startswith("exchange:params:")}
        assert len(keys) == 2_501
        assert len(statements) < 15

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

        with counted_statements(engine) as statements:
            assert await asking.ask(GetExchangesByUser(uid=desk.user.uid)) == [desk.account, off]
            assert await asking.ask(GetActiveExchanges()) == [desk.account]
            assert await asking.ask(GetExchangeCatalog()) == [desk.catalog]

        assert len(statements) == 3
        assert await asking.ask(GetExchangesByUser(uid=999)) == []
        assert await asking.ask(GetExchange(ex_id=999)) is None

    async def test_every_changed_cached_answer_is_among_the_stale_keys(
        self, direct: Direct, asking: Asking, desk: Desk, vault: Vault, sessions: SessionMaker
    ) -> None:
        """Each command in turn: what a cache would hold before and after it, and what its events say."""
        uid, ex_id, cat_ex_id = desk.user.uid, desk.account.ex_id, desk.catalog.cat_ex_id
        other = await direct.call(AddUser(mail="other@example.org", manager=uid))
        third = await direct.call(AddExchange(uid=uid, cat_ex_id=cat_ex_id, ex_name="third"))
        mails = (desk.user.mail, "other@example.org", "new@example.org", "newer@example.org")
        ids = (uid, other.uid, other.uid + 1)
        cached: list[Lookup[Any]] = [
            *(GetUser(uid=i) for i in ids),
            *(GetUserId(mail=mail) for mail in mails),
            *(GetExchangesByUser(uid=i) for i in ids),
            *(GetExchangeParams(ex_id=i) for i in range(ex_id, third.ex_id + 2)),
            GetExchangeCatalog(),
            GetActiveExchanges(),
        ]
        by_mail = [GetUserByEmail(mail=mail) for mail in mails]
        key = sealed(vault, "k", uid=uid, field="api_key")
        commands: list[Command[Any]] = [
            AddUser(mail="new@example.org"),
            ModifyUser(uid=other.uid, updates=UserUpdates(mail="newer@example.org", manager=None)),
            ModifyUser(uid=other.uid, updates=UserUpdates(manager=uid)),
            UpdatePassword(uid=uid, password_hash="0" * 64),
            SetUserActive(uid=uid, active=False),
            InstallExchange(name="another", params={"a": "1"}),
            AddExchange(uid=uid, cat_ex_id=cat_ex_id, ex_name="new"),
            UpdateExchange(ex_id=ex_id, updates=ExchangeUpdates.model_validate({"api_key": key})),
            UpdateExchange(ex_id=third.ex_id, updates=ExchangeUpdates(uid=other.uid)),
            SetExchangeParams(ex_id=ex_id, params={"a": "1"}),
            SetExchangeParams(cat_ex_id=cat_ex_id, params={"b": "2"}),
            DeleteExchange(ex_id=third.ex_id),
            DeleteUser(uid=uid),
        ]

        for command in commands:
            before = [await asking.ask(lookup) for lookup in cached]
            count = len(await every_event(sessions))
            await direct.call(command)
            stale = {key for event in (await every_event(sessions))[count:] for key in event.stale_keys}
            after = [await asking.ask(lookup) for lookup in cached]
            changed = [lookup for lookup, old, new in zip(cached, before, after, strict=True) if old != new]
            assert changed, command
            for lookup in changed:
                cached_under = ANSWERS[type(lookup)].key
                assert cached_under is not None
                assert cached_under(lookup) in stale, (command, lookup)
        assert [user and user.mail for user in [await asking.ask(lookup) for lookup in by_mail]] == [
            None,
            None,
            "new@example.org",
            "newer@example.org",
        ]


async def every_event(sessions: SessionMaker) -> list[OutboxEvent]:
    async with sessions() as session:
        return list(await session.scalars(select(OutboxEvent).order_by(OutboxEvent.id)))


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
