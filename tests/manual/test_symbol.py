"""The SymbolRepository of the manual."""

import pytest

from contracts import Refusal
from service import SymbolRepository, get_async_session
from tests.manual.conftest import Market, a_market


@pytest.mark.manual("R50", "get_by_symbol")
async def test_get_by_symbol_is_by_name_and_catalog(market: Market) -> None:
    await a_market("other@company.com", catalog="kraken")
    async with get_async_session() as session:
        symbol_repo = SymbolRepository(session)
        btc_usdt = await symbol_repo.get_by_symbol(symbol="BTC/USDT", cat_ex_id=market.catalog.cat_ex_id)

        assert btc_usdt is not None
        assert btc_usdt.id == market.symbol.id
        assert await symbol_repo.get_by_symbol("ETH/USDT", market.catalog.cat_ex_id) is None


@pytest.mark.manual("R51", "get_by_exchange_id", differs="X30: exchange_id is the catalog exchange here")
async def test_get_by_exchange_id_lists_a_catalog(market: Market) -> None:
    await a_market("other@company.com", catalog="kraken")
    async with get_async_session() as session:
        binance_symbols = await SymbolRepository(session).get_by_exchange_id(market.catalog.cat_ex_id)

    assert [symbol.id for symbol in binance_symbols] == [market.symbol.id]


@pytest.mark.manual("R52", "get_id_by_symbol")
async def test_get_id_by_symbol_is_the_quick_way(market: Market) -> None:
    async with get_async_session() as session:
        symbol_repo = SymbolRepository(session)

        assert await symbol_repo.get_id_by_symbol("BTC/USDT", market.catalog.cat_ex_id) == market.symbol.id
        assert await symbol_repo.get_id_by_symbol("ETH/USDT", market.catalog.cat_ex_id) is None


@pytest.mark.manual("R53", "get_decimals")
async def test_get_decimals_is_by_id(market: Market) -> None:
    async with get_async_session() as session:
        assert await SymbolRepository(session).get_decimals(market.symbol.id) == 2


@pytest.mark.manual("R54", "symbol_exists")
async def test_symbol_exists_on_its_exchange_only(market: Market) -> None:
    async with get_async_session() as session:
        symbol_repo = SymbolRepository(session)

        assert await symbol_repo.symbol_exists("BTC/USDT", market.catalog.cat_ex_id) is True
        assert await symbol_repo.symbol_exists("BTC/USDT", 999) is False


@pytest.mark.manual("R55", "add_symbol")
async def test_add_symbol_adds_it_once(market: Market) -> None:
    symbol_data = {
        "symbol": "ADA/USDT",
        "exchange_id": market.catalog.cat_ex_id,
        "ticker": "ADAUSDT",
        "decimals": 4,
        "backtest": True,
    }
    async with get_async_session() as session:
        symbol_repo = SymbolRepository(session)
        new_symbol = await symbol_repo.add_symbol(symbol_data)
        again = await symbol_repo.add_symbol(symbol_data)
        with pytest.raises(Refusal, match="decimals"):
            await symbol_repo.add_symbol({**symbol_data, "decimals": 5})

    assert (new_symbol.ticker, new_symbol.decimals, new_symbol.backtest) == ("ADAUSDT", 4, True)
    assert again.id == new_symbol.id


@pytest.mark.manual("R56", "update_symbol")
async def test_update_symbol_changes_what_is_named(market: Market) -> None:
    async with get_async_session() as session:
        symbol = await SymbolRepository(session).update_symbol(market.symbol.id, {"decimals": 6, "ticker": "BTCUSDT"})

    assert (symbol.symbol, symbol.decimals, symbol.ticker) == ("BTC/USDT", 6, "BTCUSDT")
