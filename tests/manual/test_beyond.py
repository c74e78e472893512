"""What programs call although the manual leaves it out, under the names they know."""

from decimal import Decimal

import pytest

from contracts import Refusal
from service import (
    BotRepository,
    ExchangeRepository,
    OrderRepository,
    SymbolRepository,
    TradeRepository,
    UserRepository,
    get_async_session,
)
from tests.manual.conftest import Furnished, Market


@pytest.mark.manual("MORE-user", "remove_user")
async def test_a_user_is_removed_by_id_or_address(market: Market) -> None:
    async with get_async_session() as session:
        user_repo = UserRepository(session)
        other = await user_repo.add_user({"mail": "other@company.com"})
        by_address = await user_repo.remove_user("USER@company.com")
        by_id = await user_repo.remove_user(other.uid)

        assert (by_address.uid, by_address.bots, by_id.bots) == (market.user.uid, 1, 0)
        assert await user_repo.get_all() == []


@pytest.mark.manual("MORE-bot", "parts of a bot, its logs and statistics")
async def test_a_bot_is_asked_for_in_parts(furnished: Furnished) -> None:
    bot_id, symbol_id = furnished.market.bot.bot_id, furnished.market.symbol.id
    async with get_async_session() as session:
        bot_repo = BotRepository(session)
        await bot_repo.edit_bot(bot_id, {"dry_run": True, "active": True})
        saved = await bot_repo.save_bot_logs([{"bot_id": bot_id, "message": "e", "level": "ERROR"}])

        assert [feed.feed_id for feed in await bot_repo.get_bot_feeds(bot_id)] == [furnished.feed.feed_id]
        assert await bot_repo.get_feed_id(bot_id, symbol_id, "1m") == furnished.feed.feed_id
        assert [link.trading_currency for link in await bot_repo.get_bot_exchanges(bot_id)] == ["USDT"]
        assert [row.str_id for row in await bot_repo.get_bot_strategies(bot_id)] == [furnished.strategy.str_id]
        assert [log.log_id for log in await bot_repo.get_logs(bot_id, "ERROR", limit=100)] == saved
        stats = await bot_repo.get_bot_stats(bot_id, days=30)
        assert stats is not None
        assert (stats.total_trades, stats.open_orders) == (1, 1)
        [summary] = await bot_repo.get_active_bots_summary()
        assert summary["bot_id"] == bot_id


@pytest.mark.manual("MORE-exchange", "accounts by name and by filters")
async def test_accounts_are_found_by_name(market: Market) -> None:
    uid, cat_ex_id, ex_id = market.user.uid, market.catalog.cat_ex_id, market.exchange.ex_id
    async with get_async_session() as session:
        exchange_repo = ExchangeRepository(session)
        second = await exchange_repo.add_user_exchange({"uid": uid, "cat_ex_id": cat_ex_id, "ex_name": "second"})

        assert await exchange_repo.get_exchange_id("Binance Main", uid) == ex_id
        assert await exchange_repo.get_exchange_cat_id("binance") == cat_ex_id
        assert await exchange_repo.get_exchange_cat_id(ex_id=ex_id) == cat_ex_id
        assert [row.ex_id for row in await exchange_repo.get_exchange(uid=uid, active=True)] == [ex_id, second.ex_id]
        assert len(await exchange_repo.get_user_exchanges(uid)) == 2
        assert [row.symbol for row in await exchange_repo.get_exchange_symbols(cat_ex_id)] == ["BTC/USDT"]
        await exchange_repo.remove_user_exchange(second.ex_id)
        assert await exchange_repo.get_by_id(second.ex_id) is None


@pytest.mark.manual("MORE-symbol", "all symbols, search, decimals by name, removal")
async def test_symbols_are_listed_searched_and_removed(market: Market) -> None:
    cat_ex_id = market.catalog.cat_ex_id
    async with get_async_session() as session:
        symbol_repo = SymbolRepository(session)
        halted = await symbol_repo.add_symbol({"symbol": "ETH/USDT", "exchange_id": cat_ex_id, "status": "halted"})

        assert len(await symbol_repo.get_all()) == 2
        assert [row.id for row in await symbol_repo.get_all("binance", active_only=True)] == [market.symbol.id]
        assert [row.id for row in await symbol_repo.search_symbols("eth")] == [halted.id]
        assert await symbol_repo.search_symbols("%") == []
        assert await symbol_repo.get_symbol_decimals("BTC/USDT", cat_ex_id) == 2
        assert await symbol_repo.get_symbol_decimals("NOT/LISTED", cat_ex_id) == 8
        await symbol_repo.remove_symbol(halted.id)
        await symbol_repo.delete_symbol(market.symbol.id)
        assert await symbol_repo.get_all() == []


@pytest.mark.manual("MORE-order", "open, last, all and many orders")
async def test_orders_are_found_and_ended(market: Market) -> None:
    bot_id, uid, ex_id = market.bot.bot_id, market.user.uid, market.exchange.ex_id
    async with get_async_session() as session:
        order_repo = OrderRepository(session)
        first = await order_repo.save_order({**market.order, "size": 2})
        last = await order_repo.save_order(market.order)
        partly = await order_repo.update_order_final_volume(first.order_id, 0.5)

        assert partly.filled_size == Decimal("0.5")
        for owner in ({"bot_id": bot_id}, {"uid": uid}, {"ex_id": ex_id}):
            assert [order.order_id for order in await order_repo.get_open_orders(**owner)] == [
                first.order_id,
                last.order_id,
            ]
        assert await order_repo.get_last_order(bot_id) is last
        assert len(await order_repo.get_all_orders()) == len(await order_repo.get_order_history(bot_id)) == 2
        assert len(await order_repo.get_bot_orders(bot_id, "pending")) == 2
        ended = await order_repo.update_orders_status(bot_id, "cancelled")
        assert [order.status for order in ended] == ["cancelled", "cancelled"]
        assert await order_repo.get_open_orders(bot_id=bot_id) == []


@pytest.mark.manual("MORE-trade", "lists of trades, dry trades, statistics")
async def test_trades_come_in_lists(furnished: Furnished) -> None:
    market = furnished.market
    bot_id, ex_id, symbol_id = market.bot.bot_id, market.exchange.ex_id, market.symbol.id
    async with get_async_session() as session:
        trade_repo = TradeRepository(session)
        polled = [market.trade, market.trade]
        saved = await trade_repo.save_trades(polled)
        again = await trade_repo.save_trades(polled)

        assert [trade.trade_id for trade in again] == [trade.trade_id for trade in saved]
        assert len(await trade_repo.get_trades(ex_id)) == len(await trade_repo.get_symbol_trades(symbol_id)) == 3
        assert len(await trade_repo.get_bot_trades(bot_id)) == 3
        assert len(await trade_repo.get_bot_trades(bot_id, dry=True)) == 1
        assert (await trade_repo.get_trade_stats(bot_id, days=30)).total_trades == 3
        dry_trade = await trade_repo.get_last_dry_trade(bot_id, symbol_id, ex_id)
        assert dry_trade is not None
        assert dry_trade.dry_trade_id == furnished.dry_trade.dry_trade_id
        assert (await trade_repo.update_trade(saved[0].trade_id, {"roi": 1.5})).roi == Decimal("1.5")
        with pytest.raises(Refusal):
            await trade_repo.delete_trade(saved[0].trade_id)
        by_hand = await trade_repo.create({**market.trade, "ex_trade_id": None})
        await trade_repo.delete_trade(by_hand.trade_id)
        assert await trade_repo.delete_dry_trades(bot_id) == 1
