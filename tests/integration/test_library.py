"""Repositories as a program uses them that has no broker: every change of a row is announced or refused."""

import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import inspect, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import selectinload

import service
from contracts import AddBot, AddFeedToBot, ErrorCode, GetDryMargin, Refusal
from service import cache_manager, dispose_engine
from service.base import Base
from service.config import LibrarySettings, Settings, SettingsError
from service.database import SessionMaker
from service.models import OutboxEvent, Symbol
from service.repositories import (
    AccountRepository,
    BaseRepository,
    BotLogRepository,
    BotRepository,
    FeedRepository,
    OrderRepository,
    SimulationRepository,
    StrategyRepository,
    SymbolRepository,
    TickRepository,
    TradeRepository,
)
from service.repositories.base import exact
from tests.builders import Desk, Direct, a_desk
from tests.nursery import REPOSITORY
from tests.observe import answer, events, statements

Make = Callable[[AsyncSession, Desk], Awaitable[Any]]


async def announced(sessions: SessionMaker) -> list[str]:
    """The types of all events that wait in the outbox, in order."""
    async with sessions() as session:
        return list(await session.scalars(select(OutboxEvent.type).order_by(OutboxEvent.id)))


def a_trade(desk: Desk, **changes: Any) -> dict[str, Any]:
    return desk.trade(**changes).model_dump(exclude_none=True)


async def a_strategy(session: AsyncSession, desk: Desk) -> dict[str, Any]:
    template, _ = await StrategyRepository(session).install_strategy({"name": "trend"})
    return {"bot_id": desk.bot.bot_id, "cat_str_id": template.cat_str_id}


async def plain(value: dict[str, Any]) -> dict[str, Any]:
    return value


CHANGES: dict[str, tuple[Callable[[AsyncSession], BaseRepository[Any]], Make, dict[str, Any], str]] = {
    "bot": (
        BotRepository,
        lambda session, desk: plain({"uid": desk.user.uid, "name": "another"}),
        {"name": "renamed"},
        "bot_id",
    ),
    "symbol": (
        SymbolRepository,
        lambda session, desk: plain({"symbol": "ETH/USDT", "exchange_id": desk.catalog.cat_ex_id, "tick_size": 0.1}),
        {"tick_size": 0.01},
        "id",
    ),
    "trade": (
        TradeRepository,
        lambda session, desk: plain(a_trade(desk, ex_trade_id=None)),
        {"roi": 1.5, "roi_pct": 0.1},
        "trade_id",
    ),
    "bot.strategy": (StrategyRepository, a_strategy, {"leverage": 2}, "str_id"),
    "bot.feeds": (
        FeedRepository,
        lambda session, desk: plain(
            {"bot_id": desk.bot.bot_id, "symbol_id": desk.symbol.symbol_id, "timeframe": "1m"}
        ),
        {"enabled": False},
        "feed_id",
    ),
}


@pytest.mark.parametrize("noun", CHANGES)
async def test_every_change_of_a_row_is_announced(noun: str, desk: Desk, sessions: SessionMaker) -> None:
    repository, make, updates, key = CHANGES[noun]
    before = await announced(sessions)

    async with sessions.begin() as session:
        row = await repository(session).create(await make(session, desk))
    row_id = getattr(row, key)
    async with sessions.begin() as session:
        changed = await repository(session).update(row_id, updates)
        version = changed.row_version
    async with sessions.begin() as session:
        same = await repository(session).update(row_id, updates, expected_version=version)
    async with sessions.begin() as session:
        with pytest.raises(Refusal) as refusal:
            await repository(session).update(row_id, updates, expected_version=version + 1)
        await repository(session).delete(row_id)

    async with sessions() as session:
        assert await repository(session).get_by_id(row_id) is None
        with pytest.raises(Refusal) as missing:
            await repository(session).delete(row_id)
    kinds = [kind for kind in (await announced(sessions))[len(before) :] if kind.startswith(noun)]
    assert len(kinds) == 3
    changes = [change for kind in dict.fromkeys(kinds) for change in await events(sessions, kind)][-3:]
    assert [(change["before"] is None, change["after"] is None) for change in changes] == [
        (True, False),
        (False, False),
        (False, True),
    ]
    assert [change["version"] for change in changes] == [1, 2, 3]
    assert {name: getattr(changed, name) for name in updates} == exact(updates)
    assert same.row_version == 2
    assert refusal.value.code is ErrorCode.CONFLICT
    assert missing.value.code is ErrorCode.NOT_FOUND


