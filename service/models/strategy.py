"""The catalog of strategies, and what bots run of it."""

from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Identity,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.orm import Mapped, attribute_keyed_dict, mapped_column, relationship

from service.base import Base, Versioned
from service.models.feed import Feed

if TYPE_CHECKING:
    from service.models.bot import Bot

_LIMITS = (
    "take_profit >= 0 AND take_profit < 'Infinity' AND stop_loss >= 0 AND stop_loss < 'Infinity' "
    "AND trailing_stop >= 0 AND trailing_stop < 'Infinity'"
)


class CatStrategyParam(Base):
    """A setting that a strategy of the catalog comes with."""

    __tablename__ = "cat_strategy_params"

    cat_str_id: Mapped[int] = mapped_column(
        ForeignKey("cat_strategies.cat_str_id", ondelete="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class CatStrategy(Versioned, Base):
    """A strategy that bots can run; the template of what they run."""

    __tablename__ = "cat_strategies"

    cat_str_id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    class_name: Mapped[str | None] = mapped_column(String(100))
    description: Mapped[str | None] = mapped_column(Text)
    take_profit: Mapped[Decimal | None]
    """In percent, as are the two below."""
    stop_loss: Mapped[Decimal | None]
    trailing_stop: Mapped[Decimal | None]
    timeout: Mapped[int | None]
    """In seconds."""
    pre_load_bars: Mapped[int] = mapped_column(SmallInteger, server_default=text("200"))
    feeds: Mapped[int] = mapped_column(SmallInteger, server_default=text("2"))
    """How many it needs."""
    pairs: Mapped[bool] = mapped_column(server_default=text("false"))

    param_rows: Mapped[dict[str, CatStrategyParam]] = relationship(
        collection_class=attribute_keyed_dict("name"),
        cascade="all, delete-orphan",
        passive_deletes=True,
        lazy="raise",
    )
    params: AssociationProxy[dict[str, str]] = association_proxy(
        "param_rows", "value", creator=lambda name, value: CatStrategyParam(name=name, value=value)
    )

    __table_args__ = (
        CheckConstraint(_LIMITS, name="limits"),
        CheckConstraint("timeout >= 0", name="timeout"),
        CheckConstraint("pre_load_bars >= 0", name="pre_load_bars"),
        CheckConstraint("feeds >= 0", name="feeds"),
    )


class StrategyParam(Base):
    """A setting of a strategy that a bot runs."""

    __tablename__ = "strategy_params"

    str_id: Mapped[int] = mapped_column(ForeignKey("strategies.str_id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class Strategy(Versioned, Base):
    """A strategy of the catalog as one bot runs it."""

    __tablename__ = "strategies"

    str_id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    bot_id: Mapped[int] = mapped_column(ForeignKey("bots.bot_id", ondelete="CASCADE"), index=True)
    cat_str_id: Mapped[int] = mapped_column(ForeignKey("cat_strategies.cat_str_id", ondelete="RESTRICT"), index=True)
    name: Mapped[str | None] = mapped_column(String(50))
    take_profit: Mapped[Decimal | None]
    stop_loss: Mapped[Decimal | None]
    trailing_stop: Mapped[Decimal | None]
    timeout: Mapped[int | None]
    leverage: Mapped[Decimal] = mapped_column(server_default=text("1"))
    size_pct: Mapped[Decimal | None]
    """The size of a position in percent of the funds; ``size`` says it in ``size_currency`` instead."""
    size: Mapped[Decimal | None]
    size_currency: Mapped[str] = mapped_column(String(15), server_default="USD")
    pre_load_bars: Mapped[int] = mapped_column(SmallInteger, server_default=text("200"))
    feeds_count: Mapped[int] = mapped_column(SmallInteger, server_default=text("2"))
    pairs: Mapped[bool] = mapped_column(server_default=text("false"))
    active: Mapped[bool] = mapped_column(server_default=text("true"))
    timestamp: Mapped[datetime] = mapped_column(server_default=func.now())

    bot: Mapped["Bot"] = relationship(lazy="raise", viewonly=True)
    cat_strategy: Mapped[CatStrategy] = relationship(lazy="raise", viewonly=True)
    feeds_list: Mapped[list[Feed]] = relationship(lazy="raise", viewonly=True, order_by=Feed.order)
    param_rows: Mapped[dict[str, StrategyParam]] = relationship(
        collection_class=attribute_keyed_dict("name"),
        cascade="all, delete-orphan",
        passive_deletes=True,
        lazy="raise",
    )
    params: AssociationProxy[dict[str, str]] = association_proxy(
        "param_rows", "value", creator=lambda name, value: StrategyParam(name=name, value=value)
    )

    __table_args__ = (
        # The target of the composite foreign key that keeps a feed and its strategy with one bot.
        UniqueConstraint("str_id", "bot_id"),
        CheckConstraint("size IS NULL OR size_pct IS NULL", name="one_size"),
        CheckConstraint(_LIMITS, name="limits"),
        CheckConstraint("leverage > 0 AND leverage < 'Infinity'", name="leverage"),
        CheckConstraint("size > 0 AND size < 'Infinity'", name="size"),
        CheckConstraint("size_pct > 0 AND size_pct <= 100", name="size_pct"),
        CheckConstraint("timeout >= 0", name="timeout"),
        CheckConstraint("pre_load_bars >= 0", name="pre_load_bars"),
        CheckConstraint("feeds_count >= 0", name="feeds_count"),
    )
