"""Where the manual is wrong: what holds in its place, and what would go wrong without."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pytest
import uvloop
from pydantic import BaseModel, SecretStr, ValidationError
from sqlalchemy import func, select, text
from sqlalchemy import inspect as columns_of
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from structlog.testing import capture_logs

from contracts import (
    AddBot,
    AddExchange,
    AddExchangeToBot,
    AddFeedToBot,
    AddSymbol,
    AddSymbols,
    AddUser,
    ClaimPendingOrders,
    DeleteBot,
    DeleteUser,
    EditBot,
    ErrorCode,
    ExchangeUpdates,
    FillOrder,
    GetBotsWithDetails,
    GetSymbolById,
    GetSymbolsByExchange,
    GetTradesPaginated,
    GetUser,
    GetUserByEmail,
    GetUserTradingStats,
    RecordTrade,
    Refusal,
    SearchUsers,
    SetExchangeParams,
    SetUserActive,
    SymbolExists,
    SymbolFields,
    ToggleActive,
    UpdateExchange,
    UpdateOrderStatus,
    UpdatePassword,
    cache_keys,
    seal,
)
from contracts.base import COMMAND_TYPES, EVENT_TYPES, LOOKUP_TYPES, View
from contracts.bot import BotUpdates
from contracts.certificate import name_of
from contracts.leased_cache import LeasedCache, connect
from contracts.sealing import is_secret_name
from service import (
    BaseRepository,
    BotRepository,
    Exchange,
    ExchangeRepository,
    Symbol,
    SymbolRepository,
    Trade,
    TradeRepository,
    User,
    UserRepository,
    cache_manager,
    create_database_url,
    get_async_session,
    get_engine,
    run_with_uvloop,
    setup_uvloop,
    warm_symbol_cache,
)
from service.base import Base
from service.config import LibrarySettings
from service.database import SessionMaker, build_session_maker
from service.engine import build_engine
from service.errors import constraint_of, is_transient, reason, refusal_for
from service.executor import Executor
from service.lookup_server import LookupServer
from service.models import BotExchange, DeadLetter, Strategy
from service.received import Received
from service.registry import Handler
from tests.builders import Desk, Direct, a_desk, received
from tests.manual.conftest import Market, asked, stale_keys
from tests.observe import refusal, statements

README = (Path(__file__).parents[2] / "README.md").read_text()
HASH = "$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$" + "a" * 43


async def count(sessions: SessionMaker, model: type[Base]) -> int:
    async with sessions() as session:
        return await session.scalar(select(func.count()).select_from(model)) or 0


@pytest.mark.manual("X1", "money is exact")
async def test_money_has_no_double_on_its_way(direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
    trade = await direct.call(desk.trade(size="0.1", price="0.000000000000000001", fee="0.3"))

    async with sessions() as session:
        stored = await session.get_one(Trade, trade.trade_id)
    assert (trade.size, trade.price, str(stored.size)) == (Decimal("0.1"), Decimal("1e-18"), "0.1")
    for wrong in ("NaN", "Infinity", "0.0000000000000000001"):
        with pytest.raises(ValidationError):
            desk.trade(price=wrong)


@pytest.mark.manual("X2", "password hashes of any length, never a password")
async def test_passwords_come_hashed_and_leave_by_one_lookup(direct: Direct, server: LookupServer) -> None:
    for hashed in (HASH, "$2b$12$" + "a" * 53, "0" * 64):
        user = await direct.call(AddUser(mail=f"{len(hashed)}@example.org", password_hash=hashed))
        assert hashed not in json.dumps(await asked(server, GetUser(uid=user.uid)))
    for plain in ("correct horse", "0" * 63):
        with pytest.raises(ValidationError):
            UpdatePassword(uid=user.uid, password_hash=plain)


def views_in(annotation: Any) -> Iterator[type[View]]:
    """The views that an annotation is made of, with those inside of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation  # type: ignore[misc]
        for field in annotation.model_fields.values():
            yield from views_in(field.annotation)
    for part in get_args(annotation):
        yield from views_in(part)


