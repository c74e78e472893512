"""Users."""

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Final

from sqlalchemy import CheckConstraint, Enum, ForeignKey, Identity, Index, String, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from contracts.types import Mail
from service.base import Base, Versioned

if TYPE_CHECKING:
    from service.models import Bot, DryTrade, Exchange, ExchangeHistory, Order, Trade


class RoleEnum(StrEnum):
    ADMIN = "ADMIN"
    USER = "USER"


class User(Versioned, Base):
    """Who owns exchange accounts and bots."""

    __tablename__ = "users"
    secrets: ClassVar[frozenset[str]] = frozenset({"password", "f2a"})

    uid: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    mail: Mapped[str] = mapped_column(String(80), info={"type": Mail})
    password: Mapped[str | None] = mapped_column(String(255))
    """A hash, never the password. Without one the user cannot log in."""
    f2a: Mapped[str] = mapped_column(Text, server_default="")
    """The secret of the second factor as `service.vault` keeps it; empty without one."""
    role: Mapped[RoleEnum] = mapped_column(
        Enum(RoleEnum, native_enum=False, create_constraint=True, length=10, name="role"),
        server_default=RoleEnum.USER.value,
    )
    name: Mapped[str] = mapped_column(String(50), server_default="")
    lastname: Mapped[str] = mapped_column(String(50), server_default="")
    phone: Mapped[str] = mapped_column(String(20), server_default="")
    id_num: Mapped[str] = mapped_column(String(15), server_default="")
    note: Mapped[str | None] = mapped_column(Text)
    manager: Mapped[int | None] = mapped_column(ForeignKey("users.uid", ondelete="SET NULL"))
    external_id: Mapped[str | None] = mapped_column(String(64), unique=True)
    timestamp: Mapped[datetime] = mapped_column(server_default=func.now())
    active: Mapped[bool] = mapped_column(server_default=text("true"))

    manager_user: Mapped["User | None"] = relationship(
        remote_side="User.uid", back_populates="managed_users", lazy="raise"
    )
    managed_users: Mapped[list["User"]] = relationship(back_populates="manager_user", lazy="raise")
    exchanges: Mapped[list["Exchange"]] = relationship(lazy="raise", viewonly=True, order_by="Exchange.ex_id")
    bots: Mapped[list["Bot"]] = relationship(lazy="raise", viewonly=True, order_by="Bot.bot_id")
    # What is traded refers to its user by way of the account.
    orders: Mapped[list["Order"]] = relationship(
        primaryjoin="User.uid == foreign(Order.uid)", lazy="raise", viewonly=True
    )
    trades: Mapped[list["Trade"]] = relationship(
        primaryjoin="User.uid == foreign(Trade.uid)", lazy="raise", viewonly=True
    )
    dry_trades: Mapped[list["DryTrade"]] = relationship(
        primaryjoin="User.uid == foreign(DryTrade.uid)", lazy="raise", viewonly=True
    )
    exchange_history: Mapped[list["ExchangeHistory"]] = relationship(
        primaryjoin="User.uid == foreign(ExchangeHistory.uid)", lazy="raise", viewonly=True
    )

    __table_args__ = (
        # One mail address is one user, however it is capitalized.
        Index("uq_users_lower_mail", func.lower(mail), unique=True),
        Index("ix_users_manager", "manager", "uid"),
        Index("ix_users_active", "uid", postgresql_where=text("active")),
        CheckConstraint("manager <> uid", name="manager_is_another"),
    )


SEARCHED_TEXT: Final = (
    "lower(name || ' ' || lastname || ' ' || mail || ' ' || coalesce(external_id, '') || ' ' || phone "
    "|| ' ' || id_num)"
)
"""Where a search for users looks. Where PostgreSQL has trigrams, the migrations make an index of this very text."""
