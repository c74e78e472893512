"""The table of contents: every lookup and how it is answered."""

from typing import Any

from contracts.base import Lookup
from service.lookups import (
    account,
    bot,
    bot_log,
    exchange,
    feed,
    health,
    order,
    simulation,
    strategy,
    symbol,
    tick,
    trade,
    user,
)
from service.registry import Answer

ANSWERS: dict[type[Lookup[Any]], Answer] = {
    **user.lookups.answers_by_lookup,
    **exchange.lookups.answers_by_lookup,
    **symbol.lookups.answers_by_lookup,
    **bot.lookups.answers_by_lookup,
    **bot_log.lookups.answers_by_lookup,
    **strategy.lookups.answers_by_lookup,
    **feed.lookups.answers_by_lookup,
    **simulation.lookups.answers_by_lookup,
    **order.lookups.answers_by_lookup,
    **trade.lookups.answers_by_lookup,
    **account.lookups.answers_by_lookup,
    **tick.lookups.answers_by_lookup,
    **health.lookups.answers_by_lookup,
}

__all__ = ["ANSWERS"]
