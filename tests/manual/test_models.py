"""Every column of the manual keeps what the manual gives it, and refuses what the manual rules out."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Integer, MetaData, func, inspect, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column, selectinload

from contracts import Refusal, seal, unseal
from service import (
    Balance,
    Bot,
    BotExchange,
    BotLog,
    BotRepository,
    CatExchange,
    CatStrategy,
    DryTrade,
    Exchange,
    ExchangeRepository,
    Feed,
    Order,
    OrderRepository,
    Position,
    RoleEnum,
    Strategy,
    Symbol,
    SymbolRepository,
    Trade,
    TradeRepository,
    User,
    UserRepository,
    get_async_session,
    get_engine,
)
from service.base import Base
from service.models import ExchangeCredential, ExchangeHistory, Simulation, Tick
from tests.manual.checklist import row
from tests.manual.conftest import Furnished, Market

REFUSED = (DBAPIError, Refusal)
BCRYPT = "$2b$12$" + "a" * 53
ARGON2 = "$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$" + "a" * 43


async def made(session: AsyncSession, market: Market, model: type[Base], values: dict[str, Any]) -> Any:
    """A row of the market with these values, unlike any other."""
    unique = uuid4().hex
    if model is User:
        return await UserRepository(session).create({"mail": f"{unique}@example.org", **values})
    if model is Bot:
        return await BotRepository(session).add_bot({"uid": market.user.uid, "name": unique, **values})
    if model is Exchange:
        owner = {"uid": market.user.uid, "cat_ex_id": market.catalog.cat_ex_id}
        return await ExchangeRepository(session).create({**owner, "ex_name": unique, **values})
    if model is Symbol:
        name = {"symbol": unique.upper(), "exchange_id": market.catalog.cat_ex_id}
        return await SymbolRepository(session).add_symbol({**name, **values})
    if model is Order:
        return await OrderRepository(session).create({**market.order, **values})
    return await TradeRepository(session).create({**market.trade, **values})


@pytest.mark.parametrize(
    ("model", "key"),
    [
        row("U1", User, "uid"),
        row("B1", Bot, "bot_id"),
        row("E1", Exchange, "ex_id"),
        row("Y1", Symbol, "id"),
        row("O1", Order, "order_id"),
        row("T1", Trade, "trade_id"),
    ],
)
async def test_gives_each_row_the_next_number(market: Market, model: type[Base], key: str) -> None:
    async with get_async_session() as session:
        first, second = [await made(session, market, model, {}) for _ in range(2)]

    assert inspect(model).primary_key == (getattr(inspect(model).columns, key),)
    assert 0 < getattr(first, key) < getattr(second, key)


_SAME = object()


@pytest.mark.parametrize(
    ("model", "given", "found", "refused"),
    [
        row(
            "U2",
            User,
            {"mail": "a" * 68 + "@example.org"},
            _SAME,
            [{"mail": "a" * 69 + "@example.org"}, {"mail": "USER@company.com"}],
            differs="X43: an address is taken in any case",
        ),
        row("U5", User, {"role": "ADMIN"}, {"role": RoleEnum.ADMIN}, [{"role": "ROOT"}]),
        row(
            "U6", User, {"name": "n" * 50, "lastname": "l" * 50}, _SAME, [{"name": "n" * 51}, {"lastname": "l" * 51}]
        ),
        row(
            "U7",
            User,
            {"phone": "+" + "4" * 19},
            _SAME,
            [{"phone": "4" * 21}],
            differs="X51: 20 characters, for an international number has up to 16",
        ),
        row("U8", User, {"id_num": "i" * 15}, _SAME, [{"id_num": "i" * 16}]),
        row("U9", User, {"note": "free text\n" * 1_000}, _SAME, []),
        row("U13", User, {}, {"active": True}, []),
        row("B4", Bot, {}, {"dry_run": False}, []),
        row("B5", Bot, {}, {"active": False}, []),
        row("E3", Exchange, {}, {"cat_ex_id": 1}, [{"cat_ex_id": 999}]),
        row("E4", Exchange, {"ex_name": "n" * 50}, _SAME, [{"ex_name": "n" * 51}]),
        row("E5", Exchange, {"account": "a" * 50}, _SAME, [{"account": "a" * 51}]),
        row("E7", Exchange, {}, {"sandbox": False}, []),
        row("E8", Exchange, {}, {"active": True}, []),
        row(
            "Y2",
            Symbol,
            {"symbol": "BTC/USD:BTC-241227-100000-C"},
            _SAME,
            [{"symbol": "eth/usdt"}, {"symbol": ""}],
            differs="X32: never in lower case, so that no symbol looks like a word of a cache key",
        ),
        row("Y3", Symbol, {}, {"exchange_id": 1, "cat_ex_id": 1}, [{"exchange_id": 999}]),
        row("Y4", Symbol, {"ticker": "ADAUSDT"}, _SAME, [{"ticker": "T" * 41}]),
        row("Y5", Symbol, {"decimals": 4}, _SAME, [{"decimals": -1}, {"decimals": 19}]),
        row("Y6", Symbol, {"backtest": True}, _SAME, []),
        row("O2", Order, {"ex_order_id": "BINANCE123456"}, _SAME, [{"ex_order_id": "BINANCE123456"}]),
        row(
            "O3",
            Order,
            {},
            {"bot_id": 1, "uid": 1, "ex_id": 1, "symbol_id": 1},
            [{"bot_id": 999}, {"uid": 999}, {"ex_id": 999}, {"symbol_id": 999}],
        ),
        row("O4", Order, {"side": "sell"}, _SAME, [{"side": "hold"}]),
        row(
            "O5",
            Order,
            {"size": 0.001, "price": 45000.1},
            {"size": Decimal("0.001"), "price": Decimal("45000.1")},
            [{"size": 0}, {"size": float("nan")}, {"price": -1}],
            differs="X1: exact decimals instead of doubles",
        ),
        row("O6", Order, {"order_type": "stop"}, _SAME, [{"order_type": "sideways"}]),
        row("O7", Order, {"status": "cancelled"}, _SAME, [{"status": "vanished"}]),
        row(
            "T3",
            Trade,
            {"ex_trade_id": "BINANCE_TRADE_789"},
            _SAME,
            [{"ex_trade_id": "BINANCE_TRADE_789", "size": 2}],
        ),
        row(
            "T4",
            Trade,
            {},
            {"bot_id": 1, "uid": 1, "ex_id": 1, "symbol_id": 1},
            [{"bot_id": 999}, {"uid": 999}, {"ex_id": 999}, {"symbol_id": 999}],
        ),
        row(
            "T5",
            Trade,
            {"side": "sell", "size": 0.1, "price": 45050.0, "fee": 0.45},
            {"side": "sell", "size": Decimal("0.1"), "price": Decimal("45050.0"), "fee": Decimal("0.45")},
            [{"side": "hold"}, {"size": 0}, {"price": float("inf")}, {"fee": float("nan")}],
            differs="X1: exact decimals instead of doubles",
        ),
        row("T6", Trade, {"fee_currency": "USDT"}, _SAME, [{"fee_currency": "F" * 21}]),
    ],
)
async def test_keeps_what_it_is_given_and_refuses_what_is_none(
    market: Market, model: type[Base], given: dict[str, Any], found: Any, refused: list[dict[str, Any]]
) -> None:
    async with get_async_session() as session:
        identity = inspect(await made(session, market, model, given)).identity

    async with get_async_session() as session:
        stored = await session.get(model, identity)
        expected = given if found is _SAME else found
        assert {name: getattr(stored, name) for name in expected} == expected
    for values in refused:
        with pytest.raises(REFUSED):
            async with get_async_session() as session:
                await made(session, market, model, values)


@pytest.mark.parametrize("model", [row("U12", User), row("B6", Bot), row("O8", Order), row("T7", Trade)])
async def test_stands_for_a_moment_in_utc(market: Market, model: type[Any]) -> None:
    noon = datetime(2024, 1, 1, 12, tzinfo=UTC)
    async with get_async_session() as session:
        now = await made(session, market, model, {})
        then = await made(session, market, model, {"timestamp": noon.astimezone(timezone(timedelta(hours=5)))})
        await session.refresh(then)

    assert abs(now.timestamp - datetime.now(UTC)) < timedelta(minutes=1)
    assert (then.timestamp, then.timestamp.utcoffset()) == (noon, timedelta(0))


@pytest.mark.manual("U3", "User.password", differs="X2: hashes of any length, and never a password itself")
async def test_a_password_is_a_hash(market: Market) -> None:
    async with get_async_session() as session:
        for password in ("0" * 64, BCRYPT, ARGON2, None):
            user = await made(session, market, User, {"password": password})
            await session.refresh(user)
            assert user.password == password
        with pytest.raises(Refusal, match="must be hashed already"):
            await made(session, market, User, {"password": "correct horse battery staple"})


@pytest.mark.manual("U4", "User.f2a", differs="X51: it comes sealed and is stored encrypted, however long it is")
async def test_the_second_factor_is_kept_secret(market: Market, keys: tuple[str, str]) -> None:
    private, public = keys
    uid = market.user.uid
    async with get_async_session() as session:
        repo = UserRepository(session)
        user = await repo.modify_user(uid, {"f2a": seal("JBSWY3DPEHPK3PXP", public, uid=uid, field="f2a")})
        given = await repo.get_f2a(user, public)
        with pytest.raises(Refusal):
            await repo.modify_user(uid, {"f2a": "JBSWY3DPEHPK3PXP"})

    assert "JBSWY" not in user.f2a
    assert unseal(given or "", private, uid=uid, field="f2a") == "JBSWY3DPEHPK3PXP"


@pytest.mark.manual("U10", "User.manager")
async def test_a_manager_is_another_user(market: Market) -> None:
    async with get_async_session() as session:
        managed = await made(session, market, User, {"manager": market.user.uid})

    assert managed.manager == market.user.uid
    for manager in (999, managed.uid):
        with pytest.raises(REFUSED):
            async with get_async_session() as session:
                await UserRepository(session).modify_user(managed.uid, {"manager": manager})


@pytest.mark.manual("U11", "User.external_id")
async def test_an_external_id_is_one_user(market: Market) -> None:
    async with get_async_session() as session:
        user = await made(session, market, User, {"external_id": "crm-42"})
        await made(session, market, User, {"external_id": None})

    assert user.external_id == "crm-42"
    with pytest.raises(DBAPIError, match="external_id"):
        async with get_async_session() as session:
            await made(session, market, User, {"external_id": "crm-42"})


async def loaded(model: type[Any], key: int, *names: str) -> Any:
    """The row with these relationships."""
    async with get_async_session() as session:
        return await session.get(model, key, options=[selectinload(getattr(model, name)) for name in names])


async def rows(*models: type[Base]) -> list[int]:
    async with get_async_session() as session:
        return [await session.scalar(select(func.count()).select_from(model)) or 0 for model in models]


@pytest.mark.manual(
    "U14", "relationships of User, deleted with the user", differs="X5: refused while there are open orders"
)
async def test_what_a_user_owns_goes_with_the_user(furnished: Furnished) -> None:
    uid = furnished.market.user.uid
    names = ("exchanges", "bots", "orders", "trades", "dry_trades", "exchange_history")
    user = await loaded(User, uid, *names)
    assert [len(getattr(user, name)) for name in names] == [1] * 6

    async with get_async_session() as session:
        with pytest.raises(Refusal, match="open orders"):
            await UserRepository(session).delete(uid)
        await UserRepository(session).delete(uid, force=True)

    owned = (User, Exchange, Bot, Order, Trade, DryTrade, ExchangeHistory, Balance, Position, Feed, Strategy)
    assert await rows(*owned, BotLog, Simulation, BotExchange) == [0] * 14


@pytest.mark.manual("U15", "User.manager_user, User.managed_users")
async def test_the_hierarchy_can_be_walked_both_ways(market: Market) -> None:
    async with get_async_session() as session:
        managed = await made(session, market, User, {"manager": market.user.uid})

    below = await loaded(User, managed.uid, "manager_user", "managed_users")
    above = await loaded(User, market.user.uid, "manager_user", "managed_users")
    assert (below.manager_user.uid, below.managed_users) == (market.user.uid, [])
    assert (above.manager_user, [user.uid for user in above.managed_users]) == (None, [managed.uid])


@pytest.mark.manual("U16", "key features of User", differs="X5: deleting is refused while there are open orders")
async def test_users_have_roles_managers_protection_and_external_ids(furnished: Furnished) -> None:
    async with get_async_session() as session:
        repo = UserRepository(session)
        admin = await repo.create({"mail": "admin@company.com", "role": "ADMIN", "external_id": "crm-1"})
        await repo.modify_user(furnished.market.user.uid, {"manager": admin.uid})
        [managed] = await repo.get_user_list(manager_id=admin.uid)
        with pytest.raises(Refusal) as refusal:
            await repo.delete(managed.uid)
        [found] = await repo.search("crm-1")

    assert (admin.role, managed.role) == (RoleEnum.ADMIN, RoleEnum.USER)
    assert refusal.value.code == "conflict"
    assert found is admin


@pytest.mark.manual("B2", "Bot.uid")
async def test_a_bot_goes_with_its_owner(market: Market) -> None:
    with pytest.raises(REFUSED):
        async with get_async_session() as session:
            await made(session, market, Bot, {"uid": 999})
    async with get_async_session() as session:
        await UserRepository(session).delete(market.user.uid)

    assert await rows(Bot) == [0]


@pytest.mark.manual("B3", "Bot.name", differs="X29: unique per user, since unique per bot_id says nothing")
async def test_a_users_bots_have_names_of_their_own(market: Market) -> None:
    async with get_async_session() as session:
        other = await made(session, market, User, {})
        longest = await made(session, market, Bot, {"name": "n" * 50})
        same = await made(session, market, Bot, {"uid": other.uid, "name": "n" * 50})

    assert longest.name == same.name
    for name, refused in (("n" * 50, DBAPIError), ("n" * 51, Refusal)):
        with pytest.raises(refused):
            async with get_async_session() as session:
                await made(session, market, Bot, {"name": name})


@pytest.mark.parametrize(
    ("model", "key", "one", "many"),
    [
        row(
            "B7",
            Bot,
            "bot_id",
            {"user": User},
            {
                "strategies": Strategy,
                "bot_exchanges": BotExchange,
                "logs": BotLog,
                "simulations": Simulation,
                "orders": Order,
                "dry_trades": DryTrade,
                "feeds": Feed,
            },
            differs="X28: and its feeds, which the manual's methods load",
        ),
        row(
            "E9",
            Exchange,
            "ex_id",
            {"user": User, "cat_exchange": CatExchange},
            {
                "bot_exchanges": BotExchange,
                "orders": Order,
                "trades": Trade,
                "balances": Balance,
                "history": ExchangeHistory,
            },
        ),
        row(
            "Y7",
            Symbol,
            "symbol_id",
            {"cat_exchange": CatExchange},
            {"orders": Order, "trades": Trade, "ticks": Tick},
        ),
    ],
)
async def test_relationships_are_loaded_when_asked_for_and_never_else(
    furnished: Furnished, model: type[Any], key: str, one: dict[str, type], many: dict[str, type]
) -> None:
    identity = {**furnished.market.ids}[key]

    found = await loaded(model, identity, *one, *many)
    bare = await loaded(model, identity)

    assert {name: type(getattr(found, name)) for name in one} == one
    assert {name: [type(item) for item in getattr(found, name)] for name in many} == {
        name: [kind] for name, kind in many.items()
    }
    for name in (*one, *many):
        with pytest.raises(InvalidRequestError):
            getattr(bare, name)


@pytest.mark.manual("E2", "Exchange.uid")
async def test_an_account_has_an_owner_who_exists(market: Market) -> None:
    assert market.exchange.uid == market.user.uid
    with pytest.raises(REFUSED):
        async with get_async_session() as session:
            await made(session, market, Exchange, {"uid": 999})


@pytest.mark.manual(
    "E6",
    "api_key, api_secret, passphrase",
    differs="X4: sealed by the sender, in a table of their own, of any length",
)
async def test_credentials_are_sealed_and_come_back_sealed(market: Market, keys: tuple[str, str]) -> None:
    private, public = keys
    uid, secret = market.user.uid, "k" * 1_000
    sealed = {name: seal(secret, public, uid=uid, field=name) for name in ("api_key", "api_secret", "passphrase")}
    async with get_async_session() as session:
        exchange = await made(session, market, Exchange, sealed)
        kept = await session.get_one(ExchangeCredential, exchange.ex_id)
        given = await ExchangeRepository(session).get_exchange_credentials(exchange.ex_id, public)
        with pytest.raises(Refusal):
            await made(session, market, Exchange, {"api_key": "plain"})

    assert exchange.has_credentials
    assert given is not None
    for name in sealed:
        assert secret not in getattr(kept, name)
        assert unseal(getattr(given, name), private, uid=uid, field=name) == secret


@pytest.mark.manual("E10", "key features of Exchange")
async def test_accounts_have_params_balances_history_and_a_sandbox(furnished: Furnished) -> None:
    ex_id = furnished.market.exchange.ex_id
    async with get_async_session() as session:
        repo = ExchangeRepository(session)
        await repo.set_exchange_params({"rate_limit": "10"}, ex_id=ex_id)
        params = await repo.get_exchange_params(ex_id)
        sandbox = await made(session, furnished.market, Exchange, {"sandbox": True})

    account = await loaded(Exchange, ex_id, "balances", "history")
    assert params == {"rate_limit": "10"}
    assert sandbox.sandbox is True
    assert [(balance.currency, balance.total) for balance in account.balances] == [("USDT", 100)]
    assert [entry.balance for entry in account.history] == [100]


@pytest.mark.manual("Y8", "key features of Symbol")
async def test_symbols_have_rules_of_size_and_a_status(market: Market) -> None:
    rules = {"tick_size": 0.01, "step_size": 0.001, "min_size": 0.001, "max_size": 9000, "status": "halted"}
    async with get_async_session() as session:
        listed = await made(session, market, Symbol, rules)
        other = await ExchangeRepository(session).install_exchange("kraken")
        again = await made(session, market, Symbol, {"symbol": listed.symbol, "exchange_id": other[0].cat_ex_id})
        [symbol] = await SymbolRepository(session).get_all("binance", active_only=True)

    assert (listed.tick_size, listed.max_size, listed.status) == (Decimal("0.01"), 9000, "halted")
    assert again.id != listed.id
    assert symbol.symbol == "BTC/USDT"


@pytest.mark.manual("T2", "Trade.order_id", differs="X40: a trade may come before its order, or without one")
async def test_a_trade_may_have_an_order(furnished: Furnished) -> None:
    async with get_async_session() as session:
        alone = await made(session, furnished.market, Trade, {})

    assert (furnished.trade.order_id, alone.order_id) == (furnished.order.order_id, None)


@pytest.mark.manual("M-DryTrade", "DryTrade")
async def test_a_dry_trade_looks_like_a_trade(furnished: Furnished) -> None:
    dry_trade = furnished.dry_trade
    columns = {"bot_id", "uid", "ex_id", "symbol_id", "side", "size", "price", "fee", "fee_currency", "timestamp"}

    assert columns <= {column.key for column in inspect(DryTrade).column_attrs}
    assert (dry_trade.trade_id, dry_trade.cost, dry_trade.roi) == (dry_trade.dry_trade_id, Decimal(100), Decimal(5))


@pytest.mark.manual("M-BotExchange", "BotExchange")
async def test_a_bot_and_an_account_are_linked_with_limits(market: Market) -> None:
    async with get_async_session() as session:
        link = await BotRepository(session).add_exchange_to_bot(
            market.bot.bot_id,
            {"exchange_id": market.exchange.ex_id, "trading_currency": "USDT", "max_exposure": 10000.0},
        )

    assert (link.bot_id, link.exchange_id) == (market.bot.bot_id, market.exchange.ex_id)
    assert (link.trading_currency, link.max_exposure) == ("USDT", Decimal(10000))


@pytest.mark.manual("M-Feed", "Feed")
async def test_a_feed_is_a_symbol_in_a_timeframe(furnished: Furnished) -> None:
    feed = furnished.feed

    assert (feed.bot_id, feed.symbol_id) == (furnished.market.bot.bot_id, furnished.market.symbol.id)
    assert (feed.timeframe, feed.enabled) == ("1m", True)


@pytest.mark.manual("M-BotLog", "BotLog")
async def test_a_log_entry_is_a_message_at_a_time(market: Market) -> None:
    async with get_async_session() as session:
        log = await BotRepository(session).save_bot_log(
            {
                "bot_id": market.bot.bot_id,
                "message": "Strategy executed successfully",
                "timestamp": datetime(2024, 1, 1),  # noqa: DTZ001 - as datetime.utcnow() gives it
            }
        )

    assert (log.bot_id, log.message) == (market.bot.bot_id, "Strategy executed successfully")
    assert log.timestamp == datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.manual("M-Simulation", "Simulation")
async def test_a_simulation_has_its_figures(furnished: Furnished) -> None:
    simulation = furnished.simulation

    assert (simulation.initial_balance, simulation.final_balance) == (Decimal(10000), Decimal(11250))
    assert (simulation.total_trades, simulation.win_rate, simulation.sharpe_ratio) == (156, 0.67, 1.43)
    assert simulation.timestamp is not None


@pytest.mark.manual("M-CatExchange", "CatExchange")
async def test_an_exchange_of_the_catalog_has_a_name(market: Market) -> None:
    async with get_async_session() as session:
        [catalog] = await ExchangeRepository(session).get_exchange_catalog()

    assert (catalog.cat_ex_id, catalog.name) == (market.catalog.cat_ex_id, "binance")


@pytest.mark.manual("M-Strategy", "Strategy")
async def test_a_strategy_is_what_a_bot_runs(furnished: Furnished) -> None:
    strategy = await loaded(Strategy, furnished.strategy.str_id, "bot", "cat_strategy", "feeds_list", "param_rows")

    assert (strategy.bot.bot_id, strategy.cat_strategy.name) == (furnished.market.bot.bot_id, "trend")
    assert (dict(strategy.params), strategy.leverage) == ({"period": "20"}, 1)


@pytest.mark.manual("M-CatStrategy", "CatStrategy")
async def test_a_strategy_of_the_catalog_has_params(furnished: Furnished) -> None:
    template = await loaded(CatStrategy, furnished.strategy.cat_str_id, "param_rows")

    assert (template.name, dict(template.params)) == ("trend", {"period": "20"})


@pytest.mark.manual("M-Balance", "Balance")
async def test_a_balance_is_free_and_used(furnished: Furnished) -> None:
    async with get_async_session() as session:
        balance = await session.get_one(Balance, (furnished.market.exchange.ex_id, "USDT"))

    assert (balance.free, balance.used, balance.total) == (Decimal(90), Decimal(10), Decimal(100))


@pytest.mark.manual("M-Position", "Position")
async def test_a_position_has_a_side_and_a_price(furnished: Furnished) -> None:
    async with get_async_session() as session:
        key = (furnished.market.exchange.ex_id, furnished.market.symbol.id)
        position = await session.get_one(Position, key)

    assert (position.side, position.volume, position.price) == ("long", Decimal(1), Decimal(9))


@pytest.mark.manual("M-ExchangeHistory", "ExchangeHistory")
async def test_a_change_of_a_balance_is_history(furnished: Furnished) -> None:
    async with get_async_session() as session:
        [entry] = await session.scalars(select(ExchangeHistory))

    assert (entry.ex_id, entry.uid) == (furnished.market.exchange.ex_id, furnished.market.user.uid)
    assert (entry.currency, entry.balance) == ("USDT", Decimal(100))


@pytest.mark.manual("M-Tick", "Tick")
async def test_a_tick_is_a_price_at_a_time(furnished: Furnished) -> None:
    async with get_async_session() as session:
        [tick] = await session.scalars(select(Tick))

    assert (tick.symbol_id, tick.price) == (furnished.market.symbol.id, Decimal(9))
    assert tick.timestamp == datetime(2024, 1, 1, 12, tzinfo=UTC)


@pytest.mark.manual("M-dict", "to_dict, from_dict", differs="X3: every field but the secret ones")
async def test_rows_become_dictionaries_and_back(furnished: Furnished) -> None:
    user_data = {"mail": "api@example.com", "password": BCRYPT, "role": "USER", "name": "API", "lastname": "User"}
    async with get_async_session() as session:
        user = await UserRepository(session).add_user(user_data)
        user_dict = user.to_dict()

    assert User.from_dict(user_data).mail == "api@example.com"
    assert user_dict["timestamp"] == user.timestamp.isoformat()
    assert set(user_dict) == {column.key for column in inspect(User).column_attrs} - {"password", "f2a"}
    assert furnished.order.to_dict()["size"] == "0.001"


@pytest.mark.manual("UUID1", "a model with a UUID, get_by_uuid")
async def test_a_model_can_be_looked_up_by_uuid(library: None) -> None:
    # Its table is not one of the service's, which other tests compare with the migrations.
    class OwnBase(Base):
        __abstract__ = True
        metadata = MetaData()

    class ModelWithUUID(OwnBase):
        __tablename__ = "uuid_model"

        id = mapped_column(Integer, primary_key=True)
        external_uuid: Mapped[UUID] = mapped_column(postgresql.UUID(as_uuid=True), default=uuid4, unique=True)

        @classmethod
        async def get_by_uuid(cls, session: AsyncSession, uuid_value: UUID) -> "ModelWithUUID | None":
            stmt = select(cls).where(cls.external_uuid == uuid_value)
            result = await session.execute(stmt)
            return result.scalar_one_or_none()

    async with get_engine().begin() as connection:
        await connection.run_sync(OwnBase.metadata.create_all)
    async with get_async_session() as session:
        mine = ModelWithUUID()
        session.add(mine)
        await session.flush()

        assert await ModelWithUUID.get_by_uuid(session, mine.external_uuid) is mine
        assert await ModelWithUUID.get_by_uuid(session, uuid4()) is None
    async with get_engine().begin() as connection:
        await connection.run_sync(OwnBase.metadata.drop_all)
