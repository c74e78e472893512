"""Columns by the manual's names, for models of one's own beside these."""

from decimal import Decimal

from sqlalchemy import Double, Identity, Integer, Numeric
from sqlalchemy.orm import MappedColumn, mapped_column

__all__ = ["Double", "double_precision", "double_precision_nullable", "money", "serial_primary_key"]


def serial_primary_key() -> MappedColumn[int]:
    """A primary key that the database counts up."""
    return mapped_column(Integer, Identity(), primary_key=True)


def double_precision() -> MappedColumn[float]:
    """A ratio or a mean. Never money, which a double cannot hold: 0.1 is none; see `money`."""
    return mapped_column(Double, nullable=False)


def double_precision_nullable() -> MappedColumn[float | None]:
    """A ratio or a mean that may be unknown."""
    return mapped_column(Double, nullable=True)


def money(*, nullable: bool = False) -> MappedColumn[Decimal]:
    """An amount or a price: a `Decimal` that comes back with the very digits it was stored with."""
    return mapped_column(Numeric, nullable=nullable)
