"""The catalog of exchanges, and users' accounts there."""

from datetime import datetime

from sqlalchemy import ForeignKey, Identity, String, Text, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from service.base import Base, Versioned


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
    timestamp: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        UniqueConstraint("uid", "cat_ex_id", "ex_name"),
        # Targets of the composite foreign keys that keep owner, account and catalog of a row together.
        UniqueConstraint("ex_id", "uid"),
        UniqueConstraint("ex_id", "uid", "cat_ex_id"),
    )
