"""The UserRepository of the manual."""

import pytest
from sqlalchemy.exc import IntegrityError

from contracts import Refusal
from service import RoleEnum, User, UserRepository, get_async_session
from tests.manual.conftest import Market

HASH = "$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$" + "a" * 43


@pytest.fixture
async def john(market: Market) -> User:
    """The manual's new user, managed by the market's."""
    async with get_async_session() as session:
        return await UserRepository(session).add_user(
            {
                "mail": "newuser@example.com",
                "password": HASH,
                "role": "USER",
                "name": "John",
                "lastname": "Doe",
                "manager": market.user.uid,
            }
        )


@pytest.mark.manual("R10", "get_by_email", differs="X43: in any case")
async def test_get_by_email_lets_a_user_in(john: User) -> None:
    async with get_async_session() as session:
        user_repo = UserRepository(session)
        user = await user_repo.get_by_email("NewUser@example.com")

        assert user is not None
        assert (user.uid, user.password, user.active, user.role) == (john.uid, HASH, True, RoleEnum.USER)
        assert await user_repo.get_by_email("nobody@example.com") is None


@pytest.mark.manual("R11", "get_user_id", differs="X43: in any case")
async def test_get_user_id_is_the_quick_way(john: User) -> None:
    async with get_async_session() as session:
        user_repo = UserRepository(session)

        assert await user_repo.get_user_id("newuser@EXAMPLE.com") == john.uid
        assert await user_repo.get_user_id("nobody@example.com") is None


@pytest.mark.manual("R12", "add_user")
async def test_add_user_checks_the_role(john: User, market: Market) -> None:
    assert (john.name, john.lastname, john.manager, john.role) == ("John", "Doe", market.user.uid, RoleEnum.USER)
    async with get_async_session() as session:
        with pytest.raises(Refusal) as refusal:
            await UserRepository(session).add_user({"mail": "x@example.com", "role": "KING"})
    assert (refusal.value.code, refusal.value.field) == ("validation", "role")
    with pytest.raises(IntegrityError):
        async with get_async_session() as session:
            await UserRepository(session).add_user({"mail": "newuser@example.com"})


@pytest.mark.manual("R13", "modify_user")
async def test_modify_user_changes_what_is_named(john: User) -> None:
    async with get_async_session() as session:
        user = await UserRepository(session).modify_user(john.uid, {"name": "Jack", "role": "ADMIN"})

    assert (user.name, user.lastname, user.role) == ("Jack", "Doe", RoleEnum.ADMIN)


@pytest.mark.manual("R14", "update_password", differs="X2: hashed already, in a form that is known")
async def test_update_password_expects_a_hash(john: User) -> None:
    async with get_async_session() as session:
        user_repo = UserRepository(session)
        await user_repo.update_password(john.uid, "f" * 64)
        with pytest.raises(Refusal, match="hashed already"):
            await user_repo.update_password(john.uid, "secure_password")
        user = await user_repo.get_by_id(john.uid)

    assert user is not None
    assert user.password == "f" * 64


@pytest.mark.manual("R15", "toggle_active", differs="X41: it sets and does not flip")
async def test_toggle_active_sets(john: User) -> None:
    async with get_async_session() as session:
        user_repo = UserRepository(session)
        for active in (False, False, True, True):
            await user_repo.toggle_active(john.uid, active)
            user = await user_repo.get_by_id(john.uid)
            assert user is not None
            assert user.active is active


@pytest.mark.manual("R16", "search", differs="X43: wildcards mean themselves, and there is a limit")
async def test_search_looks_into_names_and_addresses(john: User) -> None:
    async with get_async_session() as session:
        user_repo = UserRepository(session)
        found = {query: [user.uid for user in await user_repo.search(query)] for query in ("john", "NEWUSER@", "%")}
        limited = await user_repo.search("com", limit=1)

    assert found == {"john": [john.uid], "NEWUSER@": [john.uid], "%": []}
    assert len(limited) == 1


@pytest.mark.manual("R17", "get_user_list")
async def test_get_user_list_is_of_all_or_of_a_manager(john: User, market: Market) -> None:
    async with get_async_session() as session:
        user_repo = UserRepository(session)
        everybody = await user_repo.get_user_list()
        managed_users = await user_repo.get_user_list(manager_id=market.user.uid)

    assert [user.uid for user in everybody] == [market.user.uid, john.uid]
    assert [user.uid for user in managed_users] == [john.uid]


@pytest.mark.manual("R18", "get_active_users")
async def test_get_active_users_leaves_out_the_others(john: User, market: Market) -> None:
    async with get_async_session() as session:
        user_repo = UserRepository(session)
        await user_repo.toggle_active(john.uid, False)
        active_users = await user_repo.get_active_users()

    assert [user.uid for user in active_users] == [market.user.uid]
