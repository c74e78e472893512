"""What every repository has. Repositories flush and record events; they never commit by themselves."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, ClassVar, Final, Generic, NamedTuple, TypeVar

import sqlalchemy
from pydantic import BeforeValidator, Field, Strict, TypeAdapter, ValidationError
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Enum,
    Float,
    Integer,
    Numeric,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    UniqueConstraint,
    any_,
    func,
    inspect,
    select,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from contracts.base import Event, View, refusal_of
from contracts.errors import ErrorCode, Refusal
from contracts.sealing import is_secret_name
from contracts.types import STORABLE, ExactDecimal, Flag, Instant, Statistic, Text
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
        """A new row with these values; see `fitting` for what is refused."""
        event = self._announced(self.created, "create")
        row = self.model(**fitting(self.model, data))
        self.session.add(row)
        await self.session.flush()
        record(self.session, event, after=self._image(row))
        return row

    async def update(self, id: int, updates: dict[str, Any], *, expected_version: int | None = None) -> T:  # noqa: A002
        """The row with ``updates`` applied; no new version and no event if nothing differs.

        ``not_found`` without such a row, ``conflict`` if it is not at ``expected_version``.
        """
        event = self._announced(self.updated, "update")
        row = await self._locked(id, self._key, whole=moves_key(self.model, updates))
        check_version(row, expected_version)
        values = self._changeable(updates)
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
        row = await self._locked(id, self._key, whole=True)
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

    async def _locked(self, id: int, field: str, *, whole: bool = False) -> T:  # noqa: A002
        """The row, locked until the transaction ends; ``not_found`` names ``field``. See `locked`."""
        return await locked(self.session, self.model, id, field, whole=whole)

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
        """The values, if all are of columns that can be given another one, and fit them."""
        mapper = inspect(self.model)
        fixed = {mapper.get_property_by_column(column).key for column in mapper.primary_key}
        for name in values:
            if name in fixed:
                raise Refusal(ErrorCode.VALIDATION, "is no column that can be changed", field=name)
        return fitting(self.model, values)


def fitting(model: type[Base], data: Mapping[str, Any]) -> dict[str, Any]:
    """The values as columns of ``model`` take them; raises `Refusal` for a name that is none, or what does not fit.

    What only the database can tell (what is taken, missing, unknown or against a rule of the table) it says itself,
    by an IntegrityError.
    """
    mapper = inspect(model)
    synonyms = {name: synonym.name for name, synonym in mapper.synonyms.items()}
    values = {}
    for name, value in exact(dict(data)).items():
        attribute = mapper.column_attrs.get(synonyms.get(name, name))
        column = None if attribute is None else attribute.columns[0]
        if not isinstance(column, Column) or column.identity is not None or column is mapper.version_id_col:
            raise Refusal(ErrorCode.VALIDATION, "is no column that can be set", field=name)
        try:
            values[name] = None if value is None else _type_of(column).validate_python(value)
        except ValidationError as error:
            raise Refusal(ErrorCode.VALIDATION, refusal_of(error).message, field=name) from None
    return values


@cache
def _type_of(column: Column[Any]) -> TypeAdapter[Any]:
    """What a column takes: by the types of the messages, so that it is said in the same words."""
    kind, taken = column.type, column.info.get("type", Any)
    if isinstance(kind, Enum):
        taken = kind.enum_class
    elif isinstance(kind, String) and taken is Any:
        taken = Annotated[str, Field(max_length=kind.length), STORABLE] if kind.length else Text
    elif isinstance(kind, Boolean):
        taken = Flag
    elif isinstance(kind, Integer):
        bits = 16 if isinstance(kind, SmallInteger) else 64 if isinstance(kind, BigInteger) else 32
        taken = Annotated[int, Strict(), Field(ge=-(2 ** (bits - 1)), lt=2 ** (bits - 1))]
    elif isinstance(kind, Float):
        taken = Statistic
    elif isinstance(kind, Numeric):
        taken = Annotated[ExactDecimal, BeforeValidator(_whole)]
    elif isinstance(kind, DateTime):
        taken = Instant
    return TypeAdapter(taken)


def _whole(value: Any) -> Any:
    """Whole numbers have all their digits in Python, however many they are."""
    return Decimal(value) if type(value) is int else value


async def locked(
    session: AsyncSession,
    model: type[M],
    id: int,  # noqa: A002
    field: str,
    *,
    whole: bool = False,
) -> M:
    """The row, locked until the transaction ends; ``not_found`` names ``field``.

    Others may go on storing rows that refer to it (trades of a bot that is edited), unless it is locked as a
    ``whole``: for a deletion, a change of its keys, or if nothing may be added to what refers to it.
    """
    row = await session.get(model, id, with_for_update={"key_share": not whole}, populate_existing=True)
    if row is None:
        raise Refusal(ErrorCode.NOT_FOUND, f"there is no {model.__name__.lower()} {id}", field=field)
    return row


def moves_key(model: type[Base], names: Iterable[str]) -> bool:
    """Whether one of these columns is part of a key, by which rows of other tables may refer to this one."""
    mapper = inspect(model)
    keys = {
        column.key
        for item in (*mapper.local_table.constraints, *mapper.local_table.indexes)  # type: ignore[attr-defined]
        if isinstance(item, UniqueConstraint | PrimaryKeyConstraint) or getattr(item, "unique", False)
        for column in item.columns
    }
    synonyms = {name: synonym.name for name, synonym in mapper.synonyms.items()}
    columns = {synonyms.get(name, name) for name in names} & set(mapper.column_attrs.keys())
    return any(mapper.column_attrs[name].columns[0].key in keys for name in columns)


class Gone(NamedTuple):
    """What was deleted of one owner's rows."""

    number: int
    last: int
    """The highest of their ids."""


