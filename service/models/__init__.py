"""Every table. Importing this module registers them all with the metadata."""

from service.models.bot import Bot, BotExchange, BotLog
from service.models.exchange import CatExchange, CatExchangeParam, Exchange, ExchangeCredential, ExchangeParam
from service.models.feed import Feed
from service.models.messaging import DeadLetter, EventStream, InboxMessage, OutboxEvent, RelayLease
from service.models.order import OPEN_STATUSES, Order
from service.models.simulation import Simulation
from service.models.strategy import CatStrategy, CatStrategyParam, Strategy, StrategyParam
from service.models.symbol import Symbol
from service.models.trade import Trade
from service.models.user import RoleEnum, User

__all__ = [
    "OPEN_STATUSES",
    "Bot",
    "BotExchange",
    "BotLog",
    "CatExchange",
    "CatExchangeParam",
    "CatStrategy",
    "CatStrategyParam",
    "DeadLetter",
    "EventStream",
    "Exchange",
    "ExchangeCredential",
    "ExchangeParam",
    "Feed",
    "InboxMessage",
    "Order",
    "OutboxEvent",
    "RelayLease",
    "RoleEnum",
    "Simulation",
    "Strategy",
    "StrategyParam",
    "Symbol",
    "Trade",
    "User",
]
