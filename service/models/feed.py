"""Which prices bots listen to."""

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    SmallInteger,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from service.base import Base, Versioned
from service.models.symbol import Symbol


class Feed(Versioned, Base):
    """A symbol in a timeframe that a bot listens to, for one of its strategies or for all of it."""

    __tablename__ = "feeds"

    feed_id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    bot_id: Mapped[int] = mapped_column(ForeignKey("bots.bot_id", ondelete="CASCADE"))
    str_id: Mapped[int | None]
    symbol_id: Mapped[int]
    cat_ex_id: Mapped[int]
    ex_id: Mapped[int | None]
    timeframe: Mapped[str] = mapped_column(String(10))
    order: Mapped[int] = mapped_column(SmallInteger)
    enabled: Mapped[bool] = mapped_column(server_default=text("true"))

    symbol: Mapped[Symbol] = relationship(lazy="raise", viewonly=True)

    __table_args__ = (
        # The strategy is the bot's, the account one it may use, and the symbol is listed where the account is.
        ForeignKeyConstraint(["str_id", "bot_id"], ["strategies.str_id", "strategies.bot_id"], ondelete="CASCADE"),
        ForeignKeyConstraint(
            ["bot_id", "ex_id"], ["bot_exchanges.bot_id", "bot_exchanges.ex_id"], ondelete="SET NULL (ex_id)"
        ),
        ForeignKeyConstraint(
            ["ex_id", "cat_ex_id"], ["exchanges.ex_id", "exchanges.cat_ex_id"], ondelete="SET NULL (ex_id)"
        ),
        ForeignKeyConstraint(
            ["symbol_id", "cat_ex_id"], ["symbols.symbol_id", "symbols.cat_ex_id"], ondelete="RESTRICT"
        ),
        UniqueConstraint("bot_id", "str_id", "symbol_id", "timeframe", postgresql_nulls_not_distinct=True),
        # Told at the end of a statement, so that one statement can let feeds change places.
        UniqueConstraint("bot_id", "order", deferrable=True, initially="IMMEDIATE"),
        CheckConstraint("timeframe ~ '^(tick|[1-9][0-9]{0,3}[smhdwM])$'", name="timeframe"),
        CheckConstraint('"order" >= 0', name="order"),
        Index(None, "str_id"),
        Index(None, "symbol_id"),
        Index(None, "ex_id"),
    )
