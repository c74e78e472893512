"""The only SQL on domain tables: one repository per noun."""

from service.repositories.account import AccountRepository
from service.repositories.base import BaseRepository
from service.repositories.bot import BotRepository
from service.repositories.bot_log import BotLogRepository
from service.repositories.exchange import ExchangeRepository
from service.repositories.feed import FeedRepository
from service.repositories.health import HealthRepository
from service.repositories.order import OrderRepository
from service.repositories.simulation import SimulationRepository
from service.repositories.strategy import StrategyRepository
from service.repositories.symbol import SymbolRepository
from service.repositories.tick import TickRepository
from service.repositories.trade import TradeRepository
from service.repositories.user import UserRepository

__all__ = [
    "AccountRepository",
    "BaseRepository",
    "BotLogRepository",
    "BotRepository",
    "ExchangeRepository",
    "FeedRepository",
    "HealthRepository",
    "OrderRepository",
    "SimulationRepository",
    "StrategyRepository",
    "SymbolRepository",
    "TickRepository",
    "TradeRepository",
    "UserRepository",
]
