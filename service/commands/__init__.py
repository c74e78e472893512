"""The table of contents: every command and the function that carries it out."""

from typing import Any

from contracts.base import Command
from service.commands import (
    account,
    bot,
    bot_log,
    cache,
    exchange,
    feed,
    job,
    order,
    simulation,
    strategy,
    symbol,
    tick,
    trade,
    trading_setup,
    user,
)
from service.registry import Handler

HANDLERS: dict[type[Command[Any]], Handler] = {
    **user.handlers.handlers,
    **exchange.handlers.handlers,
    **symbol.handlers.handlers,
    **bot.handlers.handlers,
    **bot_log.handlers.handlers,
    **strategy.handlers.handlers,
    **feed.handlers.handlers,
    **simulation.handlers.handlers,
    **order.handlers.handlers,
    **trade.handlers.handlers,
    **account.handlers.handlers,
    **tick.handlers.handlers,
    **cache.handlers.handlers,
    **job.handlers.handlers,
    **trading_setup.handlers.handlers,
}

__all__ = ["HANDLERS"]
