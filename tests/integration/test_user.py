"""Users: registered, changed, found and deleted, by messages and by the library."""

import hashlib
import json
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import (
    AddBot,
    AddBotStrategy,
    AddFeedToBot,
    AddUser,
    CreateOrder,
    DeleteUser,
    ErrorCode,
    GetUser,
    GetUserCredentials,
    InstallStrategy,
    ModifyUser,
    Refusal,
    Reply,
    SetUserActive,
    ToggleActive,
    UpdatePassword,
    UserUpdates,
)
from service.database import SessionMaker
from service.executor import Executor
from service.models import (
    Bot,
    BotLog,
    DeadLetter,
    DryTrade,
    Exchange,
    Feed,
    Order,
    RoleEnum,
    Simulation,
    Strategy,
    Trade,
    User,
)
from service.received import Received
from service.repositories import UserRepository
from tests.builders import Asking, Desk, Direct, furnish, received
from tests.observe import announced, events, refused, statements

HASH = hashlib.sha256(b"password").hexdigest()
OTHER_HASH = "$2b$12$" + "a" * 53


async def refused_body(executor: Executor, name: str, body: dict[str, Any]) -> tuple[str, str | None]:
    """The same for a body that the contracts' own classes would not let anybody make."""
    message = received(AddUser(mail="a@b"))
    [reply] = await executor.execute(
        [Received(command=name, body=json.dumps(body).encode(), message_id=message.message_id)]
    )
    assert reply.error is not None, reply
    return reply.error.code.value, reply.error.field


