"""What every repository has. Repositories flush and record events; they never commit by themselves."""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar, Final, Generic, TypeVar

import sqlalchemy
from sqlalchemy import inspect, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from contracts.base import Event, View
from contracts.errors import ErrorCode, Refusal
from service.base import Base
from service.outbox import record

T = TypeVar("T", bound=Base)
M = TypeVar("M", bound=Base)

# Trades of years are too many for the time a single statement may take.
_ROWS_PER_DELETE: Final = 10_000


class BaseRepository(Generic[T]):
    """Rows of one table in one session.

    A method that changes a row records its change event in the same session, so an event leaves exactly if the
    change is committed, whoever commits. A repository that names its view and events has `create`, `update` and
    `delete`, if it does not have them in words of its own; one that leaves an event out refuses to make a change
    that nobody would hear of.
    """

    view: ClassVar[type[View] | None] = None
    """How events show a row."""
    created: ClassVar[type[Event[Any]] | None] = None
    updated: ClassVar[type[Event[Any]] | None] = None
    deleted: ClassVar[type[Event[Any]] | None] = None
    never: ClassVar[Mapping[str, str]] = {}
    """Those of the three that rows of this table do not get, and why or what instead."""

    def __init__(self, session: AsyncSession, model: type[T]) -> None:
        self.session = session
        self.model = model

    async def get_by_id(self, id: int) -> T | None:  # noqa: A002 - the name callers know
        """The row with this primary key, or None."""
        return await self.session.get(self.model, id)

    async def get_all(self) -> list[T]:
        """All rows by primary key. Meant for small tables; lists of users' data come by page."""
        return list(await self.session.scalars(select(self.model).order_by(*self.model.__table__.primary_key)))

    async def create(self, data: dict[str, Any]) -> T:
        """A new row with these values. Raises IntegrityError if it breaks a rule of the table."""
        event = self._announced(self.created, "create")
        row = self.model(**exact(data))
        self.session.add(row)
        await self.session.flush()
        record(self.session, event, after=self._image(row))
        return row

    async def update(self, id: int, updates: dict[str, Any], *, expected_version: int | None = None) -> T:  # noqa: A002
        """The row with ``updates`` applied; no new version and no event if nothing differs.

        ``not_found`` without such a row, ``conflict`` if it is not at ``expected_version``.
        """
        event = self._announced(self.updated, "update")
        row = await self._locked(id, self._key)
        check_version(row, expected_version)
        values = self._changeable(exact(updates))
        if not differing(row, values):
            return row
        before = self._image(row)
        for name, value in values.items():
            setattr(row, name, value)
        await self.session.flush()
        record(self.session, event, before=before, after=self._image(row))
        return row

    async def delete(self, id: int) -> None:  # noqa: A002
        """Take the row away; ``not_found`` without one."""
        event = self._announced(self.deleted, "delete")
        row = await self._locked(id, self._key)
        before = self._image(row)
        await self.session.delete(row)
        await self.session.flush()
        record(self.session, event, before=before)

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

    @property
    def _key(self) -> str:
        """The name of the primary key."""
        return str(inspect(self.model).primary_key[0].name)

    async def _locked(self, id: int, field: str) -> T:  # noqa: A002
        """The row, locked until the transaction ends; ``not_found`` names ``field``."""
        return await locked(self.session, self.model, id, field)

    def _announced(self, event: type[Event[Any]] | None, method: str) -> type[Event[Any]]:
        if method in self.never:
            raise Refusal(ErrorCode.CONFLICT, self.never[method])
        if event is None:
            raise NotImplementedError(f"{type(self).__name__} has no {method}: there is no event that announces it")
        return event

    def _image(self, row: T) -> View:
        if self.view is None:
            raise NotImplementedError(f"{type(self).__name__} has no view that shows its rows in events")
        return self.view.model_validate(row)

    def _changeable(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values, if all are of columns that can be given another one."""
        mapper = inspect(self.model)
        fixed = {mapper.get_property_by_column(column).key for column in mapper.primary_key} | {"row_version"}
        for name in values:
            if name in fixed or name not in {*mapper.column_attrs.keys(), *mapper.synonyms.keys()}:
                raise Refusal(ErrorCode.VALIDATION, "is no column that can be changed", field=name)
        return values


async def locked(session: AsyncSession, model: type[M], id: int, field: str) -> M:  # noqa: A002
    """The row, locked until the transaction ends; ``not_found`` names ``field``."""
    row = await session.get(model, id, with_for_update=True, populate_existing=True)
    if row is None:
        raise Refusal(ErrorCode.NOT_FOUND, f"there is no {model.__name__.lower()} {id}", field=field)
    return row


async def delete_in_steps(session: AsyncSession, key: InstrumentedAttribute[int], *conditions: Any) -> int:
    """Delete the rows that meet ``conditions``, not too many at a time for one statement; gives their number."""
    deleted = 0
    while True:
        some = select(key).where(*conditions).limit(_ROWS_PER_DELETE)
        result = await session.execute(
            sqlalchemy.delete(key.class_).where(key.in_(some)), execution_options={"synchronize_session": False}
        )
        step: int = result.rowcount  # type: ignore[attr-defined]
        deleted += step
        if step < _ROWS_PER_DELETE:
            return deleted


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


def differing(row: Any, values: dict[str, Any]) -> list[str]:
    """Names of the columns in which ``row`` is not what ``values`` say; amounts are compared as numbers."""
    return [name for name, value in values.items() if getattr(row, name) != value]


def check_version(row: Any, expected: int | None) -> None:
    """Refuse a change that was decided on an older version of the row."""
    if expected is not None and row.row_version != expected:
        raise Refusal(
            ErrorCode.CONFLICT, f"the row is at version {row.row_version}, not {expected}", field="expected_version"
        )
