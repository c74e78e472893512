"""The table of contents: every lookup and how it is answered."""

from typing import Any

from contracts.base import Lookup
from service.lookups import account, bot, order, symbol, tick, trade
from service.registry import Answer

ANSWERS: dict[type[Lookup[Any]], Answer] = {
    **symbol.lookups.answers_by_lookup,
    **bot.lookups.answers_by_lookup,
    **order.lookups.answers_by_lookup,
    **trade.lookups.answers_by_lookup,
    **account.lookups.answers_by_lookup,
    **tick.lookups.answers_by_lookup,
}

__all__ = ["ANSWERS"]
