"""What every repository has. Repositories flush and record events; they never commit by themselves."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Generic, TypeVar

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.errors import ErrorCode, Refusal
from service.base import Base

T = TypeVar("T", bound=Base)


class BaseRepository(Generic[T]):
    """Rows of one table in one session.

    A method that changes a row records its change event in the same session, so an event leaves exactly if the
    change is committed, whoever commits.
    """

    def __init__(self, session: AsyncSession, model: type[T]) -> None:
        self.session = session
        self.model = model

    async def get_by_id(self, id: int) -> T | None:  # noqa: A002 - the name callers know
        """The row with this primary key, or None."""
        return await self.session.get(self.model, id)

    async def get_all(self) -> list[T]:
        """All rows by primary key. Meant for small tables; lists of users' data come by page."""
        return list(await self.session.scalars(select(self.model).order_by(*self.model.__table__.primary_key)))

    async def commit(self) -> None:
        """End the transaction that all repositories on this session share."""
        await self.session.commit()

    async def rollback(self) -> None:
        """Undo everything since the last commit of this session."""
        await self.session.rollback()

    async def flush(self) -> None:
        """Send pending changes to the database without committing them."""
        await self.session.flush()

    def error_print(self, error: Exception, method: str, query: str = "") -> str:
        """One line for a log: what failed, where and on which query."""
        return f"Repository error in {method}: {error} | Query: {query}"

    async def _locked(self, id: int, field: str) -> T:  # noqa: A002
        """The row, locked until the transaction ends; ``not_found`` names ``field``."""
        row = await self.session.get(self.model, id, with_for_update=True, populate_existing=True)
        if row is None:
            raise Refusal(ErrorCode.NOT_FOUND, f"there is no {self.model.__name__.lower()} {id}", field=field)
        return row


def exact(data: dict[str, Any]) -> dict[str, Any]:
    """The values with every float as the decimal it is written as: 0.1 is a tenth, not the double next to it.

    An instant without an offset is in UTC, as callers of the manual's methods mean it.
    """
    return {name: _exact(value) for name, value in data.items()}


def _exact(value: Any) -> Any:
    if isinstance(value, float):
        return Decimal(repr(value))
    return in_utc(value) if isinstance(value, datetime) else value


def in_utc(instant: datetime) -> datetime:
    """The instant with its offset, which is zero if it has none."""
    return instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)


def differing(row: Base, values: dict[str, Any]) -> list[str]:
    """Names of the columns in which ``row`` is not what ``values`` say; amounts are compared as numbers."""
    return [name for name, value in values.items() if getattr(row, name) != value]


def check_version(row: Any, expected: int | None) -> None:
    """Refuse a change that was decided on an older version of the row."""
    if expected is not None and row.row_version != expected:
        raise Refusal(
            ErrorCode.CONFLICT, f"the row is at version {row.row_version}, not {expected}", field="expected_version"
        )
