"""The only SQL on domain tables: one repository per noun."""

from service.repositories.account import AccountRepository
from service.repositories.base import BaseRepository
from service.repositories.bot import BotRepository
from service.repositories.exchange import ExchangeRepository
from service.repositories.order import OrderRepository
from service.repositories.symbol import SymbolRepository
from service.repositories.tick import TickRepository
from service.repositories.trade import TradeRepository
from service.repositories.user import UserRepository

__all__ = [
    "AccountRepository",
    "BaseRepository",
    "BotRepository",
    "ExchangeRepository",
    "OrderRepository",
    "SymbolRepository",
    "TickRepository",
    "TradeRepository",
    "UserRepository",
]
