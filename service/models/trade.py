"""Trades, real and simulated."""

from datetime import datetime
from decimal import Decimal

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Constraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    SmallInteger,
    String,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column, synonym

from service.base import Base


class Execution:
    """What trades and dry trades have in common."""

    uid: Mapped[int]
    ex_id: Mapped[int]
    cat_ex_id: Mapped[int]
    symbol_id: Mapped[int]
    side: Mapped[str] = mapped_column(String(4))
    size: Mapped[Decimal]
    price: Mapped[Decimal]
    cost: Mapped[Decimal]
    fee: Mapped[Decimal] = mapped_column(server_default=text("0"))
    fee_currency: Mapped[str | None] = mapped_column(String(20))
    leverage: Mapped[Decimal] = mapped_column(server_default=text("1"))
    roi: Mapped[Decimal | None]
    roi_pct: Mapped[Decimal | None]
    timestamp: Mapped[datetime] = mapped_column(server_default=func.now())
    recorded_at: Mapped[datetime] = mapped_column(server_default=func.now())
    row_version: Mapped[int] = mapped_column(Integer, server_default=text("1"))


def _rules_of_executions() -> tuple[Constraint, ...]:
    return (
        ForeignKeyConstraint(
            ["ex_id", "uid", "cat_ex_id"],
            ["exchanges.ex_id", "exchanges.uid", "exchanges.cat_ex_id"],
            ondelete="CASCADE",
        ),
        ForeignKeyConstraint(
            ["symbol_id", "cat_ex_id"], ["symbols.symbol_id", "symbols.cat_ex_id"], ondelete="RESTRICT"
        ),
        CheckConstraint("side IN ('buy', 'sell')", name="side"),
        CheckConstraint("size > 0 AND size < 'Infinity'", name="size"),
        CheckConstraint("price > 0 AND price < 'Infinity'", name="price"),
        CheckConstraint("leverage > 0 AND leverage < 'Infinity'", name="leverage"),
        CheckConstraint("fee > '-Infinity' AND fee < 'Infinity'", name="fee"),
        CheckConstraint("roi > '-Infinity' AND roi < 'Infinity'", name="roi"),
        CheckConstraint("roi_pct > '-Infinity' AND roi_pct < 'Infinity'", name="roi_pct"),
    )


class Trade(Execution, Base):
    """An execution on an exchange. Never dropped, and never changed but for the order it is linked with."""

    __tablename__ = "trades"

    trade_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    ex_trade_id: Mapped[str | None] = mapped_column(String(64))
    order_id: Mapped[int | None] = mapped_column(BigInteger)
    ex_order_id: Mapped[str | None] = mapped_column(String(64))
    bot_id: Mapped[int | None]

    __table_args__ = (
        ForeignKeyConstraint(["bot_id", "uid"], ["bots.bot_id", "bots.uid"], ondelete="SET NULL (bot_id)"),
        ForeignKeyConstraint(["order_id", "uid"], ["orders.order_id", "orders.uid"], ondelete="SET NULL (order_id)"),
        *_rules_of_executions(),
        # The one key that makes a trade unique for ever, whatever message it came in.
        Index(
            "uq_trades_ex_id_ex_trade_id",
            "ex_id",
            "ex_trade_id",
            unique=True,
            postgresql_where=text("ex_trade_id IS NOT NULL"),
        ),
        *(
            Index(f"ix_trades_newest_of_{owner}", column, text("timestamp DESC"), text("trade_id DESC"))
            for owner, column in (("user", "uid"), ("bot", "bot_id"), ("account", "ex_id"), ("symbol", "symbol_id"))
        ),
        Index(
            "ix_trades_newest_of_user_by_symbol", "uid", "symbol_id", text("timestamp DESC"), text("trade_id DESC")
        ),
        Index("ix_trades_of_order", "order_id", postgresql_where=text("order_id IS NOT NULL")),
        # Trades come nearly in the order of time, so the ranges of blocks tell most of them apart.
        Index(
            "ix_trades_timestamp",
            "timestamp",
            postgresql_using="brin",
            postgresql_with={"pages_per_range": 32, "autosummarize": True},
        ),
    )


class TradeTotals(Base):
    """What a user's trades add up to, kept by triggers in the transaction that stores, changes or deletes them.

    The sum over a user's parts is what counts; which part a connection writes to is its own matter.
    """

    __tablename__ = "trade_totals"

    uid: Mapped[int] = mapped_column(ForeignKey("users.uid", ondelete="CASCADE"), primary_key=True)
    part: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    trades: Mapped[int] = mapped_column(BigInteger)
    size: Mapped[Decimal]
    price: Mapped[Decimal]
    """The sum of the prices, for their plain mean."""
    cost: Mapped[Decimal]
    bought: Mapped[Decimal]
    sold: Mapped[Decimal]

    # Rows that change all the time have room for their next version beside them.
    __table_args__ = ({"postgresql_with": {"fillfactor": 50}},)


class DryTrade(Execution, Base):
    """An execution that a bot only simulated."""

    __tablename__ = "dry_trades"

    dry_trade_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    bot_id: Mapped[int]
    closing: Mapped[bool] = mapped_column(server_default=text("false"))
    reason: Mapped[str | None] = mapped_column(String(255))

    trade_id: Mapped[int] = synonym("dry_trade_id")

    __table_args__ = (
        ForeignKeyConstraint(["bot_id", "uid"], ["bots.bot_id", "bots.uid"], ondelete="CASCADE"),
        *_rules_of_executions(),
        Index("ix_dry_trades_newest_of_bot", "bot_id", text("timestamp DESC"), text("dry_trade_id DESC")),
        Index(
            "ix_dry_trades_newest_of_bot_by_symbol",
            "bot_id",
            "symbol_id",
            "ex_id",
            text("timestamp DESC"),
            text("dry_trade_id DESC"),
        ),
        Index(None, "uid"),
        Index(None, "ex_id"),
        Index(None, "symbol_id"),
    )
