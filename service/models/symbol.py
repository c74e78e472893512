"""The trading pairs of catalog exchanges."""

from decimal import Decimal

from sqlalchemy import CheckConstraint, ForeignKey, Identity, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship, synonym

from service.base import Base, Versioned
from service.models.exchange import CatExchange
from service.models.order import Order
from service.models.tick import Tick
from service.models.trade import Trade


class Symbol(Versioned, Base):
    """A trading pair with the rules its exchange sets."""

    __tablename__ = "symbols"

    id: Mapped[int] = mapped_column("symbol_id", Identity(always=True), primary_key=True)
    symbol: Mapped[str] = mapped_column(String(40))
    exchange_id: Mapped[int] = mapped_column("cat_ex_id", ForeignKey("cat_exchanges.cat_ex_id", ondelete="RESTRICT"))
    """The catalog exchange (``cat_ex_id``), not a user's account."""
    ticker: Mapped[str | None] = mapped_column(String(40))
    base: Mapped[str | None] = mapped_column(String(20))
    quote: Mapped[str | None] = mapped_column(String(20))
    decimals: Mapped[int] = mapped_column(server_default=text("8"))
    tick_size: Mapped[Decimal | None]
    step_size: Mapped[Decimal | None]
    min_size: Mapped[Decimal | None]
    max_size: Mapped[Decimal | None]
    status: Mapped[str] = mapped_column(String(12), server_default="active")
    updateframe: Mapped[str] = mapped_column(String(4), server_default="1h")
    backtest: Mapped[bool] = mapped_column(server_default=text("false"))
    futures: Mapped[bool] = mapped_column(server_default=text("false"))
    only_ticker: Mapped[bool] = mapped_column(server_default=text("false"))

    symbol_id: Mapped[int] = synonym("id")
    cat_ex_id: Mapped[int] = synonym("exchange_id")

    cat_exchange: Mapped[CatExchange] = relationship(lazy="raise")
    orders: Mapped[list[Order]] = relationship(lazy="raise", viewonly=True, order_by=Order.order_id)
    trades: Mapped[list[Trade]] = relationship(lazy="raise", viewonly=True, order_by=Trade.trade_id)
    ticks: Mapped[list[Tick]] = relationship(lazy="raise", viewonly=True, order_by=Tick.timestamp)

    __table_args__ = (
        UniqueConstraint("cat_ex_id", "symbol"),
        UniqueConstraint("symbol_id", "cat_ex_id"),
        CheckConstraint("decimals BETWEEN 0 AND 18", name="decimals"),
        # Lower-case words are parts of cache keys; a symbol must not look like one.
        CheckConstraint("symbol !~ '[[:lower:][:space:]]' AND symbol <> ''", name="symbol"),
        CheckConstraint("status IN ('active', 'halted', 'delisted')", name="status"),
        CheckConstraint(
            "tick_size > 0 AND tick_size < 'Infinity' AND step_size > 0 AND step_size < 'Infinity' "
            "AND min_size > 0 AND min_size < 'Infinity' AND max_size > 0 AND max_size < 'Infinity'",
            name="rules_are_positive",
        ),
    )