@pytest.mark.parametrize(
    ("repository", "method"),
    [
        (OrderRepository, "delete"),
        (SimulationRepository, "update"),
        (SimulationRepository, "delete"),
        (BotLogRepository, "update"),
        (BotLogRepository, "delete"),
        *(
            (repository, method)
            for repository in (TickRepository, AccountRepository)
            for method in ("create", "update", "delete")
        ),
    ],
)
async def test_what_stays_as_it_is_says_so(
    repository: Callable[[AsyncSession], BaseRepository[Any]], method: str, sessions: SessionMaker
) -> None:
    arguments: dict[str, list[Any]] = {"create": [{}], "update": [1, {}], "delete": [1]}
    async with sessions() as session:
        with pytest.raises(Refusal) as refusal:
            await getattr(repository(session), method)(*arguments[method])

    assert refusal.value.code is ErrorCode.CONFLICT


async def test_a_repository_of_ones_own_says_which_events_it_lacks(sessions: SessionMaker) -> None:
    async with sessions() as session:
        for change in (
            BaseRepository(session, Symbol).create({}),
            BaseRepository(session, Symbol).update(1, {}),
            BaseRepository(session, Symbol).delete(1),
        ):
            with pytest.raises(NotImplementedError, match="no event"):
                await change


async def test_an_order_changes_by_its_status(desk: Desk, sessions: SessionMaker) -> None:
    async with sessions.begin() as session:
        orders = OrderRepository(session)
        order = await orders.create(desk.order().model_dump(exclude_none=True))
        moved = await orders.update(order.order_id, {"status": "open", "ex_order_id": "O-1"})
        part = await orders.update(order.order_id, {"filled_size": 0.5})
        with pytest.raises(Refusal) as decided:
            await orders.update(order.order_id, {"price": 2})
        with pytest.raises(Refusal) as impossible:
            await orders.update(order.order_id, {"status": "pending"})

    assert (moved.status, part.ex_order_id, part.filled_size) == ("open", "O-1", Decimal("0.5"))
    assert (decided.value.code, decided.value.field) == (ErrorCode.VALIDATION, "price")
    assert impossible.value.code is ErrorCode.INVALID_TRANSITION
    assert len(await events(sessions, "order.status_changed")) == 2


