"""The repositories of one transaction, as handlers see them."""

from functools import cached_property

from sqlalchemy.ext.asyncio import AsyncSession

from service.repositories import (
    AccountRepository,
    BotLogRepository,
    BotRepository,
    ExchangeRepository,
    OrderRepository,
    StrategyRepository,
    SymbolRepository,
    TickRepository,
    TradeRepository,
    UserRepository,
)


class UnitOfWork:
    """All repositories on one session. Who made the session commits it; handlers and repositories never do."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    @cached_property
    def users(self) -> UserRepository:
        return UserRepository(self.session)

    @cached_property
    def exchanges(self) -> ExchangeRepository:
        return ExchangeRepository(self.session)

    @cached_property
    def symbols(self) -> SymbolRepository:
        return SymbolRepository(self.session)

    @cached_property
    def bots(self) -> BotRepository:
        return BotRepository(self.session)

    @cached_property
    def bot_logs(self) -> BotLogRepository:
        return BotLogRepository(self.session)

    @cached_property
    def strategies(self) -> StrategyRepository:
        return StrategyRepository(self.session)

    @cached_property
    def orders(self) -> OrderRepository:
        return OrderRepository(self.session)

    @cached_property
    def trades(self) -> TradeRepository:
        return TradeRepository(self.session)

    @cached_property
    def accounts(self) -> AccountRepository:
        return AccountRepository(self.session)

    @cached_property
    def ticks(self) -> TickRepository:
        return TickRepository(self.session)
