"""The ExchangeRepository of the manual."""

import pytest
from sqlalchemy.exc import IntegrityError

from contracts import seal
from service import ExchangeRepository, UserRepository, get_async_session
from tests.manual.conftest import Market, a_market


@pytest.mark.manual("R40", "ExchangeRepository.create", differs="X4: credentials come sealed")
async def test_create_makes_an_account(market: Market, keys: tuple[str, str]) -> None:
    def encrypt(field: str) -> str:
        return seal("secret", keys[1], uid=market.user.uid, field=field)

    exchange_data = {
        "uid": market.user.uid,
        "cat_ex_id": market.catalog.cat_ex_id,
        "ex_name": "Binance Second",
        "account": "main_trading",
        "api_key": encrypt("api_key"),
        "api_secret": encrypt("api_secret"),
        "sandbox": False,
    }
    async with get_async_session() as session:
        exchange = await ExchangeRepository(session).create(exchange_data)

    assert (exchange.ex_name, exchange.account, exchange.sandbox) == ("Binance Second", "main_trading", False)
    assert (exchange.active, exchange.has_credentials) == (True, True)
    with pytest.raises(IntegrityError):
        async with get_async_session() as session:
            await ExchangeRepository(session).create(exchange_data)


@pytest.mark.manual("R41", "get_exchanges_by_user")
async def test_get_exchanges_by_user_gives_theirs(market: Market) -> None:
    await a_market("other@company.com", catalog="kraken")
    async with get_async_session() as session:
        user_exchanges = await ExchangeRepository(session).get_exchanges_by_user(market.user.uid)

    assert [exchange.ex_id for exchange in user_exchanges] == [market.exchange.ex_id]


@pytest.mark.manual(
    "R42", "get_exchange_params", differs="X31: those of the catalog, and over them the account's own"
)
async def test_get_exchange_params_are_laid_over_the_catalogs(market: Market) -> None:
    ex_id = market.exchange.ex_id
    async with get_async_session() as session:
        exchange_repo = ExchangeRepository(session)
        await exchange_repo.set_exchange_params({"fee": "0.1", "limit": "10"}, cat_ex_id=market.catalog.cat_ex_id)
        await exchange_repo.set_exchange_params({"fee": "0.05"}, ex_id=ex_id)
    async with get_async_session() as session:
        params = await ExchangeRepository(session).get_exchange_params(ex_id)

    assert params == {"fee": "0.05", "limit": "10"}


@pytest.mark.manual("R43", "get_exchange_catalog")
async def test_get_exchange_catalog_is_every_exchange_there_is(market: Market) -> None:
    async with get_async_session() as session:
        await ExchangeRepository(session).install_exchange("aax")
    async with get_async_session() as session:
        catalog = await ExchangeRepository(session).get_exchange_catalog()

    assert [exchange.name for exchange in catalog] == ["aax", "binance"]


@pytest.mark.manual("R44", "ExchangeRepository.update")
async def test_update_changes_what_is_named(market: Market) -> None:
    async with get_async_session() as session:
        exchange = await ExchangeRepository(session).update(market.exchange.ex_id, {"active": False})

    assert (exchange.active, exchange.ex_name, exchange.row_version) == (False, "Binance Main", 2)


@pytest.mark.manual("R45", "ExchangeRepository.get_by_id")
async def test_get_by_id_is_by_account(market: Market) -> None:
    async with get_async_session() as session:
        exchange_repo = ExchangeRepository(session)
        exchange = await exchange_repo.get_by_id(market.exchange.ex_id)

        assert exchange is not None
        assert exchange.cat_ex_id == market.catalog.cat_ex_id
        assert await exchange_repo.get_by_id(999) is None


@pytest.mark.manual("R46", "get_active_exchanges")
async def test_get_active_exchanges_are_those_of_everybody(market: Market) -> None:
    other = await a_market("other@company.com", catalog="kraken")
    third = await a_market("third@company.com", catalog="coinbase")
    async with get_async_session() as session:
        await ExchangeRepository(session).update(third.exchange.ex_id, {"active": False})
    async with get_async_session() as session:
        active_exchanges = await ExchangeRepository(session).get_active_exchanges()
        users = await UserRepository(session).get_all()

    assert [exchange.cat_ex_id for exchange in active_exchanges] == [
        market.catalog.cat_ex_id,
        other.catalog.cat_ex_id,
    ]
    assert len(users) == 3