class TestTheLedger:
    @pytest.mark.parametrize("fact", ["size", "price", "side", "fee", "uid", "ex_trade_id", "order_id"])
    async def test_keeps_its_facts(self, fact: str, desk: Desk, sessions: SessionMaker) -> None:
        async with sessions.begin() as session:
            trade = await TradeRepository(session).create(a_trade(desk))
            with pytest.raises(Refusal) as refusal:
                await TradeRepository(session).update_trade(trade.trade_id, {"roi": 1, fact: 1})

        assert (refusal.value.code, refusal.value.field) == (ErrorCode.VALIDATION, fact)
        assert await events(sessions, "trade.updated") == []

    async def test_lets_a_trade_be_recorded_again_whose_roi_was_computed(
        self, desk: Desk, sessions: SessionMaker
    ) -> None:
        said = a_trade(desk)
        async with sessions.begin() as session:
            trades = TradeRepository(session)
            trade = await trades.create(said)
            await trades.update_trade(trade.trade_id, {"roi": "1.50"})
            again, is_new = await trades.record_trade(said)

        assert (again.trade_id, is_new) == (trade.trade_id, False)
        [change] = await events(sessions, "trade.updated")
        assert change["changed"] == ["roi", "row_version"]
        assert change["after"]["roi"] == "1.50"

    async def test_keeps_what_an_exchange_knows_and_what_fills_an_order(
        self, desk: Desk, sessions: SessionMaker
    ) -> None:
        async with sessions.begin() as session:
            trades, orders = TradeRepository(session), OrderRepository(session)
            known = await trades.create(a_trade(desk))
            order = await orders.create(desk.order().model_dump(exclude_none=True))
            _, filling, _ = await orders.fill_order(order.order_id, 1)
            for trade in (known, filling):
                with pytest.raises(Refusal) as refusal:
                    await trades.delete_trade(trade.trade_id)
                assert refusal.value.code is ErrorCode.CONFLICT

        assert await events(sessions, "trade.deleted") == []

    async def test_lists_the_newest_and_those_without_a_roi(self, desk: Desk, sessions: SessionMaker) -> None:
        start = datetime(2024, 1, 1, tzinfo=UTC)
        async with sessions.begin() as session:
            trades = TradeRepository(session)
            for number, roi in enumerate((None, "1", None)):
                at = start.replace(hour=number)
                await trades.create(a_trade(desk, ex_trade_id=str(number), roi=roi, timestamp=at))
            ex_id = desk.account.ex_id
            last = await trades.get_trades(ex_id, last=True)
            uncalculated = await trades.get_trades(ex_id, uncalculated=True)

        assert [trade.ex_trade_id for trade in last] == ["2"]
        assert [trade.ex_trade_id for trade in uncalculated] == ["2", "0"]


