"""What users have on exchanges: balances, positions, and the history of the totals."""

from datetime import datetime
from decimal import Decimal

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    String,
    Text,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from service.base import Base, Versioned


class Balance(Versioned, Base):
    """How much of a currency an account has, as of the newest snapshot."""

    __tablename__ = "balances"

    ex_id: Mapped[int] = mapped_column(ForeignKey("exchanges.ex_id", ondelete="CASCADE"), primary_key=True)
    currency: Mapped[str] = mapped_column(String(20), primary_key=True)
    free: Mapped[Decimal]
    used: Mapped[Decimal]
    total: Mapped[Decimal]
    timestamp: Mapped[datetime]

    __table_args__ = tuple(
        CheckConstraint(f"{column} > '-Infinity' AND {column} < 'Infinity'", name=column)
        for column in ("free", "used", "total")
    )


class Position(Versioned, Base):
    """What an account holds of a symbol, as of the newest snapshot."""

    __tablename__ = "positions"

    ex_id: Mapped[int] = mapped_column(primary_key=True)
    symbol_id: Mapped[int] = mapped_column(primary_key=True)
    uid: Mapped[int]
    cat_ex_id: Mapped[int]
    bot_id: Mapped[int | None]
    side: Mapped[str] = mapped_column(String(5))
    volume: Mapped[Decimal]
    """Negative for a short position."""
    price: Mapped[Decimal] = mapped_column(server_default=text("0"))
    cost: Mapped[Decimal] = mapped_column(server_default=text("0"))
    fee: Mapped[Decimal] = mapped_column(server_default=text("0"))
    realized_pnl: Mapped[Decimal] = mapped_column(server_default=text("0"))
    count: Mapped[int] = mapped_column(server_default=text("0"))
    timestamp: Mapped[datetime]

    __table_args__ = (
        ForeignKeyConstraint(["bot_id", "uid"], ["bots.bot_id", "bots.uid"], ondelete="SET NULL (bot_id)"),
        ForeignKeyConstraint(
            ["ex_id", "uid", "cat_ex_id"],
            ["exchanges.ex_id", "exchanges.uid", "exchanges.cat_ex_id"],
            ondelete="CASCADE",
        ),
        ForeignKeyConstraint(
            ["symbol_id", "cat_ex_id"], ["symbols.symbol_id", "symbols.cat_ex_id"], ondelete="RESTRICT"
        ),
        CheckConstraint(
            "side = CASE WHEN volume > 0 THEN 'long' WHEN volume < 0 THEN 'short' ELSE 'flat' END", name="side"
        ),
        CheckConstraint("volume > '-Infinity' AND volume < 'Infinity'", name="volume"),
        CheckConstraint("price >= 0 AND price < 'Infinity'", name="price"),
        CheckConstraint("cost > '-Infinity' AND cost < 'Infinity'", name="cost"),
        CheckConstraint("fee > '-Infinity' AND fee < 'Infinity'", name="fee"),
        CheckConstraint("realized_pnl > '-Infinity' AND realized_pnl < 'Infinity'", name="realized_pnl"),
        CheckConstraint("count >= 0", name="count"),
        Index(None, "symbol_id"),
        Index(None, "bot_id"),
    )


class ExchangeHistory(Base):
    """A change of how much of a currency an account has. Never changed."""

    __tablename__ = "exchange_history"

    history_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    ex_id: Mapped[int]
    uid: Mapped[int]
    currency: Mapped[str] = mapped_column(String(20))
    balance: Mapped[Decimal]
    change: Mapped[Decimal | None]
    comment: Mapped[str | None] = mapped_column(Text)
    timestamp: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        ForeignKeyConstraint(["ex_id", "uid"], ["exchanges.ex_id", "exchanges.uid"], ondelete="CASCADE"),
        CheckConstraint("balance > '-Infinity' AND balance < 'Infinity'", name="balance"),
        CheckConstraint("change > '-Infinity' AND change < 'Infinity'", name="change"),
        Index("ix_exchange_history_newest_of_account", "ex_id", text("timestamp DESC"), text("history_id DESC")),
        Index(
            "ix_exchange_history_newest_of_currency",
            "ex_id",
            "currency",
            text("timestamp DESC"),
            text("history_id DESC"),
        ),
        Index("ix_exchange_history_newest_of_user", "uid", text("timestamp DESC"), text("history_id DESC")),
    )