@pytest.mark.manual("X3", "no secret in to_dict")
async def test_no_secret_is_in_dictionaries_views_and_events(market: Market) -> None:
    async with get_async_session() as session:
        await UserRepository(session).update_password(market.user.uid, HASH)
        user = await UserRepository(session).get_by_id(market.user.uid)

    assert user is not None
    assert not {"password", "f2a"} & user.to_dict().keys()
    open_to_all = [lookup.answer_type() for lookup in LOOKUP_TYPES.values() if not lookup.restricted]
    answers = [*open_to_all, *(command.answer_type() for command in COMMAND_TYPES.values())]
    shown = {view for answer in answers for view in views_in(answer)}
    announced = {view for event in EVENT_TYPES.values() for view in views_in(event.view_type())}
    named = {
        f"{view.__name__}.{name}" for view in shown | announced for name in view.model_fields if is_secret_name(name)
    }
    assert named <= {"ExchangeView.has_credentials", "SealingKeyView.public_key"}


@pytest.mark.manual("X4", "credentials are sealed and kept apart")
async def test_credentials_are_refused_unless_sealed(
    direct: Direct, desk: Desk, executor: Executor, keys: tuple[str, str]
) -> None:
    uid, ids = desk.user.uid, {"uid": desk.user.uid, "cat_ex_id": desk.catalog.cat_ex_id}
    sealed = seal("k" * 2_000, keys[1], uid=uid, field="api_key")
    account = await direct.call(AddExchange(**ids, ex_name="sealed", api_key=sealed))

    assert account.has_credentials
    assert not {"api_key", "api_secret", "passphrase"} & set(columns_of(Exchange).columns.keys())
    with pytest.raises(ValidationError):
        AddExchange(**ids, ex_name="plain", api_key="k")
    # Sealed for another field: whoever saw it in a queue cannot use it.
    error = await refusal(executor, AddExchange(**ids, ex_name="stolen", passphrase=sealed))
    assert (error.code, error.field) == (ErrorCode.VALIDATION, "passphrase")


@pytest.mark.manual("X5", "deleting is refused while it would hurt")
async def test_deleting_waits_for_open_orders(direct: Direct, desk: Desk, executor: Executor) -> None:
    await direct.call(desk.order())
    bot, user = desk.bot.bot_id, desk.user.uid

    refused = [await refusal(executor, command) for command in (DeleteBot(bot_id=bot), DeleteUser(uid=user))]
    gone = await direct.call(DeleteUser(uid=user, force=True))

    assert [error.code for error in refused] == [ErrorCode.CONFLICT, ErrorCode.CONFLICT]
    assert (gone.bots, gone.exchanges, gone.orders) == (1, 1, 1)


@pytest.mark.manual("X6", "invalidation only after the commit")
async def test_keys_are_named_by_the_commit_and_not_before(market: Market, sessions: SessionMaker) -> None:
    await stale_keys(sessions)
    async with sessions() as session:
        await SymbolRepository(session).update_symbol(market.symbol.id, {"decimals": 5})
        await session.flush()
        assert await stale_keys(sessions) == []
        await session.rollback()
        assert await stale_keys(sessions) == []
        await SymbolRepository(session).update_symbol(market.symbol.id, {"decimals": 5})
        await session.commit()

    assert cache_keys.symbol("BTC/USDT", market.catalog.cat_ex_id) in await stale_keys(sessions)


@pytest.mark.manual("X7", "a slow reader cannot store an old value")
async def test_a_value_loaded_before_an_invalidation_is_not_stored(cache: LeasedCache) -> None:
    stored = ["old", "new"]

    async def slow() -> bytes:
        value = stored[0].encode()
        if value == b"old":
            stored.pop(0)
            await cache.invalidate(["key"])
        return value

    async def never() -> bytes:
        raise AssertionError("it is cached")

    assert await cache.get("key", slow) == b"new"
    assert await cache.get("key", never) == b"new"


@pytest.mark.manual("X9", "no failure is swallowed")
async def test_a_failure_is_a_dead_letter_or_an_outage(
    desk: Desk, executor: Executor, sessions: SessionMaker
) -> None:
    async def broken(command: Any, work: Any) -> Any:
        raise ZeroDivisionError

    async def out(command: Any, work: Any) -> Any:
        raise OSError("connection refused")

    [refused] = await executor.execute([received(desk.trade(symbol_id=999))])
    [failed] = await Executor(sessions, {RecordTrade: Handler(broken)}).execute([received(desk.trade())])
    with pytest.raises(OSError, match="connection refused"):
        await Executor(sessions, {RecordTrade: Handler(out)}).execute([received(desk.trade())])

    assert [reply.error and reply.error.code for reply in (refused, failed)] == ["not_found", "internal"]
    assert await count(sessions, DeadLetter) == 2


