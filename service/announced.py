"""Of which tables every change is announced, and by which events."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Announced:
    """A table of which every change is announced."""

    table: str
    key: tuple[str, ...]
    events: tuple[str, ...]
    """Types of the events that are about its rows."""
    version: str = "row_version"
    changed_at: str = "updated_at"
    grows: bool = False
    """Whether rows are added in the order of their ids and seldom changed; ``changed_at`` is when they were added."""
    goes_with: tuple[str, ...] = ()
    """Types of events that stand for the end of its rows too."""


ANNOUNCED: Final = (
    Announced(
        "trades",
        ("trade_id",),
        ("trade.recorded", "trade.updated", "trade.deleted"),
        changed_at="recorded_at",
        grows=True,
        goes_with=("user.deleted", "exchange.deleted"),
    ),
    Announced(
        "dry_trades",
        ("dry_trade_id",),
        ("dry_trade.recorded",),
        changed_at="recorded_at",
        grows=True,
        goes_with=("dry_trade.cleared", "bot.deleted", "user.deleted", "exchange.deleted"),
    ),
    Announced(
        "bot_logs",
        ("log_id",),
        ("bot_log.saved",),
        version="1",
        changed_at="recorded_at",
        grows=True,
        goes_with=("bot.deleted", "user.deleted", "cleanup.completed"),
    ),
    Announced(
        "orders",
        ("order_id",),
        ("order.created", "order.status_changed"),
        goes_with=("user.deleted", "exchange.deleted"),
    ),
    Announced(
        "balances", ("ex_id", "currency"), ("balance.updated",), goes_with=("user.deleted", "exchange.deleted")
    ),
    Announced(
        "positions", ("ex_id", "symbol_id"), ("position.updated",), goes_with=("user.deleted", "exchange.deleted")
    ),
    Announced("users", ("uid",), ("user.created", "user.updated", "user.password_changed", "user.deleted")),
    Announced(
        "exchanges",
        ("ex_id",),
        ("exchange.created", "exchange.updated", "exchange.deleted", "exchange.params_changed"),
    ),
    Announced("cat_exchanges", ("cat_ex_id",), ("catalog.exchange_installed",)),
    Announced("symbols", ("symbol_id",), ("symbol.created", "symbol.updated", "symbol.deleted", "symbols.changed")),
    Announced("bots", ("bot_id",), ("bot.created", "bot.updated", "bot.deleted")),
    Announced("bot_exchanges", ("bot_id", "ex_id"), ("bot.exchange_added", "bot.exchange_removed")),
    Announced("feeds", ("feed_id",), ("bot.feeds_changed",)),
    Announced("strategies", ("str_id",), ("bot.strategy_changed",)),
    Announced("cat_strategies", ("cat_str_id",), ("strategy.catalog_changed",)),
    Announced(
        "simulations",
        ("simulation_id",),
        ("simulation.saved",),
        goes_with=("bot.deleted", "user.deleted", "cleanup.completed"),
    ),
)
ABOUT_NO_ROW: Final = frozenset(
    ("cache.invalidated", "cleanup.completed", "command.rejected", "dry_trade.cleared", "producer.gap_found")
)
"""Types of events about something else than the versions of a row."""
