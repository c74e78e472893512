"""Users: found by id, address and words, and listed."""

import base64
import hashlib
import json
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import (
    AddBot,
    AddUser,
    DeleteUser,
    ErrorCode,
    GetActiveUsers,
    GetUser,
    GetUserByEmail,
    GetUserCredentials,
    GetUserId,
    GetUserList,
    GetUserWithBots,
    Refusal,
    SearchUsers,
)
from service.database import SessionMaker
from service.repositories import UserRepository
from tests.builders import Asking, Desk, Direct
from tests.observe import statements

HASH = hashlib.sha256(b"password").hexdigest()
OTHER_HASH = "$2b$12$" + "a" * 53


def made_up(*keys: object) -> str:
    """A cursor as nobody gave it."""
    return base64.urlsafe_b64encode(json.dumps(keys).encode()).decode().rstrip("=")


class TestLookups:
    async def test_find_a_user_by_mail_in_any_case(self, direct: Direct, asking: Asking) -> None:
        user = await direct.call(AddUser(mail="Ada@Example.org", password_hash=HASH))

        assert await asking.ask(GetUserByEmail(mail="aDA@example.ORG")) == user
        assert await asking.ask(GetUserId(mail="ada@example.org")) == user.uid

    async def test_say_null_of_who_is_not_there(self, asking: Asking) -> None:
        for lookup in (
            GetUser(uid=9),
            GetUserByEmail(mail="a@b"),
            GetUserId(mail="a@b"),
            GetUserCredentials(mail="a@b"),
            GetUserWithBots(uid=9),
        ):
            assert await asking.ask(lookup) is None

    async def test_show_a_user_with_bots_in_one_statement(
        self, direct: Direct, desk: Desk, asking: Asking, engine: AsyncEngine
    ) -> None:
        others = [await direct.call(AddBot(uid=desk.user.uid, name=f"bot {n}")) for n in range(5)]

        with statements(engine) as sent:
            found = await asking.ask(GetUserWithBots(uid=desk.user.uid))

        assert found.bots == [desk.bot, *others]
        assert found.model_dump(exclude={"bots"}) == desk.user.model_dump()
        assert len(sent) == 1


class TestSearch:
    @pytest.fixture
    async def users(self, direct: Direct) -> dict[str, int]:
        made = [
            AddUser(mail="ada@example.org", name="Ada", lastname="Lovelace"),
            AddUser(mail="grace@example.org", name="Grace", lastname="Hopper", phone="+1 555 0100"),
            AddUser(mail="odd@example.org", name="100%_odd\\", external_id="EXT-7", id_num="ID-9"),
        ]
        return {command.name: (await direct.call(command)).uid for command in made}

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            pytest.param("love", ["Ada"], id="part of a last name"),
            pytest.param("ADA LOVE", ["Ada"], id="both names, in any case"),
            pytest.param("@example", ["Ada", "Grace", "100%_odd\\"], id="part of a mail address"),
            pytest.param("555 01", ["Grace"], id="part of a phone number"),
            pytest.param("ext-7", ["100%_odd\\"], id="an external id"),
            pytest.param("id-9", ["100%_odd\\"], id="an id number"),
            pytest.param("%", ["100%_odd\\"], id="a percent sign as itself"),
            pytest.param("_", ["100%_odd\\"], id="an underscore as itself"),
            pytest.param("odd\\", ["100%_odd\\"], id="a backslash as itself"),
            pytest.param("nobody", [], id="nobody"),
        ],
    )
    async def test_finds(self, users: dict[str, int], asking: Asking, query: str, found: list[str]) -> None:
        assert [user.name for user in await asking.ask(SearchUsers(query=query))] == found

    async def test_gives_no_more_than_asked_for(self, users: dict[str, int], asking: Asking) -> None:
        assert len(await asking.ask(SearchUsers(query="example", limit=2))) == 2

    @pytest.mark.parametrize("fields", [{"query": ""}, {"query": "x", "limit": 0}, {"query": "x", "limit": 1_001}])
    def test_has_limits(self, fields: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="1 validation error"):
            SearchUsers.model_validate(fields)

    async def test_does_not_read_a_big_table_to_the_end(self, sessions: SessionMaker, engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await connection.exec_driver_sql(
                "INSERT INTO users (mail, name, manager) SELECT 'user' || n || '@example.org', md5(n::text), NULL "
                "FROM generate_series(1, 20000) AS n"
            )
        cleaning = await engine.execution_options(isolation_level="AUTOCOMMIT").connect().start()
        await cleaning.exec_driver_sql("VACUUM ANALYZE users")
        await cleaning.close()
        async with engine.connect() as connection:
            has_trigrams = await connection.exec_driver_sql("SELECT 1 FROM pg_extension WHERE extname = 'pg_trgm'")
            if has_trigrams.first() is None:
                pytest.skip("this PostgreSQL has no pg_trgm")
        plans = []
        async with sessions() as session:
            with statements(engine) as sent:
                await UserRepository(session).search("user19999@")
            connection = await session.connection()
            rows = await connection.exec_driver_sql(f"EXPLAIN {sent[0]}", ("%user19999@%", 100))
            plans = [row[0] for row in rows]
        assert any("ix_users_search" in line for line in plans), plans


class TestLists:
    @pytest.fixture
    async def uids(self, direct: Direct) -> list[int]:
        boss = await direct.call(AddUser(mail="boss@example.org"))
        return [
            (await direct.call(AddUser(mail=f"{n}@example.org", manager=boss.uid, active=n != 3))).uid
            for n in range(7)
        ]

    async def test_go_on_by_cursor_whatever_happens_meanwhile(
        self, uids: list[int], direct: Direct, asking: Asking
    ) -> None:
        boss = uids[0] - 1
        first = await asking.ask(GetUserList(manager_id=boss, page_size=3))
        await direct.call(DeleteUser(uid=uids[0]))
        second = await asking.ask(GetUserList(manager_id=boss, page_size=3, cursor=first.next_cursor))
        third = await asking.ask(GetUserList(manager_id=boss, page_size=3, cursor=second.next_cursor))

        assert [user.uid for page in (first, second, third) for user in page.users] == uids
        assert third.next_cursor is None

    async def test_come_by_page_as_well(self, uids: list[int], asking: Asking) -> None:
        page = await asking.ask(GetUserList(page=2, page_size=4))

        assert [user.uid for user in page.users] == uids[3:]
        assert (await asking.ask(GetUserList(cursor=page.next_cursor))).users == []

    async def test_of_active_users_leave_others_out(
        self, uids: list[int], asking: Asking, engine: AsyncEngine
    ) -> None:
        with statements(engine) as sent:
            page = await asking.ask(GetActiveUsers())

        assert [user.uid for user in page.users] == [uids[0] - 1, *uids[:3], *uids[4:]]
        assert len(sent) == 1

    @pytest.mark.parametrize("cursor", ["x", "WzFd" * 20, "Im1hZGUgdXAi", made_up("1"), made_up(-1), made_up(1, 2)])
    async def test_refuse_a_cursor_that_was_made_up(self, asking: Asking, cursor: str) -> None:
        with pytest.raises(Refusal) as refusal:
            await asking.ask(GetUserList(cursor=cursor))
        assert (refusal.value.code, refusal.value.field) == (ErrorCode.VALIDATION, "cursor")

    @pytest.mark.parametrize(
        "fields", [{"page": 0}, {"page_size": 1_001}, {"page": 2, "cursor": "WzFd"}, {"cursor": "a b"}]
    )
    def test_have_limits(self, fields: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="1 validation error"):
            GetUserList.model_validate(fields)
