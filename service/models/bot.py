"""Bots, the exchange accounts they may use, and their logs."""

from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from service.base import Base, Versioned
from service.models.feed import Feed
from service.models.order import Order
from service.models.simulation import Simulation
from service.models.strategy import Strategy
from service.models.trade import DryTrade
from service.models.user import User


class Bot(Versioned, Base):
    """A trading bot."""

    __tablename__ = "bots"

    bot_id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    uid: Mapped[int] = mapped_column(ForeignKey("users.uid", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(50))
    dry_run: Mapped[bool] = mapped_column(server_default=text("false"))
    active: Mapped[bool] = mapped_column(server_default=text("false"))
    timestamp: Mapped[datetime] = mapped_column(server_default=func.now())

    user: Mapped[User] = relationship(lazy="raise", viewonly=True)
    bot_exchanges: Mapped[list["BotExchange"]] = relationship(
        lazy="raise", order_by="BotExchange.exchange_id", viewonly=True
    )
    strategies: Mapped[list[Strategy]] = relationship(lazy="raise", order_by=Strategy.str_id, viewonly=True)
    feeds: Mapped[list[Feed]] = relationship(lazy="raise", order_by=Feed.order, viewonly=True)
    logs: Mapped[list["BotLog"]] = relationship(lazy="raise", order_by="BotLog.log_id", viewonly=True)
    simulations: Mapped[list[Simulation]] = relationship(
        lazy="raise", order_by=Simulation.simulation_id, viewonly=True
    )
    orders: Mapped[list[Order]] = relationship(
        lazy="raise", primaryjoin=lambda: Bot.bot_id == Order.bot_id, order_by=Order.order_id, viewonly=True
    )
    dry_trades: Mapped[list[DryTrade]] = relationship(lazy="raise", order_by=DryTrade.dry_trade_id, viewonly=True)

    @property
    def is_live(self) -> bool:
        """Whether it trades, and for real."""
        return self.active and not self.dry_run

    __table_args__ = (
        UniqueConstraint("uid", "name"),
        UniqueConstraint("bot_id", "uid"),
        Index("ix_bots_active", "uid", postgresql_where=text("active")),
    )


class BotExchange(Versioned, Base):
    """An exchange account that a bot may use; both belong to ``uid``."""

    __tablename__ = "bot_exchanges"

    bot_id: Mapped[int] = mapped_column(primary_key=True)
    exchange_id: Mapped[int] = mapped_column("ex_id", primary_key=True)
    """The user's account (``ex_id``), not the catalog exchange."""
    uid: Mapped[int]
    trading_currency: Mapped[str | None] = mapped_column(String(15))
    max_exposure: Mapped[Decimal | None]
    timestamp: Mapped[datetime] = mapped_column(server_default=func.now())

    @property
    def ex_id(self) -> int:
        return self.exchange_id

    __table_args__ = (
        ForeignKeyConstraint(["bot_id", "uid"], ["bots.bot_id", "bots.uid"], ondelete="CASCADE"),
        ForeignKeyConstraint(["ex_id", "uid"], ["exchanges.ex_id", "exchanges.uid"], ondelete="CASCADE"),
        CheckConstraint("max_exposure >= 0 AND max_exposure < 'Infinity'", name="max_exposure"),
        Index(None, "ex_id"),
    )


class BotLog(Base):
    """One entry of a bot's log; partitioned by week of ``timestamp``."""

    __tablename__ = "bot_logs"

    log_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    bot_id: Mapped[int] = mapped_column(ForeignKey("bots.bot_id", ondelete="CASCADE"))
    level: Mapped[str] = mapped_column(String(10), server_default="INFO")
    action: Mapped[str | None] = mapped_column(String(20))
    message: Mapped[str] = mapped_column(Text)
    feed_num: Mapped[int | None] = mapped_column(SmallInteger)
    ex_id: Mapped[int | None]
    symbol: Mapped[str | None] = mapped_column(String(40))
    position: Mapped[Decimal | None]
    data: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    timestamp: Mapped[datetime] = mapped_column(server_default=func.now(), primary_key=True)
    recorded_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        Index("ix_bot_logs_newest", "bot_id", text("timestamp DESC"), text("log_id DESC")),
        {"postgresql_partition_by": "RANGE (timestamp)"},
    )