@pytest.mark.manual("X10", "a resend has no second effect")
async def test_a_resend_gets_the_first_answer(desk: Desk, executor: Executor, sessions: SessionMaker) -> None:
    message = received(desk.trade(ex_trade_id=None))

    [first], [second] = [await executor.execute([message]) for _ in range(2)]

    assert (first.data, second.meta.duplicate) == (second.data, True)
    assert await count(sessions, Trade) == 1


@pytest.mark.manual("X11", "one bad row does not undo its neighbours")
async def test_a_bad_row_fails_alone(direct: Direct, desk: Desk) -> None:
    names = ["A/B", "C/D", "E/F"]
    symbols = [SymbolFields(symbol=name, cat_ex_id=desk.catalog.cat_ex_id) for name in names]
    symbols[1] = SymbolFields(symbol="C/D", cat_ex_id=999)

    added = await direct.call(AddSymbols(symbols=symbols))

    assert (added.created, added.failed, len(added.failures)) == (2, 1, 1)


@pytest.mark.manual("X12", "no order is filled twice")
async def test_workers_claim_different_orders(direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
    placed = {(await direct.call(desk.order())).order_id for _ in range(6)}
    workers = [Direct(Executor(sessions)) for _ in range(3)]

    claims = await asyncio.gather(
        *(worker.call(ClaimPendingOrders(limit=2, worker=str(number))) for number, worker in enumerate(workers))
    )

    claimed = [order.order_id for claim in claims for order in claim.orders]
    assert len(claimed) == len(set(claimed))
    assert set(claimed) <= placed


@pytest.mark.manual("X13", "what belongs to different users cannot be combined")
async def test_ownership_is_checked_and_held_by_the_tables(
    direct: Direct, desk: Desk, executor: Executor, sessions: SessionMaker
) -> None:
    other = await a_desk(direct)

    error = await refusal(executor, AddExchangeToBot(bot_id=desk.bot.bot_id, ex_id=other.account.ex_id))

    assert (error.code, error.field) == (ErrorCode.FORBIDDEN, "ex_id")
    values = f"{desk.bot.bot_id}, {other.account.ex_id}, {desk.user.uid}"
    with pytest.raises(IntegrityError):
        async with sessions.begin() as session:
            await session.execute(text(f"INSERT INTO bot_exchanges (bot_id, ex_id, uid) VALUES ({values})"))  # noqa: S608


@pytest.mark.manual("X14", "the sender of a message is known")
async def test_senders_have_to_log_in(desk: Desk, sessions: SessionMaker) -> None:
    strict = Executor(sessions, require_user=True)

    [unknown] = await strict.execute([received(desk.trade())])
    [known] = await strict.execute([received(desk.trade(), user_id="bot-7")])

    assert unknown.error is not None
    assert (unknown.error.code, unknown.error.field) == (ErrorCode.FORBIDDEN, "user_id")
    assert known.ok


class _DriverError(Exception):
    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


@pytest.mark.manual("X15", "outages are told from errors")
def test_outages_are_told_from_errors() -> None:
    states = ("40001", "40P01", "55P03", "57P01", "57P02", "57P03", "53300", "08006", "25006", "42P01", "42501")
    outages: list[Exception] = [
        *(OperationalError("", None, _DriverError(state)) for state in states),
        InterfaceError("", None, Exception("connection is closed"), connection_invalidated=True),
        PoolTimeout(),
        ConnectionRefusedError(),
        TimeoutError(),
    ]
    errors = [
        IntegrityError("", None, _DriverError("23505")),
        DBAPIError("", None, _DriverError("22001")),
        KeyError(),
    ]

    assert [is_transient(error) for error in outages] == [True] * len(outages)
    assert [is_transient(error) for error in errors] == [False] * len(errors)


@pytest.mark.manual("X16", "a violated constraint is told by its name")
async def test_the_field_at_fault_is_named(direct: Direct, executor: Executor) -> None:
    await direct.call(AddUser(mail="a@example.org", external_id="crm-1"))

    mail = await refusal(executor, AddUser(mail="A@example.org"))
    external = await refusal(executor, AddUser(mail="b@example.org", external_id="crm-1"))
    manager = await refusal(executor, AddUser(mail="c@example.org", manager=999))

    assert [(error.code, error.field) for error in (mail, external, manager)] == [
        (ErrorCode.CONFLICT, "mail"),
        (ErrorCode.CONFLICT, "external_id"),
        (ErrorCode.NOT_FOUND, "manager"),
    ]


@pytest.mark.manual("X17", "caching that is asynchronous")
async def test_cached_methods_are_awaited(relied_on: None, market: Market) -> None:
    async with get_async_session() as session:
        symbol_repo = SymbolRepository(session)
        first = await symbol_repo.get_by_symbol("BTC/USDT", market.catalog.cat_ex_id)
        with statements(get_engine()) as sent:
            second = await symbol_repo.get_by_symbol("BTC/USDT", market.catalog.cat_ex_id)

    assert first is not None
    assert second is not None
    assert (first.to_dict(), sent) == (second.to_dict(), [])

    def blocking(param: str) -> list[str]:
        return [param]

    with pytest.raises(TypeError, match="not asynchronous"):
        cache_manager.cache_on_symbol_methods(blocking)  # type: ignore[arg-type]


@pytest.mark.manual("X18", "cached values are JSON")
async def test_a_cached_value_is_the_view_as_json(server: LookupServer, market: Market, redis_url: str) -> None:
    answer = await server.answer(GetSymbolsByExchange(cat_ex_id=market.catalog.cat_ex_id))

    redis = connect(redis_url, timeout=2)
    held = await redis.get(name_of("persistence", f"symbols:exchange:{market.catalog.cat_ex_id}"))
    await redis.aclose()
    # In front of the value stands what tells it from a lease.
    assert isinstance(held, bytes)
    assert held.endswith(answer)
    assert [symbol["symbol"] for symbol in json.loads(answer)] == ["BTC/USDT"]


@pytest.mark.manual("X19", "unavailable is not empty")
async def test_a_lookup_says_so_when_the_database_is_away(cache: LeasedCache) -> None:
    nowhere = SecretStr("postgresql://127.0.0.1:1/x")
    away = build_engine(LibrarySettings.read().model_copy(update={"database_url": nowhere}))
    server = LookupServer(build_session_maker(away), cache, None)  # type: ignore[arg-type]

    reply = json.loads(await server.reply(Received(command="get_symbols_by_exchange", body=b'{"cat_ex_id": 1}')))

    await away.dispose()
    assert (reply["ok"], reply["error"]["code"], reply["error"]["retryable"]) == (False, "unavailable", True)


@pytest.mark.manual("X21", "connections are rolled back when returned")
async def test_a_connection_that_was_left_open_leaves_nothing(library: None, sessions: SessionMaker) -> None:
    async with get_engine().connect() as connection:
        await connection.execute(text("INSERT INTO users (mail) VALUES ('left@example.org')"))

    assert await count(sessions, User) == 0


@pytest.mark.manual("X23", "rows become dictionaries")
async def test_aggregates_are_dictionaries(market: Market) -> None:
    async with get_async_session() as session:
        trade_repo = TradeRepository(session)
        for price in (10, 20, 60):
            await trade_repo.create({**market.trade, "price": price})
        stats = [dict(row._mapping) for row in await trade_repo.get_symbol_price_stats()]

    assert [(row["symbol_id"], row["median_price"]) for row in stats] == [(market.symbol.id, 20)]


@pytest.mark.manual("X24", "errors show no query and no values")
async def test_an_error_shows_no_value(market: Market) -> None:
    canary = "canary@example.org"
    errors: list[Exception] = []
    for data in ({"mail": canary, "name": "x" * 51}, {"mail": canary}, {"mail": canary}):
        try:
            async with get_async_session() as session:
                session.add(User(**data))
        except DBAPIError as error:
            errors.append(error)

    assert [text for error in errors for text in (reason(error), str(refusal_for(error))) if canary in text] == []
    assert "hidden" in str(errors[0])
    assert (len(errors), constraint_of(errors[1])) == (2, "uq_users_lower_mail")


@pytest.mark.manual("X25", "one place commits")
async def test_repositories_leave_the_commit_to_who_began(market: Market, sessions: SessionMaker) -> None:
    async with sessions() as session:
        await UserRepository(session).add_user({"mail": "gone@example.org"})
        await BotRepository(session).edit_bot(market.bot.bot_id, {"name": "gone"})
        await TradeRepository(session).create(market.trade)
        await session.rollback()

    async with sessions() as session:
        assert await UserRepository(session).get_user_id("gone@example.org") is None
        assert await TradeRepository(session).get_all() == []


@pytest.mark.manual("X26", "create and update on BaseRepository")
async def test_every_repository_can_create_and_update(market: Market) -> None:
    assert {"create", "update", "delete"} <= vars(BaseRepository).keys()
    async with get_async_session() as session:
        bot = await BotRepository(session).create({"uid": market.user.uid, "name": "V2"})
        assert (await BotRepository(session).update(bot.bot_id, {"name": "V3"})).name == "V3"
        symbol = await SymbolRepository(session).create({"symbol": "A/B", "exchange_id": market.catalog.cat_ex_id})
        assert (await SymbolRepository(session).update(symbol.id, {"decimals": 3})).decimals == 3
        exchange = await ExchangeRepository(session).update(market.exchange.ex_id, {"account": "second"})
        assert exchange.account == "second"


@pytest.mark.manual("X27", "rows are readable after the commit")
async def test_rows_outlive_their_session(market: Market) -> None:
    async with get_async_session() as session:
        bot = await BotRepository(session).get_bot_with_details(market.bot.bot_id)
        await session.commit()

    assert bot is not None
    assert (bot.name, [link.trading_currency for link in bot.bot_exchanges]) == ("Scalping Bot V1", ["USDT"])


@pytest.mark.manual("X28", "feeds belong to a bot")
async def test_a_feed_needs_a_bot_and_no_strategy(direct: Direct, desk: Desk, server: LookupServer) -> None:
    feed = await direct.call(AddFeedToBot(bot_id=desk.bot.bot_id, symbol_id=desk.symbol.symbol_id, timeframe="1m"))
    [details] = await asked(server, GetBotsWithDetails(bot_ids=[desk.bot.bot_id]))

    assert (feed.bot_id, feed.str_id) == (desk.bot.bot_id, None)
    assert [row["feed_id"] for row in details["feeds"]] == [feed.feed_id]


@pytest.mark.manual("X29", "a bot's name is unique per user")
async def test_two_users_may_name_their_bots_alike(direct: Direct, desk: Desk, executor: Executor) -> None:
    other = await direct.call(AddUser(mail="other@example.org"))
    assert await direct.call(AddBot(uid=other.uid, name=desk.bot.name))

    error = await refusal(executor, AddBot(uid=desk.user.uid, name=desk.bot.name))
    assert (error.code, error.field) == (ErrorCode.CONFLICT, "name")


@pytest.mark.manual("X30", "two kinds of exchange id are kept apart")
async def test_messages_say_which_exchange_they_mean(market: Market) -> None:
    requests = (*COMMAND_TYPES.values(), *LOOKUP_TYPES.values())
    assert [kind.wire_name for kind in requests if "exchange_id" in kind.model_fields] == []

    # The second market's account has another number than its catalog exchange.
    async with get_async_session() as session:
        exchange = await ExchangeRepository(session).create(
            {"uid": market.user.uid, "cat_ex_id": market.catalog.cat_ex_id, "ex_name": "second"}
        )
        assert exchange.ex_id != market.catalog.cat_ex_id
        with pytest.raises(Refusal):
            await SymbolRepository(session).add_symbol({"symbol": "A/B", "exchange_id": exchange.ex_id})
        link = await BotRepository(session).add_exchange_to_bot(
            market.bot.bot_id, {"exchange_id": exchange.ex_id, "trading_currency": "USD"}
        )
        assert await BotRepository(session).get_trading_currency(market.bot.bot_id, exchange.ex_id) == "USD"
    assert isinstance(link, BotExchange)


@pytest.mark.manual("X31", "params of the catalog reach its accounts")
async def test_every_account_of_a_catalog_is_named(direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
    ids = {"uid": desk.user.uid, "cat_ex_id": desk.catalog.cat_ex_id}
    second = await direct.call(AddExchange(**ids, ex_name="second"))
    await stale_keys(sessions)

    await direct.call(SetExchangeParams(cat_ex_id=desk.catalog.cat_ex_id, params={"fee": "0.1"}))

    assert {cache_keys.exchange_params(account.ex_id) for account in (desk.account, second)} <= set(
        await stale_keys(sessions)
    )


@pytest.mark.manual("X32", "keys of strange symbols do not collide")
def test_no_symbol_can_be_taken_for_another_key() -> None:
    pairs = [("BTC/USD:BTC", 1), ("BTC/USD", 1), ("A:1", 2), ("A", 12), ("A%3A1", 2), ("{A}", 1)]

    assert len({cache_keys.symbol(*pair) for pair in pairs}) == len(pairs)
    assert cache_keys.symbol("BTC/USDT", 1) == "symbol:BTC/USDT:1"
    with pytest.raises(ValidationError):
        AddSymbol(symbol="decimals", cat_ex_id=1)


@pytest.mark.manual("X33", "a new symbol ends what was cached as absent")
async def test_a_symbol_is_found_once_it_is_listed(
    server: LookupServer, direct: Direct, desk: Desk, sessions: SessionMaker, cache: LeasedCache
) -> None:
    question = SymbolExists(symbol="NEW/ETH", cat_ex_id=desk.catalog.cat_ex_id)
    assert await asked(server, question) is False
    await stale_keys(sessions)

    await direct.call(AddSymbol(symbol="NEW/ETH", cat_ex_id=desk.catalog.cat_ex_id))
    assert await asked(server, question) is False
    await cache.invalidate(await stale_keys(sessions))

    assert await asked(server, question) is True


@pytest.mark.manual("X34", "an account's change names all its keys, old and new")
async def test_both_owners_of_an_account_are_named(direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
    account = await direct.call(
        AddExchange(uid=desk.user.uid, cat_ex_id=desk.catalog.cat_ex_id, ex_name="to be given away")
    )
    heir = await direct.call(AddUser(mail="heir@example.org"))
    await stale_keys(sessions)

    await direct.call(UpdateExchange(ex_id=account.ex_id, updates=ExchangeUpdates(uid=heir.uid)))

    owners = {cache_keys.exchanges_of_user(uid) for uid in (desk.user.uid, heir.uid)}
    assert owners | {cache_keys.exchange_params(account.ex_id)} <= set(await stale_keys(sessions))


@pytest.mark.manual("X35", "warming takes three statements per catalog")
async def test_warming_many_symbols_takes_no_more_statements(relied_on: None, market: Market) -> None:
    async def warmed() -> tuple[int, int]:
        with statements(get_engine()) as sent:
            return await warm_symbol_cache(market.catalog.cat_ex_id), len(sent)

    one, for_one = await warmed()
    async with get_async_session() as session:
        listed = [{"symbol": f"S{i}/USDT", "exchange_id": market.catalog.cat_ex_id} for i in range(50)]
        await SymbolRepository(session).add_symbols(listed)
    many, for_many = await warmed()

    assert (one, many) == (1, 51)
    # The names, the snapshot that the values are of, and the values.
    assert for_one == for_many == 3


@pytest.mark.manual("X37", "instants have an offset")
async def test_naive_instants_are_refused_in_messages(direct: Direct, desk: Desk) -> None:
    with pytest.raises(ValidationError):
        desk.trade(timestamp=datetime(2024, 1, 1))  # noqa: DTZ001 - that is the point
    trade = await direct.call(desk.trade(timestamp="2024-01-01T02:00:00+02:00"))

    assert trade.timestamp == datetime(2024, 1, 1, tzinfo=UTC)
    instants = [
        column.type
        for table in Base.metadata.tables.values()
        for column in table.columns
        if column.type.python_type is datetime
    ]
    assert instants
    assert all(instant.timezone for instant in instants)  # type: ignore[attr-defined]


@pytest.mark.manual("X38", "one word per status")
async def test_spellings_are_taken_for_the_word_they_mean(direct: Direct, desk: Desk) -> None:
    meant = {
        "Canceled": "cancelled",
        "Cancel": "cancelled",
        "FILLED": "filled",
        "Open": "open",
        "REJECTED": "rejected",
    }
    for said, word in meant.items():
        order = await direct.call(desk.order(side="Buy", order_type="Market", status="New", price=None))
        assert (order.side, order.order_type, order.status) == ("buy", "market", "pending")
        assert (await direct.call(UpdateOrderStatus(order_id=order.order_id, status=said))).status == word


@pytest.mark.manual("X39", "a final status stays")
async def test_a_late_status_does_not_bring_an_order_back(direct: Direct, desk: Desk, executor: Executor) -> None:
    order = await direct.call(desk.order())
    filled = await direct.call(UpdateOrderStatus(order_id=order.order_id, status="filled"))
    again = await direct.call(UpdateOrderStatus(order_id=order.order_id, status="filled"))

    late = await refusal(executor, UpdateOrderStatus(order_id=order.order_id, status="open"))

    assert again.row_version == filled.row_version
    assert (late.code, late.field) == (ErrorCode.INVALID_TRANSITION, "status")


@pytest.mark.manual("X40", "trades arrive before their order")
async def test_a_trade_finds_its_order_later(direct: Direct, desk: Desk) -> None:
    trade = await direct.call(desk.trade(size="4", price="0.1", ex_trade_id="T-1"))
    order = await direct.call(desk.order(size="4"))

    filled = await direct.call(FillOrder(order_id=order.order_id, price="0.1", size="4", ex_trade_id="T-1"))

    assert trade.order_id is None
    assert (filled.trade.trade_id, filled.trade.order_id) == (trade.trade_id, order.order_id)
    assert filled.order.status == "filled"


@pytest.mark.manual("X41", "toggle_active sets")
async def test_sent_twice_it_is_the_same(direct: Direct, desk: Desk) -> None:
    users = [await direct.call(ToggleActive(uid=desk.user.uid, active=False)) for _ in range(2)]
    last = await direct.call(SetUserActive(uid=desk.user.uid, active=True))

    assert [user.active for user in users] == [False, False]
    assert last.active is True


@pytest.mark.manual("X42", "a user needs no more than an address")
async def test_a_user_without_name_and_password_is_stored(direct: Direct, sessions: SessionMaker) -> None:
    user = await direct.call(AddUser(mail="bare@example.org"))

    async with sessions() as session:
        stored = await session.get_one(User, user.uid)
    assert (stored.password, stored.f2a, stored.name, stored.phone) == (None, "", "", "")


@pytest.mark.manual("X43", "mail in any case, wildcards as they stand")
async def test_wildcards_mean_themselves(direct: Direct, executor: Executor, server: LookupServer) -> None:
    user = await direct.call(AddUser(mail="Ada@Example.org", name="100%"))

    taken = await refusal(executor, AddUser(mail="aDA@eXAMPLE.org"))
    found = {query: len(await asked(server, SearchUsers(query=query))) for query in ("%", "_", "ADA@", "0%")}

    assert taken.code == ErrorCode.CONFLICT
    assert (await asked(server, GetUserByEmail(mail="ADA@EXAMPLE.ORG")))["uid"] == user.uid
    assert found == {"%": 1, "_": 0, "ADA@": 1, "0%": 1}


@pytest.mark.manual("X44", "no cartesian product")
async def test_collections_are_loaded_side_by_side(direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
    for timeframe in ("1m", "5m", "1h"):
        await direct.call(AddFeedToBot(bot_id=desk.bot.bot_id, symbol_id=desk.symbol.symbol_id, timeframe=timeframe))
    async with sessions() as session:
        with statements(get_engine()) as sent:
            [bot] = await BotRepository(session).get_bots_with_details([desk.bot.bot_id])

    assert (len(bot.feeds), len(bot.bot_exchanges)) == (3, 1)
    # One statement for bots and one for each collection, none with two collections in it.
    collections = ("feeds", "bot_exchanges", "strategies")
    assert [sum(f"FROM {name}" in s or f"JOIN {name}" in s for name in collections) for s in sent] == [0, 1, 1, 1]


@pytest.mark.manual("X45", "pages by cursor")
async def test_a_cursor_goes_on_where_the_page_ended(direct: Direct, desk: Desk, server: LookupServer) -> None:
    trades = [(await direct.call(desk.trade())).trade_id for _ in range(5)]
    first = await asked(server, GetTradesPaginated(uid=desk.user.uid, page_size=2))
    for _ in range(3):
        await direct.call(desk.trade())

    second = await asked(server, GetTradesPaginated(uid=desk.user.uid, page_size=2, cursor=first["next_cursor"]))
    by_number = await asked(server, GetTradesPaginated(uid=desk.user.uid, page=4, page_size=2))

    assert [trade["trade_id"] for trade in first["trades"] + second["trades"]] == trades[:0:-1]
    assert [trade["trade_id"] for trade in by_number["trades"]] == trades[1::-1]
    assert by_number["pagination"] == {"page": 4, "page_size": 2, "total": 8, "pages": 4}


@pytest.mark.manual("X46", "weighted average beside the plain one")
async def test_averages_are_named_for_what_they_are(direct: Direct, desk: Desk, server: LookupServer) -> None:
    await direct.call(desk.trade(size="3", price="10"))
    await direct.call(desk.trade(size="1", price="20", side="sell"))

    stats = await asked(server, GetUserTradingStats(uid=desk.user.uid))

    assert {name: Decimal(stats[name]) for name in ("average_price", "vwap", "total_volume", "net_volume")} == {
        "average_price": Decimal(15),
        "vwap": Decimal("12.5"),
        "total_volume": Decimal(50),
        "net_volume": Decimal(10),
    }


@pytest.mark.manual("X47", "uvloop from the start of a process")
async def test_a_running_loop_stays_what_it_is() -> None:
    @run_with_uvloop
    async def main() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    with capture_logs() as logs:
        setup_uvloop()
    with pytest.raises(RuntimeError, match="runs already"):
        main()

    assert [entry["event"] for entry in logs] == ["not_on_uvloop"]
    assert isinstance(await asyncio.to_thread(main), uvloop.Loop)


@pytest.mark.manual("X48", "a budget of connections")
async def test_many_lookups_share_few_connections(
    library: None, monkeypatch: pytest.MonkeyPatch, cache: LeasedCache
) -> None:
    few = LibrarySettings.read().model_copy(update={"db_pool_size": 2, "db_pool_max_overflow": 0})
    engine = build_engine(few)
    server = LookupServer(build_session_maker(engine), cache, None)  # type: ignore[arg-type]

    answers = await asyncio.gather(*(asked(server, GetSymbolById(symbol_id=number)) for number in range(1, 60)))

    opened = engine.pool.checkedin() + engine.pool.checkedout()  # type: ignore[attr-defined]
    await engine.dispose()
    assert (answers, opened) == ([None] * 59, 2)
    assert "size + overflow, times instances, must stay below `max_connections`" in README


@pytest.mark.manual("X50", "settings of its own, URLs with any password")
async def test_a_password_of_any_characters_is_escaped(library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    async with get_engine().connect() as connection:
        assert await connection.scalar(text("SHOW application_name")) == "persistence"
    monkeypatch.delenv("DATABASE_URL")
    for name, value in {"DB_USER": "b@t", "DB_PASSWORD": "p@ss/w:rd#%", "DB_HOST": "db", "DB_NAME": "fullon"}.items():
        monkeypatch.setenv(name, value)

    url = create_database_url()

    assert (url.username, url.password, url.host, url.database) == ("b@t", "p@ss/w:rd#%", "db", "fullon")
    assert "p@ss" not in str(url)


@pytest.mark.manual("X51", "columns that are long enough")
def test_columns_take_what_there_is_in_the_world() -> None:
    lengths = {
        name: getattr(model, name).type.length
        for model, name in ((User, "phone"), (Symbol, "symbol"), (Strategy, "size_currency"), (User, "f2a"))
    }

    assert lengths == {"phone": 20, "symbol": 40, "size_currency": 15, "f2a": None}


@pytest.mark.manual("X52", "a live bot needs an account")
async def test_a_bot_trades_for_real_only_with_an_account(
    direct: Direct, desk: Desk, executor: Executor, keys: tuple[str, str]
) -> None:
    bot = await direct.call(AddBot(uid=desk.user.uid, name="without account"))
    sealed = seal("the key", keys[1], uid=desk.user.uid, field="api_key")
    await direct.call(UpdateExchange(ex_id=desk.account.ex_id, updates=ExchangeUpdates(api_key=sealed)))

    live = await refusal(executor, EditBot(bot_id=bot.bot_id, updates=BotUpdates(active=True)))
    activated = await direct.call(EditBot(bot_id=desk.bot.bot_id, updates=BotUpdates(active=True)))

    assert (bot.active, bot.dry_run, activated.active) == (False, False, True)
    assert (live.code, live.field) == (ErrorCode.CONFLICT, "active")


@pytest.mark.manual("X53", "many rows in one statement")
async def test_a_hundred_symbols_take_as_many_statements_as_one(market: Market) -> None:
    async def statements_for(number: int, prefix: str) -> int:
        async with get_async_session() as session:
            with statements(get_engine()) as sent:
                await SymbolRepository(session).add_symbols(
                    [{"symbol": f"{prefix}{i}/USDT", "exchange_id": market.catalog.cat_ex_id} for i in range(number)]
                )
            return len(sent)

    assert await statements_for(1, "A") == await statements_for(100, "B")
