"""A good message of every kind, for tests that are about all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from contracts import (
    AddBot,
    AddBotStrategy,
    AddExchange,
    AddExchangeToBot,
    AddFeedToBot,
    AddSymbol,
    AddSymbols,
    AddUser,
    BotUpdates,
    BotView,
    CancelOpenOrders,
    CatStrategyView,
    ClaimPendingOrders,
    CreateOrder,
    CreateTradingSetup,
    DelBotStrategy,
    DelCatStrategy,
    DeleteBot,
    DeleteDryTrades,
    DeleteExchange,
    DeleteSymbol,
    DeleteUser,
    EditBot,
    EditFeeds,
    EditStrategy,
    EditStrategyParams,
    ExchangeView,
    FillOrder,
    GetBalances,
    GetBot,
    GetBotExchanges,
    GetBotFeeds,
    GetBotStrategies,
    GetCatStrategy,
    GetDryTrades,
    GetExchange,
    GetExchangeCatalog,
    GetExchangeParams,
    GetLastActions,
    GetLastBotLog,
    GetLastDryTrade,
    GetOrder,
    GetPositions,
    GetStrategy,
    GetSymbolById,
    GetSymbolsByExchange,
    GetTicks,
    GetTrade,
    GetTradesByUser,
    GetUser,
    GetUserCredentials,
    GetUserWithBots,
    InstallExchange,
    InstallStrategy,
    LoadSimulation,
    ModifyUser,
    OrderView,
    RecordDryTrade,
    RecordTicks,
    RecordTrade,
    RecordTrades,
    RemoveExchangeFromBot,
    SaveBotLog,
    SaveBotLogs,
    SaveSimulation,
    SetExchangeParams,
    SetUserActive,
    SimulationSummary,
    StrategyView,
    SymbolView,
    SyncExchangeSymbols,
    ToggleActive,
    TradeView,
    UpdateExchange,
    UpdateOrderStatus,
    UpdatePassword,
    UpdateSymbol,
    UpsertBalances,
    UpsertPositions,
    UserView,
    new_key_pair,
)
from contracts.base import COMMAND_TYPES, Command, Lookup
from service.vault import Vault
from tests.builders import Desk, Direct, a_desk, furnish, sealed

STORE_NOTHING: Final = frozenset({"invalidate_cache", "run_cleanup", "warm_cache"})
"""Commands about caches and retention, after which no lookup answers anything new."""

# Amounts that a double does not hold: the smallest one, the longest one, and a tenth.
TINY, LONG, TENTH = "0.000000000000000001", "12345678901234567890.123456789012345678", "0.1"
HASH: Final = "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHRzb21lc2FsdA$RdescudvJCsgt3ub"
_PRIVATE, PUBLIC = new_key_pair()


@dataclass(frozen=True, repr=False)
class Scene:
    """Two desks and something of each kind that a message can name."""

    own: Desk
    other: Desk
    user: UserView
    """Has nothing."""
    bot: BotView
    """The own user's, with nothing attached."""
    account: ExchangeView
    """The own user's, which no bot uses."""
    symbol: SymbolView
    """Listed on the own exchange, and nothing is about it."""
    template: CatStrategyView
    """In the catalog, and no bot runs it."""
    strategy: StrategyView
    """The own bot runs it."""
    pending: OrderView
    trade: TradeView
    simulation: SimulationSummary
    vault: Vault

    def named(self) -> dict[str, Any]:
        """What a field of this name may hold."""
        return {
            "uid": self.own.user.uid,
            "manager_id": self.own.user.uid,
            "bot_id": self.own.bot.bot_id,
            "bot_ids": [self.own.bot.bot_id, self.other.bot.bot_id],
            "ex_id": self.own.account.ex_id,
            "cat_ex_id": self.own.catalog.cat_ex_id,
            "exchange_name": self.own.catalog.name,
            "symbol_id": self.own.symbol.symbol_id,
            "symbol": self.own.symbol.symbol,
            "str_id": self.strategy.str_id,
            "cat_str_id": self.template.cat_str_id,
            "order_id": self.pending.order_id,
            "trade_id": self.trade.trade_id,
            "simulation_id": self.simulation.simulation_id,
            "mail": self.own.user.mail,
            "name": self.template.name,
            "query": "a",
            "currency": "ETH",
            "status": "pending",
            "level": "INFO",
            "start_date": "2024-01-01T00:00:00Z",
            "end_date": "2027-01-01T00:00:00Z",
            "public_key": PUBLIC,
        }


