"""Every kind of logical cache key, and what makes it stale.

Logical keys are what events list as stale and what a reader asks a cache for; the name in Redis adds a namespace and
an epoch. What an event makes stale follows from these declarations alone, for the service and for its subscribers.
"""

from typing import Any, Final

from contracts.key_spec import SPECS, KeySpec, On

_SYMBOL: Final = ("symbol.created", "symbol.updated", "symbol.deleted", "symbols.changed")
_ACCOUNT: Final = ("exchange.created", "exchange.updated", "exchange.deleted")
_PARAMS: Final = "exchange.params_changed"
_BOT: Final = ("bot.created", "bot.updated", "bot.deleted")
_BOT_EXCHANGE: Final = ("bot.exchange_added", "bot.exchange_removed")
_USER: Final = ("user.created", "user.updated", "user.deleted")

# Symbols

symbol: Final = KeySpec("symbol:{symbol}:{cat_ex_id}", (On(*_SYMBOL),))
"""One symbol by its name, absent ones included."""

symbols_of_exchange: Final = KeySpec("symbols:exchange:{cat_ex_id}", (On(*_SYMBOL),), is_large=True)
"""All symbols of a catalog exchange."""

symbol_decimals: Final = KeySpec("symbol:decimals:{symbol_id}", (On(*_SYMBOL, fields="decimals"),))
"""How many decimals a symbol's prices have."""

symbol_by_id: Final = KeySpec("symbol:by_id:{symbol_id}", (On(*_SYMBOL),))
"""One symbol by its id, absent ones included."""

all_symbols: Final = KeySpec("symbols:all", (On(*_SYMBOL),), is_large=True)
"""The first symbols of all exchanges."""

# Exchanges. Settings are part of no list, but the version that they are counted in is.

exchanges_of_user: Final = KeySpec("user:exchanges:{uid}", (On(*_ACCOUNT, _PARAMS, "user.deleted"),))
"""The exchange accounts of a user."""

exchange_params: Final = KeySpec("exchange:params:{ex_id}", (On(*_ACCOUNT), On(_PARAMS, ex_id="accounts")))
"""The settings of an exchange account: the catalog's and its own."""

active_exchanges: Final = KeySpec("exchange:active", (On(*_ACCOUNT, _PARAMS),))
"""The accounts that are active, of all users."""

exchange_catalog: Final = KeySpec(
    "exchange:catalog", (On("catalog.exchange_installed", _PARAMS),), when_uncertain="serve_stale"
)
"""The list of catalog exchanges."""

# Bots

bot_details: Final = KeySpec(
    "bot:details:{bot_id}",
    (On(*_BOT, *_BOT_EXCHANGE, "bot.feeds_changed", "bot.strategy_changed"),),
)
"""A bot with everything attached to it."""

bots_of_user: Final = KeySpec("user:bots:{uid}", (On(*_BOT, "user.deleted"),))
"""The bots of a user."""

trading_currency: Final = KeySpec("bot:currency:{bot_id}:{ex_id}", (On(*_BOT_EXCHANGE),))
"""What a bot trades in on an exchange account."""

# Users

user: Final = KeySpec("user:{uid}", (On(*_USER, "user.password_changed"),))
"""A user by id."""

user_id: Final = KeySpec("user:id:{mail}", (On(*_USER, fields="mail"),), any_case=True)
"""A user's id by mail address, in any case."""

trading_summary: Final = KeySpec(
    "user:trading_summary:{uid}",
    (On(*_USER, "user.password_changed", *_BOT, "exchange.deleted"),),
    ttl=3_600,
    soft_ttl=3_600,
)
"""What a user's bots and trades add up to, as of at most an hour ago: new trades do not make it stale."""

# Others

query: Final = KeySpec("{kind}:query:{name}:{arguments}", ttl=60, soft_ttl=60)
"""What a method of one's own says about symbols or exchanges: no event tells what makes it stale."""

strategy_catalog: Final = KeySpec("strategy:catalog", (On("strategy.catalog_changed"),), when_uncertain="serve_stale")
"""The list of strategies that bots can run."""

DECLARED_HERE: Final = frozenset(SPECS)
"""The patterns of these kinds, whose stale keys are listed in events. Of kinds that were declared elsewhere, whoever
listens finds them out."""

NOT_CACHED: Final = frozenset(
    {
        *("balance.updated", "position.updated", "simulation.saved", "bot_log.saved"),
        *("order.created", "order.status_changed", "trade.recorded", "trade.updated", "trade.deleted"),
        *("dry_trade.recorded", "dry_trade.cleared"),
        *("cleanup.completed", "command.rejected", "producer.gap_found"),
    }
)
"""Events that make nothing stale: of what is not cached, or lives by its time to live alone."""


def stale_keys(event: str, before: Any, after: Any) -> list[str]:
    """Logical keys that a change makes stale: those of the old image and of the new one, each once.

    ``event`` is its wire name; ``before`` is None for a new row, ``after`` for a deleted one. A pattern stands for
    all keys of its kind.
    """
    return list(dict.fromkeys(key for spec in _on(event) for key in spec.stale_keys(event, before, after)))


def stale_templates(event: str) -> list[str]:
    """The templates of those keys, with the fields of the event's view in braces."""
    return [template for spec in _on(event) for template in spec.stale_templates(event)]


def _on(event: str) -> list[KeySpec]:
    return [spec for spec in SPECS.values() if event in spec.events]


def events() -> frozenset[str]:
    """The wire names of all events that make something stale: what a cache has to listen to."""
    return frozenset(event for spec in SPECS.values() for event in spec.events)
