"""The declarative base: how tables, constraints and columns are named, and how a row becomes a dictionary."""

from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any, ClassVar, Self

from sqlalchemy import DateTime, MetaData, Numeric, func, inspect, text
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column

# Predictable names, so that a violated constraint is told by its name (errors.py) and dropped by a migration.
NAMING_CONVENTION = {
    "pk": "pk_%(table_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
}


class Base(DeclarativeBase):
    """A row of a table."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    # NUMERIC without a scale gives back the very digits it was given, trailing zeros included.
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: DateTime(timezone=True), Decimal: Numeric()}
    # Server-made values (ids, timestamps) come back with the INSERT or UPDATE itself; nothing is loaded later.
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012 - SQLAlchemy declares it an instance's

    secrets: ClassVar[frozenset[str]] = frozenset()
    """Columns that `to_dict` leaves out."""

    def to_dict(self) -> dict[str, Any]:
        """Every column but the secret ones, ready for ``json.dumps``: money as digits, instants as ISO 8601."""
        return {
            column.key: _plain(getattr(self, column.key))
            for column in inspect(type(self)).column_attrs
            if column.key not in self.secrets
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """A new row with these columns; raises TypeError for a name that is none."""
        return cls(**data)


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    return value if isinstance(value, int | float | str | dict | list | None) else str(value)


class Versioned:
    """A row that changes: ``row_version`` counts from 1, and writing from an outdated copy fails."""

    row_version: Mapped[int] = mapped_column(server_default=text("1"))
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())

    @declared_attr.directive
    @classmethod
    def __mapper_args__(cls) -> dict[str, Any]:
        return {"eager_defaults": True, "version_id_col": cls.row_version}


def is_partition(table: str | None) -> bool:
    """Partitions come and go with time; the models know only what they are partitions of."""
    return table is not None and "_p_" in table
