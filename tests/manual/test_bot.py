"""The BotRepository of the manual."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from sqlalchemy import func, select

from contracts import Refusal
from service import (
    Bot,
    BotExchange,
    BotRepository,
    ExchangeRepository,
    SymbolRepository,
    TradeRepository,
    get_async_session,
    get_engine,
)
from tests.builders import counted_statements
from tests.manual.conftest import Furnished, Market, a_market


@contextmanager
def statements() -> Iterator[list[str]]:
    """What reaches the database inside of the block."""
    with counted_statements(get_engine()) as sent:
        yield sent


@pytest.mark.manual("R20", "add_bot")
async def test_add_bot_is_refused_without_an_owner(market: Market) -> None:
    async with get_async_session() as session:
        bot = await BotRepository(session).add_bot(
            {"uid": market.user.uid, "name": "Multi-Exchange Arbitrage Bot", "dry_run": False, "active": True}
        )

    assert (bot.uid, bot.name, bot.dry_run, bot.active) == (
        market.user.uid,
        "Multi-Exchange Arbitrage Bot",
        False,
        True,
    )
    with pytest.raises(Exception, match="fk_bots_uid_users"):
        async with get_async_session() as session:
            await BotRepository(session).add_bot({"uid": 999, "name": "nobody's"})


@pytest.mark.manual("R21", "edit_bot")
async def test_edit_bot_changes_what_is_named(market: Market) -> None:
    async with get_async_session() as session:
        bot = await BotRepository(session).edit_bot(market.bot.bot_id, {"name": "V2", "dry_run": True})

    assert (bot.name, bot.dry_run, bot.uid) == ("V2", True, market.user.uid)


@pytest.mark.manual("R22", "delete_bot", differs="X5: refused while it has open orders or trades for real")
async def test_delete_bot_cleans_up(furnished: Furnished) -> None:
    bot_id = furnished.market.bot.bot_id
    async with get_async_session() as session:
        bot_repo = BotRepository(session)
        with pytest.raises(Refusal, match="open orders"):
            await bot_repo.delete_bot(bot_id)
        await bot_repo.delete_bot(bot_id, force=True)

        assert await bot_repo.get_by_id(bot_id) is None
        assert await bot_repo.get_bot_feeds(bot_id) == []
        assert await session.scalar(select(func.count()).select_from(BotExchange)) == 0
        [trade] = await TradeRepository(session).get_trades_by_user(furnished.market.user.uid)
        assert trade.bot_id is None


@pytest.mark.manual("R23", "add_exchange_to_bot", differs="X13: only an account of the bot's owner")
async def test_add_exchange_to_bot_links_an_account(market: Market) -> None:
    other = await a_market("other@company.com", catalog="coinbase")
    async with get_async_session() as session:
        bot_repo = BotRepository(session)
        coinbase = await ExchangeRepository(session).create(
            {"uid": market.user.uid, "cat_ex_id": other.catalog.cat_ex_id, "ex_name": "Coinbase"}
        )
        coinbase_config = await bot_repo.add_exchange_to_bot(
            market.bot.bot_id,
            {"exchange_id": coinbase.ex_id, "trading_currency": "USD", "max_exposure": 10000.0},
        )
        with pytest.raises(Refusal) as refusal:
            await bot_repo.add_exchange_to_bot(market.bot.bot_id, {"exchange_id": other.exchange.ex_id})

    assert (coinbase_config.exchange_id, coinbase_config.trading_currency) == (coinbase.ex_id, "USD")
    assert refusal.value.code == "forbidden"


@pytest.mark.manual("R24", "add_feed_to_bot")
async def test_add_feed_to_bot_adds_one_after_the_other(market: Market) -> None:
    async with get_async_session() as session:
        eth_usdt = await SymbolRepository(session).add_symbol(
            {"symbol": "ETH/USDT", "exchange_id": market.catalog.cat_ex_id}
        )
        bot_repo = BotRepository(session)
        feeds = [
            {"symbol_id": market.symbol.id, "timeframe": "1m", "enabled": True},
            {"symbol_id": eth_usdt.id, "timeframe": "1m", "enabled": True},
            {"symbol_id": market.symbol.id, "timeframe": "5m", "enabled": True},
        ]
        added = [await bot_repo.add_feed_to_bot(market.bot.bot_id, feed_data) for feed_data in feeds]

    assert [(feed.symbol_id, feed.timeframe, feed.order) for feed in added] == [
        (market.symbol.id, "1m", 1),
        (eth_usdt.id, "1m", 2),
        (market.symbol.id, "5m", 3),
    ]


@pytest.mark.manual("R25", "edit_feeds")
async def test_edit_feeds_makes_the_feeds_these_and_no_others(furnished: Furnished) -> None:
    market = furnished.market
    async with get_async_session() as session:
        feeds = await BotRepository(session).edit_feeds(
            market.bot.bot_id,
            [
                {"symbol_id": market.symbol.id, "timeframe": "5m"},
                {"symbol_id": market.symbol.id, "timeframe": "1m", "enabled": False},
            ],
        )

    assert [(feed.timeframe, feed.enabled) for feed in feeds] == [("5m", True), ("1m", False)]
    assert feeds[1].feed_id == furnished.feed.feed_id


@pytest.mark.manual("R26", "get_bot_with_details")
async def test_get_bot_with_details_has_everything_loaded(furnished: Furnished) -> None:
    async with get_async_session() as session:
        bot_repo = BotRepository(session)
        full_bot = await bot_repo.get_bot_with_details(furnished.market.bot.bot_id)

        assert full_bot is not None
        assert [strategy.str_id for strategy in full_bot.strategies] == [furnished.strategy.str_id]
        assert [feed.feed_id for feed in full_bot.feeds] == [furnished.feed.feed_id]
        assert [link.trading_currency for link in full_bot.bot_exchanges] == ["USDT"]
        assert await bot_repo.get_bot_with_details(999) is None


@pytest.mark.manual("R27", "get_bots_by_user")
async def test_get_bots_by_user_gives_theirs(market: Market) -> None:
    await a_market("other@company.com", catalog="kraken")
    async with get_async_session() as session:
        bots = await BotRepository(session).get_bots_by_user(market.user.uid)

    assert [bot.bot_id for bot in bots] == [market.bot.bot_id]


@pytest.mark.manual("R28", "get_bot_list")
async def test_get_bot_list_is_of_all_or_of_a_user(market: Market) -> None:
    other = await a_market("other@company.com", catalog="kraken")
    async with get_async_session() as session:
        bot_repo = BotRepository(session)
        everything = await bot_repo.get_bot_list()
        theirs = await bot_repo.get_bot_list(uid=other.user.uid)

    assert [bot.bot_id for bot in everything] == [market.bot.bot_id, other.bot.bot_id]
    assert [bot.bot_id for bot in theirs] == [other.bot.bot_id]


@pytest.mark.manual("R29", "get_bot_full_list")
async def test_get_bot_full_list_takes_as_many_statements_for_many(furnished: Furnished) -> None:
    async def asked() -> tuple[list[Bot], int]:
        async with get_async_session() as session:
            with statements() as sent:
                bots = await BotRepository(session).get_bot_full_list()
            return bots, len(sent)

    [bot], for_one = await asked()
    for number in range(5):
        await a_market(f"{number}@company.com", catalog=f"exchange {number}")
    bots, for_six = await asked()

    assert [feed.feed_id for feed in bot.feeds] == [furnished.feed.feed_id]
    assert [len(each.bot_exchanges) for each in bots] == [1] * 6
    assert for_six == for_one


@pytest.mark.manual("R30", "get_bot_params")
async def test_get_bot_params_is_a_dictionary(furnished: Furnished) -> None:
    async with get_async_session() as session:
        params = await BotRepository(session).get_bot_params(furnished.market.bot.bot_id)

    assert json.loads(json.dumps(params)) == params
    assert (params["name"], params["strategies"][0]["params"]) == ("Scalping Bot V1", {"period": "20"})


@pytest.mark.manual(
    "R31", "get_trading_currency", differs="X30: exchange_id is the account, not the catalog exchange"
)
async def test_get_trading_currency_is_per_account(market: Market) -> None:
    async with get_async_session() as session:
        bot_repo = BotRepository(session)

        assert (
            await bot_repo.get_trading_currency(bot_id=market.bot.bot_id, exchange_id=market.exchange.ex_id) == "USDT"
        )
        assert await bot_repo.get_trading_currency(market.bot.bot_id, 999) is None


@pytest.mark.manual("R32", "get_dry_margin", differs="X1: an exact decimal instead of a double")
async def test_get_dry_margin_is_what_dry_trades_earned(furnished: Furnished) -> None:
    market = furnished.market
    async with get_async_session() as session:
        bot_repo = BotRepository(session)
        await TradeRepository(session).save_dry_trade(
            {**market.ids, "side": "sell", "size": 1, "price": 99, "roi": -1.1}
        )
        margin = await bot_repo.get_dry_margin(market.bot.bot_id)

        assert margin == Decimal("3.9")
        assert await bot_repo.get_dry_margin(999) == 0


@pytest.mark.manual("R33", "save_bot_log")
async def test_save_bot_log_keeps_an_entry(market: Market) -> None:
    async with get_async_session() as session:
        log = await BotRepository(session).save_bot_log(
            {
                "bot_id": market.bot.bot_id,
                "message": "Strategy executed successfully",
                "timestamp": datetime(2024, 1, 1, tzinfo=UTC),
            }
        )

    assert (log.bot_id, log.message) == (market.bot.bot_id, "Strategy executed successfully")


async def some_logs(market: Market) -> None:
    async with get_async_session() as session:
        for minute in range(12):
            await BotRepository(session).save_bot_log(
                {
                    "bot_id": market.bot.bot_id,
                    "message": f"action {minute}",
                    "timestamp": datetime(2024, 1, 1, 12, minute, tzinfo=UTC),
                }
            )


@pytest.mark.manual("R34", "get_last_bot_log")
async def test_get_last_bot_log_is_the_newest(market: Market) -> None:
    await some_logs(market)
    async with get_async_session() as session:
        bot_repo = BotRepository(session)
        log = await bot_repo.get_last_bot_log(market.bot.bot_id)

        assert log is not None
        assert log.message == "action 11"
        assert await bot_repo.get_last_bot_log(999) is None


@pytest.mark.manual("R35", "get_last_actions")
async def test_get_last_actions_are_the_newest_first(market: Market) -> None:
    await some_logs(market)
    async with get_async_session() as session:
        bot_repo = BotRepository(session)
        ten = await bot_repo.get_last_actions(market.bot.bot_id)
        recent_actions = await bot_repo.get_last_actions(market.bot.bot_id, limit=50)

    assert [log.message for log in ten] == [f"action {minute}" for minute in range(11, 1, -1)]
    assert len(recent_actions) == 12


SIMULATION = {
    "name": "Backtest 2024-01",
    "start_date": datetime(2024, 1, 1),  # noqa: DTZ001 - as the manual writes it
    "end_date": datetime(2024, 1, 31),  # noqa: DTZ001
    "initial_balance": 10000.0,
    "final_balance": 11250.0,
    "total_trades": 156,
    "win_rate": 0.67,
    "sharpe_ratio": 1.43,
}


@pytest.mark.manual("R36", "save_simulation")
async def test_save_simulation_replaces_one_of_the_same_name(market: Market) -> None:
    async with get_async_session() as session:
        bot_repo = BotRepository(session)
        result = await bot_repo.save_simulation({"bot_id": market.bot.bot_id, **SIMULATION})
        again = await bot_repo.save_simulation({"bot_id": market.bot.bot_id, **SIMULATION, "final_balance": 12000.5})

    assert (result.simulation_id, result.total_trades) == (again.simulation_id, 156)
    assert again.final_balance == Decimal("12000.5")
    assert again.start_date == datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.manual("R37", "load_simulation")
async def test_load_simulation_gives_it_or_none(furnished: Furnished) -> None:
    async with get_async_session() as session:
        bot_repo = BotRepository(session)
        simulation = await bot_repo.load_simulation(furnished.simulation.simulation_id)

        assert simulation is not None
        assert simulation.win_rate == 0.67
        assert await bot_repo.load_simulation(999) is None


@pytest.mark.manual("R38", "load_simulations_catalog")
async def test_load_simulations_catalog_lists_those_of_a_bot(furnished: Furnished) -> None:
    async with get_async_session() as session:
        bot_repo = BotRepository(session)
        catalog = await bot_repo.load_simulations_catalog(furnished.market.bot.bot_id)

        assert [simulation.simulation_id for simulation in catalog] == [furnished.simulation.simulation_id]
        assert await bot_repo.load_simulations_catalog(999) == []
