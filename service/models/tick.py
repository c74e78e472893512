"""Ticks."""

from datetime import datetime
from decimal import Decimal

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity
from sqlalchemy.orm import Mapped, mapped_column

from service.base import Base


class Tick(Base):
    """A price that was seen; partitioned by week of ``timestamp``."""

    __tablename__ = "ticks"

    tick_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True))
    symbol_id: Mapped[int] = mapped_column(ForeignKey("symbols.symbol_id", ondelete="CASCADE"), primary_key=True)
    price: Mapped[Decimal]
    volume: Mapped[Decimal | None]
    bid: Mapped[Decimal | None]
    ask: Mapped[Decimal | None]
    last: Mapped[Decimal | None]
    timestamp: Mapped[datetime] = mapped_column(primary_key=True)

    __table_args__ = (
        CheckConstraint("price > 0 AND price < 'Infinity'", name="price"),
        CheckConstraint("volume >= 0 AND volume < 'Infinity'", name="volume"),
        CheckConstraint("bid > 0 AND bid < 'Infinity'", name="bid"),
        CheckConstraint("ask > 0 AND ask < 'Infinity'", name="ask"),
        CheckConstraint("last > 0 AND last < 'Infinity'", name="last"),
        {"postgresql_partition_by": "RANGE (timestamp)"},
    )