def _some(key: InstrumentedAttribute[int], *conditions: Any) -> ColumnElement[bool]:
    some = select(key).where(*conditions).limit(_ROWS_PER_DELETE).scalar_subquery()
    # As an array, because of ``IN`` the planner expects so many that it reads the table from end to end.
    return key == any_(func.array(some))


async def delete_by_owner(
    session: AsyncSession, key: InstrumentedAttribute[int], owner: InstrumentedAttribute[int], *conditions: Any
) -> dict[int, Gone]:
    """Delete the rows that meet ``conditions``, not too many at a time for one statement; says whose they were."""
    deleted: dict[int, Gone] = {}
    while True:
        some = _some(key, *conditions)
        rows = sqlalchemy.delete(key.class_).where(some).returning(owner.label("owner"), key.label("id"))
        gone = rows.cte("gone")
        step = (
            await session.execute(
                select(gone.c.owner, func.count(), func.max(gone.c.id)).group_by(gone.c.owner).order_by(gone.c.owner)
            )
        ).all()
        for of, count, last in step:
            before = deleted.get(of, Gone(0, 0))
            deleted[of] = Gone(before.number + count, max(before.last, last))
        if sum(count for _, count, _ in step) < _ROWS_PER_DELETE:
            return deleted


async def delete_in_steps(session: AsyncSession, key: InstrumentedAttribute[int], *conditions: Any) -> int:
    """Delete the rows that meet ``conditions``, not too many at a time for one statement; gives their number."""
    deleted = 0
    while True:
        some = _some(key, *conditions)
        result = await session.execute(
            sqlalchemy.delete(key.class_).where(some),
            execution_options={"synchronize_session": False},
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


def refuse_secret_names(params: Iterable[str]) -> None:
    """Settings are shown to everybody, so none may be called like a secret."""
    for name in params:
        if is_secret_name(name):
            raise Refusal(ErrorCode.VALIDATION, "is the name of a secret", field=f"params.{name}")


def check_version(row: Any, expected: int | None) -> None:
    """Refuse a change that was decided on an older version of the row."""
    if expected is not None and row.row_version != expected:
        raise Refusal(
            ErrorCode.CONFLICT, f"the row is at version {row.row_version}, not {expected}", field="expected_version"
        )
