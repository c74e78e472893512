"""Orders."""

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKeyConstraint,
    Identity,
    Index,
    String,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column, synonym

from service.base import Base, Versioned

OPEN_STATUSES = ("pending", "open", "partially_filled")


class Order(Versioned, Base):
    """What a bot asked an exchange to do."""

    __tablename__ = "orders"

    order_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    ex_order_id: Mapped[str | None] = mapped_column(String(64))
    client_order_id: Mapped[UUID | None] = mapped_column(unique=True)
    bot_id: Mapped[int | None]
    uid: Mapped[int]
    ex_id: Mapped[int]
    cat_ex_id: Mapped[int]
    symbol_id: Mapped[int]
    side: Mapped[str] = mapped_column(String(4))
    order_type: Mapped[str] = mapped_column(String(20))
    size: Mapped[Decimal]
    price: Mapped[Decimal | None]
    stop_price: Mapped[Decimal | None]
    filled_size: Mapped[Decimal] = mapped_column(server_default=text("0"))
    avg_fill_price: Mapped[Decimal | None]
    leverage: Mapped[Decimal | None]
    status: Mapped[str] = mapped_column(String(20), server_default="pending")
    reason: Mapped[str | None] = mapped_column(String(255))
    timestamp: Mapped[datetime] = mapped_column(server_default=func.now())
    leased_by: Mapped[str | None] = mapped_column(String(64))
    """The worker that claimed it. A lease is no part of the order: it has no event and makes no new version."""
    leased_until: Mapped[datetime | None]

    volume: Mapped[Decimal] = synonym("size")

    __table_args__ = (
        # Owner, bot, account and the symbol's exchange belong together; no row can say otherwise.
        ForeignKeyConstraint(["bot_id", "uid"], ["bots.bot_id", "bots.uid"], ondelete="SET NULL (bot_id)"),
        ForeignKeyConstraint(
            ["ex_id", "uid", "cat_ex_id"],
            ["exchanges.ex_id", "exchanges.uid", "exchanges.cat_ex_id"],
            ondelete="CASCADE",
        ),
        ForeignKeyConstraint(
            ["symbol_id", "cat_ex_id"], ["symbols.symbol_id", "symbols.cat_ex_id"], ondelete="RESTRICT"
        ),
        UniqueConstraint("order_id", "uid"),
        CheckConstraint("side IN ('buy', 'sell')", name="side"),
        CheckConstraint(
            "order_type IN ('market', 'limit', 'stop', 'stop_limit', 'take_profit', 'take_profit_limit', "
            "'trailing_stop')",
            name="order_type",
        ),
        CheckConstraint(
            "status IN ('pending', 'open', 'partially_filled', 'filled', 'cancelled', 'rejected', 'expired')",
            name="status",
        ),
        # NaN sorts above infinity in PostgreSQL, so one comparison keeps both out.
        CheckConstraint("size > 0 AND size < 'Infinity'", name="size"),
        CheckConstraint("price > 0 AND price < 'Infinity'", name="price"),
        CheckConstraint("stop_price > 0 AND stop_price < 'Infinity'", name="stop_price"),
        CheckConstraint("filled_size >= 0 AND filled_size < 'Infinity'", name="filled_size"),
        CheckConstraint("avg_fill_price >= 0 AND avg_fill_price < 'Infinity'", name="avg_fill_price"),
        CheckConstraint("leverage > 0 AND leverage < 'Infinity'", name="leverage"),
        Index(
            "uq_orders_ex_id_ex_order_id",
            "ex_id",
            "ex_order_id",
            unique=True,
            postgresql_where=text("ex_order_id IS NOT NULL"),
        ),
        CheckConstraint("(leased_by IS NULL) = (leased_until IS NULL)", name="lease_is_whole"),
        *(
            Index(f"ix_orders_newest_of_{owner}", column, text("timestamp DESC"), text("order_id DESC"))
            for owner, column in (("user", "uid"), ("bot", "bot_id"), ("account", "ex_id"), ("symbol", "symbol_id"))
        ),
        Index(
            None,
            "timestamp",
            postgresql_using="brin",
            postgresql_with={"pages_per_range": 32, "autosummarize": True},
        ),
        Index("ix_orders_pending", "timestamp", "order_id", postgresql_where=text("status = 'pending'")),
        *(
            Index(
                f"ix_orders_open_by_{column}",
                column,
                "timestamp",
                "order_id",
                postgresql_where=text("status IN ('pending', 'open', 'partially_filled')"),
            )
            for column in ("bot_id", "uid", "ex_id")
        ),
    )
