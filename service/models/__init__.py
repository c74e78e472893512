"""Every table. Importing this module registers them all with the metadata."""

from service.models.account import Balance, ExchangeHistory, Position
from service.models.bot import Bot, BotExchange, BotLog
from service.models.exchange import CatExchange, CatExchangeParam, Exchange, ExchangeCredential, ExchangeParam
from service.models.feed import Feed
from service.models.job import JobRun
from service.models.messaging import (
    DeadLetter,
    EventStream,
    InboxMessage,
    Lease,
    OutboxEvent,
    Producer,
    ProducerNumber,
    PublishedEvent,
)
from service.models.order import OPEN_STATUSES, Order
from service.models.simulation import Simulation
from service.models.strategy import CatStrategy, CatStrategyParam, Strategy, StrategyParam
from service.models.symbol import Symbol
from service.models.tick import Tick
from service.models.trade import DryTrade, Trade, TradeTotals
from service.models.user import RoleEnum, User

__all__ = [
    "OPEN_STATUSES",
    "Balance",
    "Bot",
    "BotExchange",
    "BotLog",
    "CatExchange",
    "CatExchangeParam",
    "CatStrategy",
    "CatStrategyParam",
    "DeadLetter",
    "DryTrade",
    "EventStream",
    "Exchange",
    "ExchangeCredential",
    "ExchangeHistory",
    "ExchangeParam",
    "Feed",
    "InboxMessage",
    "JobRun",
    "Lease",
    "Order",
    "OutboxEvent",
    "Position",
    "Producer",
    "ProducerNumber",
    "PublishedEvent",
    "RoleEnum",
    "Simulation",
    "Strategy",
    "StrategyParam",
    "Symbol",
    "Tick",
    "Trade",
    "TradeTotals",
    "User",
]