async def a_scene(direct: Direct, vault: Vault) -> Scene:
    """Everything that messages can be about."""
    own, other = await a_desk(direct), await a_desk(direct)
    uid, cat_ex_id = own.user.uid, own.catalog.cat_ex_id
    await furnish(direct, own)
    strategy_of_own = await direct.call(InstallStrategy(name="of the scene", params={"period": "14"}))
    return Scene(
        own=own,
        other=other,
        user=await direct.call(AddUser(mail="nobody@example.org")),
        bot=await direct.call(AddBot(uid=uid, name="spare")),
        account=await direct.call(AddExchange(uid=uid, cat_ex_id=cat_ex_id, ex_name="spare")),
        symbol=await direct.call(AddSymbol(symbol="SPARE/USD", cat_ex_id=cat_ex_id)),
        template=await direct.call(InstallStrategy(name="template", params={"a": "1"})),
        strategy=await direct.call(
            AddBotStrategy(bot_id=own.bot.bot_id, cat_str_id=strategy_of_own.cat_str_id, params={"b": "2"})
        ),
        pending=await direct.call(own.order(size=LONG)),
        trade=await direct.call(own.trade()),
        simulation=await direct.call(own.simulation(name="of the scene")),
        vault=vault,
    )


def a_lookup(kind: type[Lookup[Any]], scene: Scene) -> Lookup[Any]:
    """A question of this kind about the scene, narrowed down in every way it can be; fails for an unknown field."""
    known = scene.named()
    for name, field in kind.model_fields.items():
        if field.is_required() and name not in known:
            raise LookupError(f"tests/cases.py has no value for {name} of {kind.wire_name}")
    return kind.model_validate({name: known[name] for name in kind.model_fields if name in known})


def _same(body: dict[str, Any]) -> Any:
    return body


@dataclass(frozen=True)
class Case:
    """A command, where one reads what became of it, and what should stand there."""

    send: Callable[[Scene], Command[Any]]
    ask: Callable[[Scene, Any], Lookup[Any]]
    """Given the answer to the command."""
    pick: Callable[[Any], Any] = _same
    """The part of the lookup's answer, as JSON, that the command is about."""
    expected: Callable[[dict[str, Any]], Any] = _same
    """What should be found, made of the body that was sent."""


