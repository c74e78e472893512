"""What bots would have earned."""

from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import CheckConstraint, Double, ForeignKey, Identity, Index, String, UniqueConstraint, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from service.base import Base, Versioned


class Simulation(Versioned, Base):
    """The result of one simulation of a bot."""

    __tablename__ = "simulations"

    simulation_id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    bot_id: Mapped[int] = mapped_column(ForeignKey("bots.bot_id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(100))
    start_date: Mapped[datetime]
    end_date: Mapped[datetime]
    initial_balance: Mapped[Decimal]
    final_balance: Mapped[Decimal]
    total_trades: Mapped[int]
    win_rate: Mapped[float | None] = mapped_column(Double)
    sharpe_ratio: Mapped[float | None] = mapped_column(Double)
    params: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    results: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    timestamp: Mapped[datetime] = mapped_column(server_default=func.now())
    """When it was saved last."""

    __table_args__ = (
        UniqueConstraint("bot_id", "name"),
        CheckConstraint("end_date >= start_date", name="end_date"),
        # NaN sorts above infinity in PostgreSQL, so one comparison keeps both out.
        CheckConstraint("initial_balance >= 0 AND initial_balance < 'Infinity'", name="initial_balance"),
        CheckConstraint("final_balance > '-Infinity' AND final_balance < 'Infinity'", name="final_balance"),
        CheckConstraint("total_trades >= 0", name="total_trades"),
        CheckConstraint("win_rate BETWEEN 0 AND 1", name="win_rate"),
        CheckConstraint("sharpe_ratio > '-Infinity' AND sharpe_ratio < 'Infinity'", name="sharpe_ratio"),
        Index(None, "timestamp"),
    )
