"""The catalog of exchanges, and users' accounts there."""

from datetime import datetime
from typing import TYPE_CHECKING, ClassVar

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    String,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from service.base import Base, Versioned

if TYPE_CHECKING:
    from service.models import Balance, BotExchange, ExchangeHistory, Order, Trade, User


class CatExchange(Versioned, Base):
    """An exchange that exists in the world; the template of accounts."""

    __tablename__ = "cat_exchanges"

    cat_ex_id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    ohlcv_view: Mapped[str] = mapped_column(Text, server_default="")
    active: Mapped[bool] = mapped_column(server_default=text("true"))
    timestamp: Mapped[datetime] = mapped_column(server_default=func.now())


class CatExchangeParam(Base):
    """A setting that holds for every account of a catalog exchange."""

    __tablename__ = "cat_exchange_params"

    cat_ex_id: Mapped[int] = mapped_column(
        ForeignKey("cat_exchanges.cat_ex_id", ondelete="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class ExchangeParam(Base):
    """A setting of one account, which goes before the catalog's of the same name."""

    __tablename__ = "exchange_params"

    ex_id: Mapped[int] = mapped_column(ForeignKey("exchanges.ex_id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class ExchangeCredential(Base):
    """The credentials of an account as `service.vault` keeps them.

    Apart from the account, so that whoever reads accounts does not read these, and a new storage key does not make
    a new version of the account.
    """

    __tablename__ = "exchange_credentials"
    secrets: ClassVar[frozenset[str]] = frozenset({"api_key", "api_secret", "passphrase"})

    ex_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    uid: Mapped[int]
    """The account's owner, to whom the stored forms are bound: they cannot go to another one with the account."""
    api_key: Mapped[str | None] = mapped_column(Text)
    api_secret: Mapped[str | None] = mapped_column(Text)
    passphrase: Mapped[str | None] = mapped_column(Text)
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())

    __table_args__ = (
        ForeignKeyConstraint(["ex_id", "uid"], ["exchanges.ex_id", "exchanges.uid"], ondelete="CASCADE"),
        CheckConstraint("num_nonnulls(api_key, api_secret, passphrase) > 0", name="holds_something"),
    )


class Exchange(Versioned, Base):
    """A user's account on an exchange."""

    __tablename__ = "exchanges"

    ex_id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    uid: Mapped[int] = mapped_column(ForeignKey("users.uid", ondelete="CASCADE"))
    cat_ex_id: Mapped[int] = mapped_column(ForeignKey("cat_exchanges.cat_ex_id", ondelete="RESTRICT"), index=True)
    ex_name: Mapped[str] = mapped_column(String(50))
    account: Mapped[str] = mapped_column(String(50), server_default="")
    sandbox: Mapped[bool] = mapped_column(server_default=text("false"))
    active: Mapped[bool] = mapped_column(server_default=text("true"))
    has_credentials: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether there is a row of `ExchangeCredential` for it."""
    timestamp: Mapped[datetime] = mapped_column(server_default=func.now())

    user: Mapped["User"] = relationship(lazy="raise", viewonly=True)
    cat_exchange: Mapped["CatExchange"] = relationship(lazy="raise", viewonly=True)
    bot_exchanges: Mapped[list["BotExchange"]] = relationship(lazy="raise", viewonly=True)
    orders: Mapped[list["Order"]] = relationship(lazy="raise", viewonly=True)
    trades: Mapped[list["Trade"]] = relationship(lazy="raise", viewonly=True)
    balances: Mapped[list["Balance"]] = relationship(lazy="raise", viewonly=True, order_by="Balance.currency")
    history: Mapped[list["ExchangeHistory"]] = relationship(
        lazy="raise", viewonly=True, order_by="ExchangeHistory.history_id"
    )

    __table_args__ = (
        Index("ix_exchanges_active", "ex_id", postgresql_where=text("active")),
        UniqueConstraint("uid", "cat_ex_id", "ex_name"),
        # Targets of the composite foreign keys that keep owner, account and catalog of a row together.
        UniqueConstraint("ex_id", "uid"),
        UniqueConstraint("ex_id", "cat_ex_id"),
        UniqueConstraint("ex_id", "uid", "cat_ex_id"),
    )