class TestModifyUser:
    async def test_changes_what_it_names_and_nothing_else(
        self, direct: Direct, asking: Asking, sessions: SessionMaker
    ) -> None:
        boss = await direct.call(AddUser(mail="boss@example.org", role="ADMIN"))
        user = await direct.call(AddUser(mail="Ada@example.org", name="Ada", phone="+4912345", external_id="x-1"))
        updates = {
            "mail": "ada.l@example.org",
            "lastname": "Lovelace",
            "note": "first of all",
            "manager": boss.uid,
            "external_id": None,
            "role": "ADMIN",
        }

        changed = await direct.call(ModifyUser(uid=user.uid, updates=UserUpdates.model_validate(updates)))

        assert changed == user.model_copy(update={**updates, "row_version": 2})
        assert await asking.ask(GetUser(uid=user.uid)) == changed
        [event] = await announced(sessions, "user.updated")
        [change] = json.loads(event.changes)
        assert (change["before"], change["after"]) == (user.model_dump(mode="json"), changed.model_dump(mode="json"))
        assert sorted(change["changed"]) == sorted([*updates, "row_version"])
        assert set(event.stale_keys) == {
            f"user:{user.uid}",
            "user:id:ada@example.org",
            "user:id:ada.l@example.org",
            f"user:trading_summary:{user.uid}",
        }

    async def test_that_changes_nothing_announces_nothing(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        same = await direct.call(ModifyUser(uid=desk.user.uid, updates=UserUpdates(mail=desk.user.mail)))

        assert same == desk.user
        assert await announced(sessions, "user.updated") == []

    async def test_refuses_what_cannot_be(self, executor: Executor, direct: Direct, desk: Desk) -> None:
        await direct.call(AddUser(mail="taken@example.org", external_id="taken"))
        uid = desk.user.uid

        assert await refused(executor, ModifyUser(uid=999, updates=UserUpdates(name="x"))) == ("not_found", "uid")
        for values, expected in (
            ({"mail": "Taken@Example.org"}, ("conflict", "mail")),
            ({"external_id": "taken"}, ("conflict", "external_id")),
            ({"manager": 999}, ("not_found", "manager")),
            ({"manager": uid}, ("validation", "manager")),
        ):
            updates = UserUpdates.model_validate(values)
            assert await refused(executor, ModifyUser(uid=uid, updates=updates)) == expected
        command = ModifyUser(uid=uid, updates=UserUpdates(name="x"), expected_version=7)
        assert await refused(executor, command) == ("conflict", "expected_version")

    @pytest.mark.parametrize(
        ("updates", "field"),
        [
            pytest.param({"name": "x" * 51}, "updates.name", id="a name too long"),
            pytest.param({"name": 5}, "updates.name", id="a name that is a number"),
            pytest.param({"mail": "nobody"}, "updates.mail", id="a mail address that is none"),
            pytest.param({"mail": None}, "updates", id="no mail address at all"),
            pytest.param({"role": "ROOT"}, "updates.role", id="an unknown role"),
            pytest.param({"password": "canary"}, "updates.password", id="a password"),
            pytest.param({"f2a": "123456"}, "updates.f2a", id="a plain second factor"),
            pytest.param({"f2a": "sealed"}, "updates.f2a", id="a second factor that only says it is sealed"),
            pytest.param({}, "updates", id="nothing"),
        ],
    )
    async def test_refuses_bad_fields(self, executor: Executor, updates: dict[str, Any], field: str) -> None:
        assert await refused_body(executor, "modify_user", {"uid": 1, "updates": updates}) == ("validation", field)


class TestUpdatePassword:
    async def test_is_announced_without_a_word_on_what_it_is(
        self, direct: Direct, asking: Asking, desk: Desk, sessions: SessionMaker
    ) -> None:
        await direct.call(UpdatePassword(uid=desk.user.uid, password_hash=OTHER_HASH))

        found = await asking.ask(GetUserCredentials(mail=desk.user.mail.upper()))
        assert (found.uid, found.password_hash, found.active) == (desk.user.uid, OTHER_HASH, True)
        [event] = await announced(sessions, "user.password_changed")
        assert json.loads(event.changes) == [
            {
                "key": {"uid": desk.user.uid},
                "version": 2,
                "before": {"uid": desk.user.uid, "row_version": 1},
                "after": {"uid": desk.user.uid, "row_version": 2},
                "changed": ["row_version"],
            }
        ]
        assert f"user:{desk.user.uid}" in event.stale_keys

    async def test_takes_no_password(self, executor: Executor, desk: Desk) -> None:
        for secret in ("canary", "a" * 63, "A" * 64, "$argon2id$"):
            body = {"uid": desk.user.uid, "password_hash": secret}
            assert await refused_body(executor, "update_password", body) == ("validation", "password_hash")

    async def test_needs_a_user_at_the_version_expected(self, executor: Executor, desk: Desk) -> None:
        command = UpdatePassword(uid=999, password_hash=HASH)
        assert await refused(executor, command) == ("not_found", "uid")
        command = UpdatePassword(uid=desk.user.uid, password_hash=HASH, expected_version=2)
        assert await refused(executor, command) == ("conflict", "expected_version")


class TestSetUserActive:
    @pytest.mark.parametrize("command", [SetUserActive, ToggleActive])
    async def test_sets_and_does_not_flip(
        self, command: type[SetUserActive], direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        first = await direct.call(command(uid=desk.user.uid, active=False))
        second = await direct.call(command(uid=desk.user.uid, active=False))

        assert (first.active, first.row_version) == (False, 2)
        assert second == first
        assert len(await announced(sessions, "user.updated")) == 1

    async def test_has_one_effect_however_often_it_is_delivered(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        message = received(SetUserActive(uid=desk.user.uid, active=False))

        [first] = await executor.execute([message])
        [again] = await executor.execute([message])

        assert again.data == first.data
        assert again.meta.duplicate
        assert len(await announced(sessions, "user.updated")) == 1


class TestDeleteUser:
    async def test_takes_everything_along_and_announces_it(
        self, executor: Executor, direct: Direct, desk: Desk, asking: Asking, sessions: SessionMaker
    ) -> None:
        uid, bot_id, ex_id = desk.user.uid, desk.bot.bot_id, desk.account.ex_id
        employee = await direct.call(AddUser(mail="employee@example.org", manager=uid))
        await furnish(direct, desk)
        await executor.execute([received(desk.trade()) for _ in range(3)])

        deletion = await direct.call(DeleteUser(uid=uid))

        assert deletion.model_dump() == {"uid": uid, "bots": 1, "exchanges": 1, "orders": 0, "trades": 3}
        for table in (Bot, Exchange, Trade, DryTrade, Feed, Strategy, Simulation, BotLog):
            async with sessions() as session:
                assert await session.scalar(select(func.count()).select_from(table)) == 0
        [gone] = await announced(sessions, "user.deleted")
        [change] = json.loads(gone.changes)
        assert (change["version"], change["before"], change["after"]) == (2, desk.user.model_dump(mode="json"), None)
        assert {f"user:{uid}", f"user:id:{desk.user.mail}", f"user:bots:{uid}"} <= set(gone.stale_keys)
        assert {f"user:exchanges:{uid}", f"user:trading_summary:{uid}"} <= set(gone.stale_keys)
        [bot] = await announced(sessions, "bot.deleted")
        assert f"bot:details:{bot_id}" in bot.stale_keys
        for kind in ("bot.feeds_changed", "bot.strategy_changed", "dry_trade.cleared"):
            last = (await events(sessions, kind))[-1]
            assert (last["before"]["bot_id"], last["after"]) == (bot_id, None)
        [link] = await announced(sessions, "bot.exchange_removed")
        assert f"bot:currency:{bot_id}:{ex_id}" in link.stale_keys
        [account] = await announced(sessions, "exchange.deleted")
        assert {f"exchange:params:{ex_id}", "exchange:active"} <= set(account.stale_keys)
        [released] = await events(sessions, "user.updated")
        assert (released["before"]["manager"], released["after"]["manager"], released["version"]) == (uid, None, 2)
        now = await asking.ask(GetUser(uid=employee.uid))
        assert now == employee.model_copy(update={"manager": None, "row_version": 2})

    async def test_waits_until_nothing_is_open_unless_forced(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        uid = desk.user.uid
        order = CreateOrder(
            bot_id=desk.bot.bot_id,
            uid=uid,
            ex_id=desk.account.ex_id,
            symbol_id=desk.symbol.symbol_id,
            side="buy",
            size="1",
            order_type="market",
        )
        await direct.call(order)

        assert await refused(executor, DeleteUser(uid=uid)) == ("conflict", "uid")
        assert await announced(sessions, "user.deleted") == []

        assert (await direct.call(DeleteUser(uid=uid, force=True))).orders == 1
        async with sessions() as session:
            assert await session.scalar(select(func.count()).select_from(Order)) == 0

    async def test_is_refused_while_a_bot_trades_for_real(self, executor: Executor, direct: Direct) -> None:
        user = await direct.call(AddUser(mail="a@example.org"))
        await direct.call(AddBot(uid=user.uid, name="dry", active=True, dry_run=True))
        other = await direct.call(AddUser(mail="b@example.org"))
        await direct.call(AddBot(uid=other.uid, name="live", active=True))

        assert await refused(executor, DeleteUser(uid=other.uid)) == ("conflict", "uid")
        assert (await direct.call(DeleteUser(uid=user.uid))).bots == 1

    async def test_needs_a_user_at_the_version_expected(self, executor: Executor, desk: Desk) -> None:
        assert await refused(executor, DeleteUser(uid=999)) == ("not_found", "uid")
        command = DeleteUser(uid=desk.user.uid, expected_version=2)
        assert await refused(executor, command) == ("conflict", "expected_version")

    async def test_takes_the_same_few_statements_however_much_there_is(
        self, direct: Direct, desk: Desk, engine: AsyncEngine
    ) -> None:
        catalog = await direct.call(InstallStrategy(name="strategy"))
        counts = []
        for bots in (1, 12):
            user = await direct.call(AddUser(mail=f"{bots}@example.org"))
            for number in range(bots):
                bot = await direct.call(AddBot(uid=user.uid, name=f"bot {number}"))
                await direct.call(AddBotStrategy(bot_id=bot.bot_id, cat_str_id=catalog.cat_str_id))
                await direct.call(AddFeedToBot(bot_id=bot.bot_id, symbol_id=desk.symbol.symbol_id, timeframe="1m"))
                await direct.call(AddUser(mail=f"{bots}-{number}@example.org", manager=user.uid))
            with statements(engine) as sent:
                await direct.call(DeleteUser(uid=user.uid))
            counts.append(len(sent))

        assert counts[0] == counts[1]


class TestTheLibrary:
    """The manual's examples, on the same repository."""

    async def test_creates_finds_and_changes_users(self, sessions: SessionMaker) -> None:
        async with sessions.begin() as session:
            users = UserRepository(session)
            admin = await users.create({"mail": "admin@company.com", "password": HASH, "role": "ADMIN"})
            user = await users.add_user({"mail": "user@company.com", "manager": admin.uid, "role": "USER"})
            assert admin.role is RoleEnum.ADMIN
            assert await users.get_by_id(user.uid) is user
            assert await users.get_by_email("USER@company.com") is user
            assert await users.get_user_id("user@company.com") == user.uid
            assert await users.get_user_id("nobody@company.com") is None
            assert (await users.modify_user(user.uid, {"name": "Updated"})).name == "Updated"
            await users.update_password(user.uid, HASH)
            await users.toggle_active(user.uid, active=False)
            assert (user.password, user.active, user.row_version) == (HASH, False, 4)
            assert await users.search("company") == [admin, user]
            assert await users.get_user_list() == [admin, user]
            assert await users.get_user_list(manager_id=admin.uid) == [user]
            assert await users.get_active_users() == [admin]
            assert await users.get_all() == [admin, user]
            await users.delete(user.uid)
            await users.remove_user("admin@company.com")
            assert await users.get_all() == []
        assert len(await events(sessions, "user.created")) == 2
        assert [change["version"] for change in await events(sessions, "user.deleted")] == [5, 2]

    async def test_announces_nothing_of_what_is_rolled_back(self, sessions: SessionMaker) -> None:
        async with sessions() as session:
            users = UserRepository(session)
            await users.create({"mail": "admin@company.com"})
            await users.flush()
            await users.rollback()
            await users.create({"mail": "user@company.com"})
            await users.commit()
        assert [c["after"]["mail"] for c in await events(sessions, "user.created")] == ["user@company.com"]

    async def test_refuses_what_messages_refuse(self, sessions: SessionMaker) -> None:
        async with sessions() as session:
            users = UserRepository(session)
            user = await users.create({"mail": "admin@company.com"})
            for attempt, field in (
                (users.create({"mail": "b@company.com", "password": "plain"}), "password"),
                (users.create({"mail": "b@company.com", "role": "ROOT"}), "role"),
                (users.create({"mail": "b@company.com", "f2a": "123456"}), "f2a"),
                (users.update_password(user.uid, "plain"), "password"),
                (users.modify_user(user.uid, {"password": HASH}), "password"),
                (users.modify_user(user.uid, {"uid": 5}), "uid"),
                (users.modify_user(user.uid, {"nickname": "x"}), "nickname"),
                (users.modify_user(user.uid, {"f2a": "123456"}), "f2a"),
            ):
                with pytest.raises(Refusal) as refusal:
                    await attempt
                assert (refusal.value.code, refusal.value.field) == (ErrorCode.VALIDATION, field)

    def test_shows_no_password(self) -> None:
        user = User(mail="a@b", password=HASH, f2a="v1:x:y", role=RoleEnum.USER)

        assert {"password", "f2a"}.isdisjoint(user.to_dict())

    def test_says_what_failed_in_one_line(self) -> None:
        line = UserRepository(None).error_print(ValueError("x"), "search", "SELECT")  # type: ignore[arg-type]

        assert line == "Repository error in search: x | Query: SELECT"


async def test_nothing_is_written_for_a_refused_command(
    executor: Executor, desk: Desk, sessions: SessionMaker
) -> None:
    replies: list[Reply] = await executor.execute(
        [
            received(ModifyUser(uid=desk.user.uid, updates=UserUpdates(name="x"), expected_version=9)),
            received(UpdatePassword(uid=999, password_hash=HASH)),
        ]
    )

    assert not any(reply.ok for reply in replies)
    async with sessions() as session:
        user = await session.get(User, desk.user.uid)
        assert user is not None
        assert user.row_version == 1
        assert await session.scalar(select(func.count()).select_from(DeadLetter)) == 2