def _without(*names: str, **more: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda body: {name: value for name, value in body.items() if name not in names} | more


def _part(name: str) -> Callable[[Any], Any]:
    return lambda whole: whole[name]


def _nothing(_: Any) -> None:
    return None


_EMPTY: Final[Callable[[Any], list[Any]]] = lambda _: []  # noqa: E731

_SYMBOL: Final = {
    "ticker": "BTCUSDT",
    "base": "BTC",
    "quote": "USDT",
    "decimals": 18,
    "tick_size": TINY,
    "step_size": TENTH,
    "min_size": "1.50",
    "max_size": LONG,
    "status": "halted",
    "updateframe": "15m",
    "backtest": True,
    "futures": True,
    "only_ticker": True,
}
_STRATEGY: Final = {
    "take_profit": "5.50",
    "stop_loss": TINY,
    "trailing_stop": "0",
    "timeout": 3_600,
    "pre_load_bars": 32_767,
    "pairs": True,
}
_EXECUTION: Final = {
    "size": LONG,
    "price": TINY,
    "fee": "-0.00010",
    "fee_currency": "USDT",
    "leverage": "12.5",
    "roi": "-1.0",
    "roi_pct": LONG,
    "timestamp": "2024-02-29T23:59:59.999999Z",
}
_LOG: Final = {
    "message": "naïve 🚀 ' \" \\ \n",
    "level": "ERROR",
    "action": "ENTRY",
    "timestamp": "2030-01-01T00:00:00.000001Z",
    "feed_num": 32_767,
    "ex_id": 5,
    "symbol": "BTC/USDT:USDT",
    "position": f"-{LONG}",
    "data": {"a": [1, 2.5, None, {"b": "c"}], "": True},
}
_MORE_OF_A_USER: Final = {
    "role": "ADMIN",
    "name": "Ada",
    "lastname": "Lovelace",
    "phone": "+44 20 7946 0000",
    "id_num": "ID-1",
    "note": "naïve\n🚀",
    "external_id": "EXT-7",
    "active": False,
}
_KEYS: Final = ("api_key", "api_secret", "passphrase")


def _keys(scene: Scene) -> dict[str, str]:
    return {field: sealed(scene.vault, "s", uid=scene.own.user.uid, field=field) for field in _KEYS}


def _parties(desk: Desk) -> dict[str, Any]:
    names = ("bot_id", "uid", "ex_id", "symbol_id", "side")
    return {name: value for name, value in desk.trade().model_dump().items() if name in names}


def _feeds(scene: Scene) -> list[dict[str, Any]]:
    symbols = (scene.symbol.symbol_id, scene.own.symbol.symbol_id)
    return [
        {"symbol_id": symbol_id, "timeframe": frame, "enabled": False, "order": 7 - place, "str_id": None}
        for place, (symbol_id, frame) in enumerate(zip(symbols, ("1m", "tick"), strict=True))
    ]


CASES: Final[dict[type[Command[Any]], Case]] = {
    AddUser: Case(
        lambda s: AddUser.model_validate(
            {**_MORE_OF_A_USER, "mail": "Ada@example.org", "password_hash": HASH, "manager": s.user.uid}
        ),
        lambda s, user: GetUser(uid=user.uid),
        expected=_without("password_hash"),
    ),
    ModifyUser: Case(
        lambda s: ModifyUser.model_validate(
            {"uid": s.user.uid, "updates": {**_MORE_OF_A_USER, "mail": "New@example.org", "manager": 1}}
        ),
        lambda s, user: GetUser(uid=user.uid),
        expected=_part("updates"),
    ),
    UpdatePassword: Case(
        lambda s: UpdatePassword(uid=s.user.uid, password_hash=HASH),
        lambda s, _: GetUserCredentials(mail=s.user.mail),
    ),
    SetUserActive: Case(lambda s: SetUserActive(uid=s.user.uid, active=False), lambda s, _: GetUser(uid=s.user.uid)),
    ToggleActive: Case(lambda s: ToggleActive(uid=s.user.uid, active=False), lambda s, _: GetUser(uid=s.user.uid)),
    DeleteUser: Case(
        lambda s: DeleteUser(uid=s.own.user.uid, force=True),
        lambda s, _: GetUser(uid=s.own.user.uid),
        expected=_nothing,
    ),
    AddBot: Case(
        lambda s: AddBot(uid=s.own.user.uid, name="naïve 🚀", dry_run=True, active=True),
        lambda s, bot: GetBot(bot_id=bot.bot_id),
    ),
    EditBot: Case(
        lambda s: EditBot(
            bot_id=s.bot.bot_id, updates=BotUpdates(name="new", uid=s.user.uid, dry_run=True, active=True)
        ),
        lambda s, bot: GetBot(bot_id=bot.bot_id),
        expected=_part("updates"),
    ),
    DeleteBot: Case(
        lambda s: DeleteBot(bot_id=s.own.bot.bot_id, force=True),
        lambda s, _: GetBot(bot_id=s.own.bot.bot_id),
        expected=_nothing,
    ),
    AddExchangeToBot: Case(
        lambda s: AddExchangeToBot(
            bot_id=s.bot.bot_id, ex_id=s.account.ex_id, trading_currency="USDT", max_exposure=LONG
        ),
        lambda s, _: GetBotExchanges(bot_id=s.bot.bot_id),
        pick=lambda links: links[0],
    ),
    RemoveExchangeFromBot: Case(
        lambda s: RemoveExchangeFromBot(bot_id=s.own.bot.bot_id, ex_id=s.own.account.ex_id),
        lambda s, _: GetBotExchanges(bot_id=s.own.bot.bot_id),
        expected=_EMPTY,
    ),
    AddFeedToBot: Case(
        lambda s: AddFeedToBot(
            bot_id=s.own.bot.bot_id,
            symbol_id=s.symbol.symbol_id,
            timeframe="4h",
            enabled=False,
            str_id=s.strategy.str_id,
            order=99,
            ex_id=s.own.account.ex_id,
        ),
        lambda s, _: GetBotFeeds(bot_id=s.own.bot.bot_id),
        pick=lambda feeds: feeds[-1],
    ),
    EditFeeds: Case(
        lambda s: EditFeeds.model_validate({"bot_id": s.own.bot.bot_id, "feeds": _feeds(s)}),
        lambda s, _: GetBotFeeds(bot_id=s.own.bot.bot_id),
        expected=lambda body: body["feeds"][::-1],
    ),
    SaveBotLog: Case(
        lambda s: SaveBotLog.model_validate({**_LOG, "bot_id": s.own.bot.bot_id}),
        lambda s, _: GetLastBotLog(bot_id=s.own.bot.bot_id),
    ),
    SaveBotLogs: Case(
        lambda s: SaveBotLogs.model_validate(
            {"logs": [{**_LOG, "bot_id": s.own.bot.bot_id, "feed_num": number} for number in (1, 2)]}
        ),
        lambda s, _: GetLastActions(bot_id=s.own.bot.bot_id, limit=2),
        expected=lambda body: body["logs"][::-1],
    ),
    SaveSimulation: Case(
        lambda s: s.own.simulation(
            name="naïve",
            initial_balance=TINY,
            final_balance=f"-{LONG}",
            total_trades=2**31 - 1,
            win_rate=0.1,
            sharpe_ratio=-1e300,
            params={"a": {"b": [1, 2.5, None]}},
            results={},
        ),
        lambda s, simulation: LoadSimulation(simulation_id=simulation.simulation_id),
    ),
    InstallExchange: Case(
        lambda s: InstallExchange(name="kraken", ohlcv_view="SELECT 1", params={"a": "1"}),
        lambda s, _: GetExchangeCatalog(),
        pick=lambda catalog: next(each for each in catalog if each["name"] == "kraken"),
        expected=_without("params"),
    ),
    AddExchange: Case(
        lambda s: AddExchange.model_validate(
            {
                "uid": s.own.user.uid,
                "cat_ex_id": s.own.catalog.cat_ex_id,
                "ex_name": "third",
                "account": "sub",
                "sandbox": True,
                "active": False,
                **_keys(s),
            }
        ),
        lambda s, account: GetExchange(ex_id=account.ex_id),
        expected=_without(*_KEYS, has_credentials=True),
    ),
    UpdateExchange: Case(
        lambda s: UpdateExchange.model_validate(
            {
                "ex_id": s.account.ex_id,
                "updates": {"ex_name": "new", "account": "sub", "sandbox": True, "active": False, **_keys(s)},
            }
        ),
        lambda s, account: GetExchange(ex_id=account.ex_id),
        expected=lambda body: _without(*_KEYS, has_credentials=True)(body["updates"]),
    ),
    DeleteExchange: Case(
        lambda s: DeleteExchange(ex_id=s.own.account.ex_id, force=True),
        lambda s, _: GetExchange(ex_id=s.own.account.ex_id),
        expected=_nothing,
    ),
    SetExchangeParams: Case(
        lambda s: SetExchangeParams(ex_id=s.own.account.ex_id, params={"naïve": "🚀", "empty": ""}),
        lambda s, _: GetExchangeParams(ex_id=s.own.account.ex_id),
        expected=_part("params"),
    ),
    AddSymbol: Case(
        lambda s: AddSymbol.model_validate(
            {**_SYMBOL, "symbol": "BTC/USDT:USDT", "cat_ex_id": s.own.catalog.cat_ex_id}
        ),
        lambda s, symbol: GetSymbolById(symbol_id=symbol.symbol_id),
    ),
    AddSymbols: Case(
        lambda s: AddSymbols.model_validate(
            {"symbols": [{**_SYMBOL, "symbol": name, "cat_ex_id": s.own.catalog.cat_ex_id} for name in ("A", "B")]}
        ),
        lambda s, _: GetSymbolsByExchange(cat_ex_id=s.own.catalog.cat_ex_id),
        pick=lambda symbols: symbols[:2],
        expected=_part("symbols"),
    ),
    UpdateSymbol: Case(
        lambda s: UpdateSymbol.model_validate(
            {
                "symbol_id": s.symbol.symbol_id,
                "updates": {**_SYMBOL, "symbol": "NEW/USD", "cat_ex_id": s.other.catalog.cat_ex_id},
            }
        ),
        lambda s, symbol: GetSymbolById(symbol_id=symbol.symbol_id),
        expected=_part("updates"),
    ),
    DeleteSymbol: Case(
        lambda s: DeleteSymbol(symbol_id=s.symbol.symbol_id),
        lambda s, _: GetSymbolById(symbol_id=s.symbol.symbol_id),
        expected=_nothing,
    ),
    SyncExchangeSymbols: Case(
        lambda s: SyncExchangeSymbols.model_validate(
            {
                "ex_id": s.own.account.ex_id,
                "symbols": [{**_SYMBOL, "symbol": name} for name in ("NEW/USD", s.symbol.symbol)],
            }
        ),
        lambda s, _: GetSymbolsByExchange(cat_ex_id=s.own.catalog.cat_ex_id),
        pick=lambda symbols: [each for each in symbols if each["symbol"].endswith("/USD")],
        expected=_part("symbols"),
    ),
    CreateOrder: Case(
        lambda s: s.own.order(
            order_type="stop_limit",
            side="sell",
            size=LONG,
            price=TINY,
            stop_price=TENTH,
            status="open",
            ex_order_id="O-1",
            client_order_id="01890a5d-ac96-774b-bcce-b302099a8057",
            leverage="2.50",
            reason="why",
            timestamp="2024-02-29T00:00:00Z",
        ),
        lambda s, order: GetOrder(order_id=order.order_id),
    ),
    UpdateOrderStatus: Case(
        lambda s: UpdateOrderStatus(
            order_id=s.pending.order_id,
            ex_order_id="O-1",
            status="partially_filled",
            filled_size=TINY,
            avg_fill_price=LONG,
            reason="why",
        ),
        lambda s, order: GetOrder(order_id=order.order_id),
    ),
    FillOrder: Case(
        lambda s: FillOrder(
            order_id=s.pending.order_id,
            price=TINY,
            size=TENTH,
            fee="-0.10",
            fee_currency="USDT",
            ex_trade_id="T-1",
            ex_order_id="O-1",
            timestamp="2024-02-29T00:00:00Z",
        ),
        lambda s, filled: GetTrade(trade_id=filled.trade.trade_id),
    ),
    CancelOpenOrders: Case(
        lambda s: CancelOpenOrders(bot_id=s.own.bot.bot_id, to_status="expired"),
        lambda s, _: GetOrder(order_id=s.pending.order_id),
        expected=lambda body: {"status": "expired"},
    ),
    ClaimPendingOrders: Case(
        lambda s: ClaimPendingOrders(worker="worker"),
        lambda s, claimed: GetOrder(order_id=claimed.orders[0].order_id),
        expected=lambda body: {"status": "pending", "row_version": 1},
    ),
    RecordTrade: Case(
        lambda s: RecordTrade.model_validate(
            {**_EXECUTION, **_parties(s.own), "ex_trade_id": "T-1", "ex_order_id": "O-1", "order_id": 1}
        ),
        lambda s, trade: GetTrade(trade_id=trade.trade_id),
    ),
    RecordTrades: Case(
        lambda s: RecordTrades.model_validate(
            {"trades": [{**_EXECUTION, **_parties(s.other), "ex_trade_id": name} for name in ("T-1", "T-2")]}
        ),
        lambda s, _: GetTradesByUser(uid=s.other.user.uid),
        pick=lambda page: page["trades"],
        expected=lambda body: body["trades"][::-1],
    ),
    RecordDryTrade: Case(
        lambda s: RecordDryTrade.model_validate(
            {**_EXECUTION, **_parties(s.other), "closing": True, "reason": "stop loss"}
        ),
        lambda s, _: GetLastDryTrade(bot_id=s.other.bot.bot_id),
    ),
    DeleteDryTrades: Case(
        lambda s: DeleteDryTrades(bot_id=s.own.bot.bot_id),
        lambda s, _: GetDryTrades(bot_id=s.own.bot.bot_id),
        pick=_part("dry_trades"),
        expected=_EMPTY,
    ),
    UpsertBalances: Case(
        lambda s: UpsertBalances.model_validate(
            {
                "ex_id": s.own.account.ex_id,
                "timestamp": "2024-02-29T00:00:00.000001Z",
                "balances": [
                    {"currency": "BTC", "free": LONG, "used": "-0.50", "total": TINY},
                    {"currency": "ETH", "free": TENTH, "used": "0.20", "total": "0.30"},
                ],
            }
        ),
        lambda s, _: GetBalances(ex_id=s.own.account.ex_id),
        expected=_part("balances"),
    ),
    UpsertPositions: Case(
        lambda s: UpsertPositions.model_validate(
            {
                "ex_id": s.own.account.ex_id,
                "timestamp": "2024-02-29T00:00:00.000001Z",
                "positions": [
                    {
                        "symbol_id": s.own.symbol.symbol_id,
                        "volume": f"-{LONG}",
                        "side": "short",
                        "price": TINY,
                        "cost": "-1.50",
                        "fee": TENTH,
                        "realized_pnl": f"-{TINY}",
                        "count": 3,
                        "bot_id": s.own.bot.bot_id,
                    }
                ],
            }
        ),
        lambda s, _: GetPositions(ex_id=s.own.account.ex_id),
        expected=_part("positions"),
    ),
    RecordTicks: Case(
        lambda s: RecordTicks.model_validate(
            {
                "ticks": [
                    {
                        "symbol_id": s.own.symbol.symbol_id,
                        "price": LONG,
                        "volume": "0",
                        "bid": TINY,
                        "ask": TENTH,
                        "last": "1.50",
                        "timestamp": "2024-02-29T00:00:00.000001Z",
                    }
                ]
            }
        ),
        lambda s, _: GetTicks(symbol_id=s.own.symbol.symbol_id),
        pick=_part("ticks"),
        expected=_part("ticks"),
    ),
    InstallStrategy: Case(
        lambda s: InstallStrategy.model_validate(
            {
                **_STRATEGY,
                "name": "naïve",
                "class_name": "Naive",
                "description": "🚀",
                "feeds": 0,
                "params": {"a": "", "naïve": "🚀"},
            }
        ),
        lambda s, template: GetCatStrategy(cat_str_id=template.cat_str_id),
    ),
    AddBotStrategy: Case(
        lambda s: AddBotStrategy.model_validate(
            {
                **_STRATEGY,
                "bot_id": s.own.bot.bot_id,
                "cat_str_id": s.template.cat_str_id,
                "name": "mine",
                "leverage": "2.50",
                "size": LONG,
                "size_currency": "EUR",
                "feeds_count": 0,
                "active": False,
                "params": {"a": "2", "b": "3"},
            }
        ),
        lambda s, strategy: GetStrategy(str_id=strategy.str_id),
    ),
    EditStrategy: Case(
        lambda s: EditStrategy.model_validate(
            {
                "str_id": s.strategy.str_id,
                "updates": {
                    **_STRATEGY,
                    "name": "mine",
                    "leverage": "2.50",
                    "size_pct": "12.50",
                    "size_currency": "EUR",
                    "feeds_count": 0,
                    "active": False,
                },
            }
        ),
        lambda s, strategy: GetStrategy(str_id=strategy.str_id),
        expected=_part("updates"),
    ),
    EditStrategyParams: Case(
        lambda s: EditStrategyParams(str_id=s.strategy.str_id, params={"b": "", "c": "4", "period": None}),
        lambda s, strategy: GetStrategy(str_id=strategy.str_id),
        pick=_part("params"),
        expected=lambda body: {"b": "", "c": "4"},
    ),
    DelBotStrategy: Case(
        lambda s: DelBotStrategy(bot_id=s.own.bot.bot_id),
        lambda s, _: GetBotStrategies(bot_id=s.own.bot.bot_id),
        expected=_EMPTY,
    ),
    DelCatStrategy: Case(
        lambda s: DelCatStrategy(name=s.template.name),
        lambda s, _: GetCatStrategy(cat_str_id=s.template.cat_str_id),
        expected=_nothing,
    ),
    CreateTradingSetup: Case(
        lambda s: CreateTradingSetup.model_validate(
            {
                "user": {**_MORE_OF_A_USER, "mail": "Ada@example.org", "password_hash": HASH},
                "exchange": {"cat_ex_id": s.own.catalog.cat_ex_id, "ex_name": "main", "account": "sub"},
                "bot": {"name": "bot", "dry_run": True, "active": True},
                "trading_currency": "EUR",
            }
        ),
        lambda s, setup: GetUserWithBots(uid=setup.uid),
        expected=lambda body: _without("password_hash", bots=[body["bot"]])(body["user"]),
    ),
}
"""Of every command that stores something."""


def commands(scene: Scene) -> dict[str, Command[Any]]:
    """A good command of every kind, by name."""
    return {kind.wire_name: case.send(scene) for kind, case in CASES.items()}


def without_a_case() -> set[str]:
    """The commands that nobody thought of here."""
    return set(COMMAND_TYPES) - {kind.wire_name for kind in CASES} - STORE_NOTHING