class TestWhatCallersAskFor:
    async def test_dry_margin_is_what_dry_trades_gained(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        assert await answer(sessions, GetDryMargin(bot_id=desk.bot.bot_id)) == 0
        for roi in ("10.10", "-0.000000000000000001", None):
            await direct.call(desk.dry_trade(roi=roi))

        margin = await answer(sessions, GetDryMargin(bot_id=desk.bot.bot_id))

        assert margin == Decimal("10.099999999999999999")
        async with sessions() as session:
            assert await BotRepository(session).get_dry_margin(desk.bot.bot_id) == margin

    async def test_active_bots_are_summed_up_in_one_query(
        self, direct: Direct, desk: Desk, sessions: SessionMaker, engine: AsyncEngine
    ) -> None:
        other = await a_desk(direct)
        for uid, name in ((desk.user.uid, "one"), (other.user.uid, "two"), (desk.user.uid, "three")):
            await direct.call(AddBot(uid=uid, name=name, active=True, dry_run=True))
        async with sessions.begin() as session:
            await BotRepository(session).edit_bot(desk.bot.bot_id, {"active": True, "dry_run": True})
        await direct.call(desk.order())
        await direct.call(desk.trade(roi="2"))
        await direct.call(desk.trade(roi="3"))
        await direct.call(desk.trade(roi="100", timestamp="2019-01-01T00:00:00Z"))

        with statements(engine) as sent:
            async with sessions() as session:
                summary = await BotRepository(session).get_active_bots_summary(desk.user.uid)
        async with sessions() as session:
            everybody = await BotRepository(session).get_active_bots_summary()

        assert [bot["name"] for bot in summary] == ["bot", "one", "three"]
        assert (summary[0]["open_orders"], summary[0]["total_trades"], summary[0]["total_roi"]) == (1, 2, 5)
        assert summary[0]["last_trade"] is not None
        assert (summary[1]["total_trades"], summary[1]["total_roi"], summary[1]["last_trade"]) == (0, 0, None)
        assert [bot["name"] for bot in everybody] == ["bot", "one", "two", "three"]
        assert len(sent) == 1

    async def test_feeds_are_found_by_what_they_are(self, direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
        bot_id, symbol_id = desk.bot.bot_id, desk.symbol.symbol_id
        feed = await direct.call(AddFeedToBot(bot_id=bot_id, symbol_id=symbol_id, timeframe="1m"))

        async with sessions() as session:
            bots = BotRepository(session)
            assert await bots.get_feed_id(bot_id, symbol_id, "1m") == feed.feed_id
            assert await bots.get_feed_id(bot_id, symbol_id, "5m") is None
            assert await bots.get_feed_id(bot_id, symbol_id, "1m", str_id=1) is None

    async def test_decimals_are_eight_unless_known(self, desk: Desk, sessions: SessionMaker) -> None:
        async with sessions.begin() as session:
            symbols = SymbolRepository(session)
            await symbols.update_symbol(desk.symbol.symbol_id, {"decimals": 3})
            known = await symbols.get_symbol_decimals(desk.symbol.symbol, desk.catalog.cat_ex_id)
            unknown = await symbols.get_symbol_decimals("NO/SUCH", desk.catalog.cat_ex_id)
            gone = await symbols.remove_symbol(desk.symbol.symbol_id)

        assert (known, unknown) == (3, 8)
        assert gone.symbol == desk.symbol.symbol

    async def test_orders_of_everybody_come_by_page(self, direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
        other = await a_desk(direct)
        placed = [(await direct.call(place.order())).order_id for place in (desk, other, desk)]

        async with sessions() as session:
            orders = await OrderRepository(session).get_all_orders(limit=2)

        assert [order.order_id for order in orders] == placed[:0:-1]


async def test_no_relationship_loads_by_itself(desk: Desk, sessions: SessionMaker) -> None:
    for mapper in Base.registry.mappers:
        for relationship in mapper.relationships:
            assert relationship.lazy == "raise", relationship
    named = {
        service.User: {
            "exchanges",
            "bots",
            "orders",
            "trades",
            "dry_trades",
            "exchange_history",
            "manager_user",
            "managed_users",
        },
        service.Bot: {
            "user",
            "strategies",
            "bot_exchanges",
            "logs",
            "simulations",
            "orders",
            "dry_trades",
            "feeds",
        },
        service.Exchange: {
            "user",
            "cat_exchange",
            "bot_exchanges",
            "orders",
            "trades",
            "balances",
            "history",
        },
        service.Symbol: {"cat_exchange", "orders", "trades", "ticks"},
    }
    async with sessions() as session:
        for model, names in named.items():
            assert names <= set(inspect(model).relationships.keys())
            loads = [selectinload(getattr(model, name)) for name in names]
            row = (await session.scalars(select(model).options(*loads).limit(1))).one()
            for name in names:
                getattr(row, name)


class TestSettings:
    @pytest.fixture(autouse=True)
    def alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("DATABASE_URL", "RABBITMQ_URL", "REDIS_URL"):
            monkeypatch.delenv(name, raising=False)

    def test_of_a_program_need_a_database_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://localhost/fullon")

        settings = LibrarySettings.read()

        assert settings.redis_url.get_secret_value() == "redis://localhost:6379/0"
        with pytest.raises(SettingsError, match="REDIS_URL: is not set; RABBITMQ_URL: is not set"):
            Settings.read()

    def test_of_the_cache_come_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DB_NAME", "fullon")
        monkeypatch.setenv("CACHE_PORT", "6380")
        monkeypatch.setenv("CACHE_DB", "1")
        monkeypatch.setenv("CACHE_PASSWORD", "p@ss")

        settings = LibrarySettings.read()

        assert settings.redis_url.get_secret_value() == "redis://:p%40ss@localhost:6380/1"
        assert settings.database_url.get_secret_value() == "postgresql://localhost/fullon"

    def test_are_not_needed_to_import_the_library(self) -> None:
        program = "from service import *; import service; print(len(service.__all__))"
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=REPOSITORY,
            env={"PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )

        assert done.stderr == ""
        assert int(done.stdout) == len(service.__all__)


class HTTPError(Exception):
    """As FastAPI's: what the caller of the endpoint gets."""

    def __init__(self, status_code: int, detail: str) -> None:
        super().__init__(detail)
        self.status_code = status_code


class Application:
    """As FastAPI's, as far as the endpoints can be called as they are."""

    def post(self, _: str) -> Callable[[Any], Any]:
        return lambda endpoint: endpoint

    get = post


class TestTheWebExample:
    """The README's code, as it stands there; FastAPI is no dependency, so what it gives is stood in for."""

    @pytest.fixture
    async def endpoints(
        self, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[dict[str, Any]]:
        monkeypatch.setenv("DATABASE_URL", database_url)
        monkeypatch.setenv("REDIS_URL", redis_url)
        framework = ModuleType("fastapi")
        framework.__dict__.update(FastAPI=Application, HTTPException=HTTPError)
        monkeypatch.setitem(sys.modules, "fastapi", framework)
        [example] = re.findall(
            r"^```python\n((?:(?!^```).)*?FastAPI\(\).*?)^```",
            (REPOSITORY / "README.md").read_text(),
            flags=re.MULTILINE | re.DOTALL,
        )
        names: dict[str, Any] = {}
        exec(example, names)  # noqa: S102 - it is ours
        yield names
        await cache_manager.close()
        await dispose_engine()

    async def test_stores_what_is_right(self, endpoints: dict[str, Any]) -> None:
        made = await endpoints["create_user"]({"mail": "ada@example.org", "name": "Ada", "role": "ADMIN"})

        user = made["user"]
        assert (user["mail"], user["role"], "password" in user) == ("ada@example.org", "ADMIN", False)
        assert await endpoints["get_user_bots"](user["uid"]) == {"user_id": user["uid"], "bots": []}

    async def test_answers_400_with_field_and_reason_for_what_is_wrong(self, endpoints: dict[str, Any]) -> None:
        await endpoints["create_user"]({"mail": "ada@example.org"})
        cases: list[tuple[dict[str, Any], str]] = [
            ({}, "mail: is required"),
            ({"mail": None}, "mail: is required"),
            ({"mail": "not a mail"}, "mail: String should match pattern"),
            ({"mail": "ADA@example.org"}, "mail: is taken by another user"),
            ({"mail": 5}, "mail: Input should be a valid string"),
            ({"mail": "b@c.d", "nonsense": 1}, "nonsense: is no column that can be set"),
            ({"mail": "b@c.d", "bots": []}, "bots: is no column that can be set"),
            ({"mail": "b@c.d", "uid": 1}, "uid: is no column that can be set"),
            ({"mail": "b@c.d", "row_version": -5}, "row_version: is no column that can be set"),
            ({"mail": "b@c.d", "password": "hunter2"}, "password: must be hashed already"),
            ({"mail": "b@c.d", "role": "KING"}, "role: must be ADMIN or USER"),
            ({"mail": "b@c.d", "name": "x" * 100_000}, "name: String should have at most 50 characters"),
            ({"mail": "b@c.d", "name": "a\0b"}, "name: holds a NUL character"),
            ({"mail": "b@c.d", "note": "\ud800"}, "note: "),
            ({"mail": "b@c.d", "active": "maybe"}, "active: Input should be a valid boolean"),
            ({"mail": "b@c.d", "manager": "x"}, "manager: Input should be a valid integer"),
            ({"mail": "b@c.d", "manager": 2**31}, "manager: Input should be less than"),
            ({"mail": "b@c.d", "manager": 999}, "manager: there is no such user"),
            ({"mail": "b@c.d", "timestamp": "yesterday"}, "timestamp: "),
        ]
        for data, says in cases:
            with pytest.raises(HTTPError, match=f"^{re.escape(says)}") as answer:
                await endpoints["create_user"](data)

            assert answer.value.status_code == 400

    async def test_answers_400_for_a_user_who_cannot_be(self, endpoints: dict[str, Any]) -> None:
        for uid in (2**31, 2**40, -(2**40), 2**70):
            with pytest.raises(HTTPError, match="out of range or of another type") as answer:
                await endpoints["get_user_bots"](uid)

            assert answer.value.status_code == 400
