"""What every repository has."""

import logging

import pytest
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from contracts import Refusal
from service import BaseRepository, Bot, BotRepository, Exchange, UserRepository, get_async_session
from service.repositories import BaseRepository as OfThePackage
from tests.manual.conftest import Market, a_market

logger = logging.getLogger(__name__)


@pytest.mark.manual("R1", "get_by_id")
async def test_get_by_id_gives_the_row_or_none(market: Market) -> None:
    async with get_async_session() as session:
        user_repo = UserRepository(session)
        user = await user_repo.get_by_id(market.user.uid)

        assert user is not None
        assert user.mail == "user@company.com"
        assert await user_repo.get_by_id(999) is None
        assert await BaseRepository(session, Exchange).get_by_id(market.exchange.ex_id) is not None


@pytest.mark.manual("R2", "get_all")
async def test_get_all_gives_every_row(market: Market) -> None:
    other = await a_market("other@company.com", "ETH/USDT", "kraken")
    async with get_async_session() as session:
        users = await UserRepository(session).get_all()
        bots = await BotRepository(session).get_all()

    assert [user.uid for user in users] == [market.user.uid, other.user.uid]
    assert [bot.bot_id for bot in bots] == [market.bot.bot_id, other.bot.bot_id]


@pytest.mark.manual("R3", "delete")
async def test_delete_takes_the_row_away(market: Market) -> None:
    async with get_async_session() as session:
        user_repo = UserRepository(session)
        await user_repo.delete(market.user.uid)

        assert await user_repo.get_by_id(market.user.uid) is None
        with pytest.raises(Refusal) as refusal:
            await user_repo.delete(market.user.uid)
    assert refusal.value.code == "not_found"


@pytest.mark.manual("R4", "commit, rollback, flush")
async def test_a_repository_ends_its_transaction(library: None) -> None:
    async with get_async_session() as session:
        user_repo = UserRepository(session)
        kept = await user_repo.create({"mail": "kept@company.com"})
        await user_repo.commit()
        uid = kept.uid
        gone = await user_repo.create({"mail": "gone@company.com"})
        await user_repo.flush()
        assert gone.uid is not None
        await user_repo.rollback()
    async with get_async_session() as session:
        assert [user.uid for user in await UserRepository(session).get_all()] == [uid]


@pytest.mark.manual("R5", "error_print")
async def test_error_print_says_where_it_failed(library: None) -> None:
    async with get_async_session() as session:
        line = UserRepository(session).error_print(ValueError("boom"), "get_by_email", "SELECT 1")

    assert line == "Repository error in get_by_email: boom | Query: SELECT 1"


@pytest.mark.manual("R6", "create")
async def test_create_converts_the_role(library: None) -> None:
    async with get_async_session() as session:
        user_repo = UserRepository(session)
        admin_user = await user_repo.create(
            {"mail": "admin@company.com", "password": "0" * 64, "role": "ADMIN", "name": "Admin", "lastname": "User"}
        )
        regular_user = await user_repo.create({"mail": "user@company.com", "manager": admin_user.uid, "role": "USER"})

    assert (admin_user.role, admin_user.name, admin_user.lastname) == ("ADMIN", "Admin", "User")
    assert (regular_user.role, regular_user.manager) == ("USER", admin_user.uid)


@pytest.mark.manual("R7", "update")
async def test_update_changes_what_is_named(market: Market) -> None:
    async with get_async_session() as session:
        user = await UserRepository(session).update(market.user.uid, {"name": "John"})
        bot = await BotRepository(session).update(market.bot.bot_id, {"name": "Scalping Bot V2"})
        with pytest.raises(Refusal):
            await UserRepository(session).update(market.user.uid, {"uid": 7})

    assert (user.name, user.mail, user.row_version) == ("John", "user@company.com", 2)
    assert (bot.name, bot.row_version) == ("Scalping Bot V2", 2)


class CustomRepository(BaseRepository[Bot]):
    """The manual's, with what it asks for put in."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, Bot)

    async def custom_query(self, param: str) -> list[Bot]:
        stmt = select(self.model).where(self.model.name == param)
        try:
            result = await self.session.execute(stmt)
            return list(result.scalars().all())
        except Exception as e:
            logger.error(self.error_print(e, "custom_query", str(stmt)))  # noqa: TRY400 - as the manual does it
            raise


@pytest.mark.manual("R8", "a repository of one's own", differs="X24: the statement is made before it can fail")
async def test_a_repository_of_ones_own_inherits_the_rest(market: Market, caplog: pytest.LogCaptureFixture) -> None:
    async with get_async_session() as session:
        repo = CustomRepository(session)
        [bot] = await repo.custom_query("Scalping Bot V1")
        assert await repo.get_by_id(market.bot.bot_id) is bot
        with pytest.raises(DBAPIError, match="does not exist"):
            await repo.custom_query(7)  # type: ignore[arg-type]
        await repo.rollback()

    assert "Repository error in custom_query" in caplog.text
    assert OfThePackage is BaseRepository
