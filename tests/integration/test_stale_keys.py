"""Whatever is written, its events name every cached answer that is another one now."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from contracts import (
    GetActiveExchanges,
    GetAllSymbols,
    GetBotsByUser,
    GetBotWithDetails,
    GetCatStrategies,
    GetDecimals,
    GetExchangeCatalog,
    GetExchangeParams,
    GetExchangesByUser,
    GetSymbol,
    GetSymbolById,
    GetSymbolsByExchange,
    GetTradingCurrency,
    GetUser,
    GetUserId,
    GetUserTradingSummary,
)
from contracts.base import COMMAND_TYPES, Lookup, answer_adapter
from contracts.client import new_message_id
from contracts.key_spec import spec_of
from service.database import SessionMaker
from service.executor import Executor
from service.lookups import ANSWERS
from service.models import (
    Bot,
    CatExchange,
    CatStrategy,
    Exchange,
    Order,
    OutboxEvent,
    Strategy,
    Symbol,
    User,
)
from service.received import Received
from service.unit_of_work import UnitOfWork
from service.vault import Vault
from tests.builders import Direct, received, sealed, with_credentials
from tests.cases import HASH, STORE_NOTHING, Scene, a_scene, commands
from tests.fresh import taken_back
from tests.observe import statements

Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(frozen=True)
class Known:
    """What there is to name at one moment."""

    mails: dict[str, int]
    bots: list[int]
    accounts: dict[int, int]
    """Owners by account."""
    catalogs: list[int]
    symbols: dict[int, tuple[str, int]]
    """Name and catalog exchange by id."""
    strategies: list[int]
    templates: dict[str, int]
    orders: list[int]

    @property
    def uids(self) -> list[int]:
        return list(self.mails.values())


async def what_is_known(session: AsyncSession) -> Known:
    async def rows(*columns: Any) -> list[Any]:
        return [tuple(row) for row in await session.execute(select(*columns).order_by(columns[0]))]

    return Known(
        mails=dict(await rows(func.lower(User.mail), User.uid)),
        bots=[bot_id for (bot_id,) in await rows(Bot.bot_id)],
        accounts=dict(await rows(Exchange.ex_id, Exchange.uid)),
        catalogs=[cat_ex_id for (cat_ex_id,) in await rows(CatExchange.cat_ex_id)],
        symbols={
            symbol_id: (name, cat)
            for symbol_id, name, cat in await rows(Symbol.id, Symbol.symbol, Symbol.exchange_id)
        },
        strategies=[str_id for (str_id,) in await rows(Strategy.str_id)],
        templates=dict(await rows(CatStrategy.name, CatStrategy.cat_str_id)),
        orders=[order_id for (order_id,) in await rows(Order.order_id)],
    )


# Every question whose answer is cached, about everything it can be asked about.
CACHED: Final[Mapping[type[Lookup[Any]], Callable[[Known], Iterable[Lookup[Any]]]]] = {
    GetUser: lambda k: (GetUser(uid=uid) for uid in k.uids),
    GetUserId: lambda k: (GetUserId(mail=mail) for mail in k.mails),
    GetUserTradingSummary: lambda k: (GetUserTradingSummary(uid=uid) for uid in k.uids),
    GetBotsByUser: lambda k: (GetBotsByUser(uid=uid) for uid in k.uids),
    GetBotWithDetails: lambda k: (GetBotWithDetails(bot_id=bot_id) for bot_id in k.bots),
    GetTradingCurrency: lambda k: (
        GetTradingCurrency(bot_id=bot_id, ex_id=ex_id) for bot_id in k.bots for ex_id in k.accounts
    ),
    GetExchangesByUser: lambda k: (GetExchangesByUser(uid=uid) for uid in k.uids),
    GetExchangeParams: lambda k: (GetExchangeParams(ex_id=ex_id) for ex_id in k.accounts),
    GetActiveExchanges: lambda k: (GetActiveExchanges(),),
    GetExchangeCatalog: lambda k: (GetExchangeCatalog(),),
    GetCatStrategies: lambda k: (GetCatStrategies(),),
    GetSymbol: lambda k: (GetSymbol(symbol=name, cat_ex_id=cat) for name, cat in k.symbols.values()),
    GetSymbolById: lambda k: (GetSymbolById(symbol_id=symbol_id) for symbol_id in k.symbols),
    GetDecimals: lambda k: (GetDecimals(symbol_id=symbol_id) for symbol_id in k.symbols),
    GetSymbolsByExchange: lambda k: (GetSymbolsByExchange(cat_ex_id=cat) for cat in k.catalogs),
    GetAllSymbols: lambda k: (GetAllSymbols(),),
}
# An hour old at most, and not dropped by every trade: only what it says of user and bots has to be fresh.
_NOT_KEPT_FRESH: Final = ("generated_at", "total_trades", "total_volume", "recent_trades_count", "recent_volume")

Snapshot = dict[str, tuple[type[Lookup[Any]], Any]]


async def snapshot(session: AsyncSession, known: Known) -> Snapshot:
    """What a cache would hold under every key, were it filled now."""
    found: Snapshot = {}
    for kind, questions in CACHED.items():
        entry = ANSWERS[kind]
        assert entry.key is not None
        assert entry.load is not None
        for lookup in questions(known):
            key = entry.key(lookup)
            assert key is not None
            answer = json.loads(answer_adapter(kind).dump_json(await entry.load(lookup, UnitOfWork(session))))
            if kind is GetUserTradingSummary and answer is not None:
                answer = {name: value for name, value in answer.items() if name not in _NOT_KEPT_FRESH}
            found[key] = (kind, answer)
    return found


def changed(before: Snapshot, after: Snapshot) -> set[str]:
    """Keys under which another answer belongs now; what was not known of before was absent."""
    absent: tuple[Any, ...] = (None, [])
    keys = set()
    for key in before.keys() | after.keys():
        old = before[key][1] if key in before else None
        new = after[key][1] if key in after else None
        if old != new and not (old in absent and new in absent):
            keys.add(key)
    return keys


_NAMES: Final = st.sampled_from(["one", "two", "three"])
_SYMBOLS: Final = st.sampled_from(["A/B", "BTC/USDT:USDT", "SPARE/USD", "XRP/ETH"])
_MAILS: Final = st.sampled_from(["one@example.org", "TWO@example.org", "nobody@example.org", "Nobody@Example.org"])
_FLAGS: Final = st.booleans()
_NOW: Final = "2026-01-01T00:00:00Z"


class Writes:
    """A random body for each command, about what there is, and sometimes about what there is not."""

    def __init__(self, draw: Draw, known: Known, vault: Vault) -> None:
        self._draw = draw
        self._known = known
        self._vault = vault

    def one_of(self, ids: Iterable[int]) -> int:
        found: int = self._draw(st.sampled_from([*ids, 999]))
        return found

    def some(self, fields: dict[str, Any]) -> dict[str, Any]:
        """At least one of these fields."""
        names = self._draw(st.sets(st.sampled_from(sorted(fields)), min_size=1))
        return {name: fields[name] for name in sorted(names)}

    def body(self, name: str) -> dict[str, Any]:
        """Of the command of that name."""
        known, draw = self._known, self._draw
        uid, bot_id, ex_id = self.one_of(known.uids), self.one_of(known.bots), self.one_of(known.accounts)
        cat_ex_id, symbol_id = self.one_of(known.catalogs), self.one_of(known.symbols)
        str_id, order_id = self.one_of(known.strategies), self.one_of(known.orders)
        cat_str_id = self.one_of(known.templates.values())
        flag, word = draw(_FLAGS), draw(_NAMES)
        symbol = {"symbol": draw(_SYMBOLS), "decimals": draw(st.integers(0, 3))}
        feed = {"symbol_id": symbol_id, "timeframe": draw(st.sampled_from(["1m", "1h"])), "enabled": flag}
        feed |= {"ex_id": ex_id if draw(_FLAGS) else None, "str_id": str_id if draw(_FLAGS) else None}
        owner = known.accounts.get(ex_id, uid)
        parties = {"bot_id": bot_id, "uid": owner, "ex_id": ex_id, "symbol_id": symbol_id, "side": "buy", "size": "1"}
        key = sealed(self._vault, "s", uid=owner, field="api_key") if flag else None
        user = {"mail": draw(_MAILS), "name": word, "active": flag}
        bot = {"name": word, "active": flag, "dry_run": draw(_FLAGS)}
        setup = {"user": user, "exchange": {"cat_ex_id": cat_ex_id, "ex_name": word}, "bot": bot}
        bodies: dict[str, dict[str, Any]] = {
            "add_user": {**user, "manager": uid},
            "modify_user": {"uid": uid, "updates": self.some({**user, "manager": self.one_of(known.uids)})},
            "update_password": {"uid": uid, "password_hash": HASH + word},
            "set_user_active": {"uid": uid, "active": flag},
            "toggle_active": {"uid": uid, "active": flag},
            "delete_user": {"uid": uid, "force": flag},
            "add_bot": {**bot, "uid": uid},
            "edit_bot": {"bot_id": bot_id, "updates": self.some({**bot, "uid": uid})},
            "delete_bot": {"bot_id": bot_id, "force": flag},
            "add_exchange_to_bot": {"bot_id": bot_id, "ex_id": ex_id, "trading_currency": word},
            "remove_exchange_from_bot": {"bot_id": bot_id, "ex_id": ex_id},
            "add_feed_to_bot": {**feed, "bot_id": bot_id},
            "edit_feeds": {"bot_id": bot_id, "feeds": [feed] if flag else []},
            "save_bot_log": {"bot_id": bot_id, "message": word},
            "save_bot_logs": {"logs": [{"bot_id": bot_id, "message": word}] * 2},
            "save_simulation": {
                "bot_id": bot_id,
                "name": word,
                "start_date": _NOW,
                "end_date": _NOW,
                "total_trades": 1,
                "initial_balance": "1",
                "final_balance": "2",
            },
            "install_exchange": {"name": word},
            "add_exchange": {"uid": owner, "cat_ex_id": cat_ex_id, "ex_name": word, "api_key": key, "active": flag},
            "update_exchange": {
                "ex_id": ex_id,
                "updates": self.some({"uid": uid, "ex_name": word, "active": flag, "api_key": key, "sandbox": flag}),
            },
            "delete_exchange": {"ex_id": ex_id, "force": flag},
            "set_exchange_params": {
                **({"ex_id": ex_id} if draw(_FLAGS) else {"cat_ex_id": cat_ex_id}),
                "params": {word: draw(st.sampled_from(["1", "2", None]))},
            },
            "add_symbol": {**symbol, "cat_ex_id": cat_ex_id},
            "add_symbols": {"symbols": [{**symbol, "cat_ex_id": each} for each in (cat_ex_id, known.catalogs[0])]},
            "update_symbol": {"symbol_id": symbol_id, "updates": self.some({**symbol, "cat_ex_id": cat_ex_id})},
            "delete_symbol": {"symbol_id": symbol_id},
            "sync_exchange_symbols": {"ex_id": ex_id, "symbols": [symbol, {"symbol": "NEW/USD"}]},
            "create_order": {**parties, "order_type": "market"},
            "update_order_status": {"order_id": order_id, "status": draw(st.sampled_from(["open", "cancelled"]))},
            "fill_order": {"order_id": order_id, "price": "1"},
            "cancel_open_orders": {"bot_id": bot_id},
            "claim_pending_orders": {"worker": word},
            "record_trade": {**parties, "price": "1", "ex_trade_id": word},
            "record_trades": {"trades": [{**parties, "price": "1"}] * 2},
            "record_dry_trade": {**parties, "price": "1"},
            "delete_dry_trades": {"bot_id": bot_id},
            "upsert_balances": {
                "ex_id": ex_id,
                "timestamp": _NOW,
                "balances": [{"currency": "BTC", "free": "1", "used": "0"}],
            },
            "upsert_positions": {
                "ex_id": ex_id,
                "timestamp": _NOW,
                "positions": [{"symbol_id": symbol_id, "volume": "1", "bot_id": bot_id}],
            },
            "record_ticks": {"ticks": [{"symbol_id": symbol_id, "price": "1", "timestamp": _NOW}]},
            "install_strategy": {"name": word, "params": {"a": draw(_NAMES)}, "pairs": flag},
            "add_bot_strategy": {"bot_id": bot_id, "cat_str_id": cat_str_id, "params": {"b": word}},
            "edit_strategy": {
                "str_id": str_id,
                "updates": self.some({"leverage": "2", "name": word, "active": flag}),
            },
            "edit_strategy_params": {"str_id": str_id, "params": {"b": word if flag else None}},
            "del_bot_strategy": {"bot_id": bot_id, **({"str_id": str_id} if flag else {})},
            "del_cat_strategy": {"cat_str_id": cat_str_id},
            "create_trading_setup": setup,
        }
        return bodies[name]


NAMES: Final = sorted(set(COMMAND_TYPES) - STORE_NOTHING)
_FEW: Final = settings(max_examples=max(settings().max_examples // 5, 1))


@pytest.fixture
async def scene(direct: Direct, vault: Vault) -> Scene:
    """Two desks, with credentials, so that bots can go live."""
    scene = await a_scene(direct, vault)
    await with_credentials(direct, vault, scene.own.account)
    return scene


def test_every_cached_lookup_is_asked() -> None:
    assert set(CACHED) == {kind for kind, answer in ANSWERS.items() if answer.key is not None}


async def _since(sessions: SessionMaker, last: int) -> tuple[set[str], int]:
    async with sessions() as session:
        rows = list(await session.scalars(select(OutboxEvent).where(OutboxEvent.id > last)))
    return {key for row in rows for key in row.stale_keys}, max((row.id for row in rows), default=last)


class Observed:
    """The database, and what a cache filled before each write would hold."""

    def __init__(self, sessions: SessionMaker, vault: Vault) -> None:
        self._sessions = sessions
        self._executor = Executor(sessions)
        self._vault = vault
        self._last = 0

    async def begin(self) -> None:
        _, self._last = await _since(self._sessions, 0)
        await self._look()

    async def _look(self) -> None:
        async with self._sessions() as session:
            self._known = await what_is_known(session)
            self._snapshot = await snapshot(session, self._known)

    def random_batch(self, names: list[str], draw: Draw) -> list[Received]:
        """Commands of these names about what there is now."""
        writes = Writes(draw, self._known, self._vault)
        return [
            Received(name, json.dumps(writes.body(name)).encode(), message_id=str(new_message_id())) for name in names
        ]

    async def carry_out(self, batch: list[Received]) -> set[str]:
        """Keys of answers that are others once ``batch`` was carried out; fails if an event does not name one."""
        before = self._snapshot
        await self._executor.execute(batch)
        await self._look()
        stale, self._last = await _since(self._sessions, self._last)
        wrong = changed(before, self._snapshot)
        assert wrong <= stale, ([(message.command, message.body) for message in batch], wrong - stale)
        return wrong


@_FEW
@given(data=st.data())
async def test_no_write_leaves_a_wrong_answer_unnamed(engine: AsyncEngine, scene: Scene, data: st.DataObject) -> None:
    async with taken_back(engine, scene.vault) as sessions:
        observed = Observed(sessions, scene.vault)
        await observed.begin()
        for _ in range(data.draw(st.integers(1, 6))):
            names = data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3))
            await observed.carry_out(observed.random_batch(names, data.draw))


async def test_every_good_write_names_what_it_changes(engine: AsyncEngine, scene: Scene) -> None:
    changes_nothing_cached = set()
    for name, command in commands(scene).items():
        async with taken_back(engine, scene.vault) as sessions:
            observed = Observed(sessions, scene.vault)
            await observed.begin()
            if not await observed.carry_out([received(command)]):
                changes_nothing_cached.add(name)

    assert changes_nothing_cached == {
        *("cancel_open_orders", "claim_pending_orders", "create_order", "delete_dry_trades", "fill_order"),
        *("record_dry_trade", "record_ticks", "record_trade", "record_trades", "save_bot_log", "save_bot_logs"),
        *("save_simulation", "update_order_status", "upsert_balances", "upsert_positions"),
    }


# Which events tell of a change of a row in each table that a cached answer is made of.
_EVENTS_OF: Final[Mapping[str, frozenset[str]]] = {
    "users": frozenset({"user.created", "user.updated", "user.deleted"}),
    "bots": frozenset({"bot.created", "bot.updated", "bot.deleted"}),
    "bot_exchanges": frozenset({"bot.exchange_added", "bot.exchange_removed"}),
    "strategies": frozenset({"bot.strategy_changed"}),
    "strategy_params": frozenset({"bot.strategy_changed"}),
    "feeds": frozenset({"bot.feeds_changed"}),
    "cat_strategies": frozenset({"strategy.catalog_changed"}),
    "cat_strategy_params": frozenset({"strategy.catalog_changed"}),
    "exchanges": frozenset({"exchange.created", "exchange.updated", "exchange.deleted"}),
    "exchange_params": frozenset({"exchange.params_changed"}),
    "cat_exchange_params": frozenset({"exchange.params_changed"}),
    "cat_exchanges": frozenset({"catalog.exchange_installed"}),
    "symbols": frozenset({"symbol.created", "symbol.updated", "symbol.deleted", "symbols.changed"}),
}
_TABLES: Final = re.compile(r"\b(?:FROM|JOIN)\s+(?:LATERAL\s+)?([a-z_]+)", re.IGNORECASE)


async def test_what_is_cached_names_the_events_of_every_table_it_is_made_of(
    engine: AsyncEngine, sessions: SessionMaker, scene: Scene
) -> None:
    unnamed = set()
    async with sessions() as session:
        known = await what_is_known(session)
        for kind, questions in CACHED.items():
            entry = ANSWERS[kind]
            assert entry.key is not None
            assert entry.load is not None
            for lookup in questions(known):
                spec = spec_of(entry.key(lookup) or "")
                named = frozenset(event for on in spec.stale_on for event in on.events)
                with statements(engine) as sent:
                    await entry.load(lookup, UnitOfWork(session))
                tables = {table for statement in sent for table in _TABLES.findall(statement)}
                if kind is GetUserTradingSummary:
                    tables -= {"trades", "trade_totals"}  # an hour old at most
                for table in tables:
                    if not (_EVENTS_OF.get(table) or {"none is known"}) <= named:
                        unnamed.add((spec.template, table))

    assert unnamed == set()
