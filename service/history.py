"""Compares rows with the record of their events: each version of each row is announced once, and nothing else is.

The record is read from one end to the other beside the rows, in small pieces, each with a transaction of its own so
that nothing is held up; so what is written meanwhile may look amiss. Whatever does is judged again in one snapshot.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from service.announced import ABOUT_NO_ROW, ANNOUNCED, Announced
from service.database import SessionMaker

Progress = Callable[[str, int], None]
"""Told what is being looked at, and how much was so far."""

_EVENTS_AT_ONCE: Final = 100
_ROWS_AT_ONCE: Final = 5_000
_JUDGED_AT_MOST: Final = 10_000
"""Rows of a table that are judged again; more than these are amiss if they are."""
_OUT_OF_ORDER: Final = 10_000
"""How far ids may lie from the order in which their transactions began."""


class Reading:
    """A transaction that can only read."""

    def __init__(self, sessions: SessionMaker, isolation_level: str = "READ COMMITTED") -> None:
        self._session = sessions()
        self._options = {"postgresql_readonly": True, "isolation_level": isolation_level}

    async def __aenter__(self) -> AsyncSession:
        await self._session.connection(execution_options=self._options)
        return self._session

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()


Begin = Callable[..., Reading]
"""Makes a `Reading`, of an isolation level if need be."""


_TABLE_OF: Final = {event: table.table for table in ANNOUNCED for event in table.events}
_PARAMS: Final = "exchange.params_changed"


@dataclass
class Compared:
    """What the comparison of a table came to."""

    table: str
    rows: int = 0
    """Rows that were looked at."""
    problems: list[str] = field(default_factory=list)


@dataclass
class Comparison:
    """What the comparison of everything came to."""

    begins: datetime | None
    """From when on there is a record; None if there is none yet."""
    tables: list[Compared]
    events: Counter[str]
    """How many events of each type were read."""
    gaps: list[str]
    """Numbers of events that are missing or there twice."""
    deleted: dict[str, set[str]]
    """By table the keys of rows whose deletion is on record."""

    def may_be_gone(self, table: str, key: str) -> bool:
        """Whether an event tells that this row is gone, or that rows of the table went with something else."""
        [announced] = [one for one in ANNOUNCED if one.table == table]
        return key in self.deleted[table] or any(self.events[kind] for kind in announced.goes_with)


async def compare(reading: Begin, since: datetime, progress: Progress) -> Comparison:
    """Compare what was written since then, or since there is a record, with what was announced."""
    async with reading() as session:
        begins = await _begin(session)
        streams = {row.type: row.sequence for row in await session.execute(text("SELECT * FROM event_streams"))}
    if begins is None:
        return Comparison(None, [], Counter(), [], defaultdict(set))
    start = max(since, begins)
    first = _Look(reading, start)
    await first.read(progress)
    suspects = first.suspects()
    gaps = first.gaps(streams)
    problems: dict[str, list[str]] = {}
    if gaps or any(suspects.values()):
        progress("looking again", sum(map(len, suspects.values())))
        problems, gaps = await _judge(reading, start, suspects, streams)
    tables = [
        Compared(book.table.table, book.rows, problems.get(book.table.table, [])) for book in first.books.values()
    ]
    return Comparison(begins, tables, first.events, gaps, first.deleted)


async def _begin(session: AsyncSession) -> datetime | None:
    """From when on rows must be on record; None if nothing is."""
    first = (
        await session.execute(
            text(
                "SELECT id, published_at, occurred_at FROM published_events WHERE keys <> '{}' "
                "ORDER BY published_at, id LIMIT 1"
            )
        )
    ).one_or_none()
    if first is None:
        return None
    # Of a transaction that began before the oldest event on record was published, the event may be too old for it.
    begins: datetime = first.occurred_at if first.id == 1 else first.published_at
    return begins


@dataclass
class _Book:
    """What was announced of a table and what was seen in it, as far as the one does not answer the other."""

    table: Announced
    announced: dict[str, int] = field(default_factory=dict)
    """The last version that was announced of a row, below 0 if that was its end."""
    waiting: dict[str, int] = field(default_factory=dict)
    """The version of a row that was seen and is not announced yet."""
    suspects: set[str] = field(default_factory=set)
    rows: int = 0
    after: int | None = None
    """The last id that was looked at, of a table that grows."""
    highest: int = 0

    def announce(self, key: str, version: int) -> None:
        last = self.announced.get(key)
        # Of a table that grows what fits is forgotten, so the second version may come first.
        if not _follows(last, version) or (last is None and self.table.grows and version > 2):  # noqa: PLR2004
            self.suspects.add(key)
        self.announced[key] = version
        if self.table.grows:
            self.highest = max(self.highest, int(key))
        if self.waiting.get(key) == version:
            del self.waiting[key]
            self._settle(key)

    def see(self, key: str, version: int, *, is_new: bool) -> None:
        self.rows += is_new
        if self.announced.get(key) == version:
            self._settle(key)
        elif is_new or key in self.announced:
            self.waiting[key] = version

    def _settle(self, key: str) -> None:
        # Of millions of rows that never change nothing has to be kept. One that is announced again is left over.
        if self.table.grows:
            del self.announced[key]


class _Look:
    """A way through the record and the tables beside it."""

    def __init__(self, reading: Begin, start: datetime) -> None:
        self._reading = reading
        self._start = start
        self.books = {table.table: _Book(table) for table in ANNOUNCED}
        self.events: Counter[str] = Counter()
        self.deleted: defaultdict[str, set[str]] = defaultdict(set)
        self._numbers = _Numbers()

    async def read(self, progress: Progress) -> None:
        growing = [book for book in self.books.values() if book.table.grows]
        for book in growing:
            book.after = await self._before_the_first(book.table)
        async for page in _pages(self._reading, self._start):
            for row in page:
                self.events[row.type] += 1
                self._numbers.note(row)
                for table, key, version in _changes(row):
                    self.books[table].announce(key, version)
                    if version < 0:
                        self.deleted[table].add(key)
            progress("events on record", self.events.total())
            for book in growing:
                await self._see_rows(book, book.highest, progress)
        for book in growing:
            await self._see_rows(book, None, progress)
        for book in self.books.values():
            if not book.table.grows:
                await self._see_changed(book, progress)

    def suspects(self) -> dict[str, set[str]]:
        """By table the keys of rows that are to be judged."""
        found = {}
        for name, book in self.books.items():
            left = book.announced if book.table.grows else ()
            found[name] = {*book.suspects, *book.waiting, *left}
        return found

    def gaps(self, streams: dict[str, int]) -> list[str]:
        return self._numbers.gaps(streams)

    async def _before_the_first(self, table: Announced) -> int:
        """An id before those of the rows added since the start; ids and times are about in the same order."""
        [key] = table.key
        async with self._reading() as session:
            low, high = 0, await session.scalar(text(f"SELECT max({key}) FROM {table.table}")) or 0  # noqa: S608 - names from here, as below
            while high - low > _OUT_OF_ORDER:
                middle = (low + high) // 2
                added = await session.scalar(
                    text(f"SELECT {table.changed_at} FROM {table.table} WHERE {key} >= :id ORDER BY {key} LIMIT 1"),  # noqa: S608
                    {"id": middle},
                )
                low, high = (middle, high) if added is not None and added < self._start else (low, middle)
        return max(0, low - _OUT_OF_ORDER)

    async def _see_rows(self, book: _Book, highest: int | None, progress: Progress) -> None:
        """See the rows up to an id, or all that are left."""
        table = book.table
        [key] = table.key
        query = text(
            f"SELECT {key}::text AS key, {table.version} AS version, {table.changed_at} >= :start AS is_new "  # noqa: S608
            f"FROM {table.table} WHERE {key} > :after AND {key} <= :highest ORDER BY {key} LIMIT {_ROWS_AT_ONCE}"
        )
        while highest is None or (book.after or 0) < highest:
            started = time.monotonic()
            parameters = {"start": self._start, "after": book.after, "highest": highest or 2**63 - 1}
            async with self._reading() as session:
                rows = (await session.execute(query, parameters)).all()
            took = time.monotonic() - started
            for row in rows:
                book.see(row.key, row.version, is_new=row.is_new)
            book.after = int(rows[-1].key) if len(rows) == _ROWS_AT_ONCE else highest
            progress(table.table, book.rows)
            await asyncio.sleep(took)
            if len(rows) < _ROWS_AT_ONCE:
                return

    async def _see_changed(self, book: _Book, progress: Progress) -> None:
        """See all rows, and take those into account that were changed since the start or announced."""
        table = book.table
        key = ", ".join(table.key)
        last: Sequence[Any] | None = None
        left = dict.fromkeys(name for name, version in book.announced.items() if version > 0)
        while True:
            started = time.monotonic()
            names = [f":part_{n}" for n in range(len(table.key))]
            behind = f"WHERE ({key}) > ({', '.join(names)})" if last is not None else ""
            query = text(
                f"SELECT {key}, {_key_of(table)} AS of_row, {table.version} AS version, "  # noqa: S608
                f"{table.changed_at} >= :start AS is_new FROM {table.table} {behind} ORDER BY {key} "
                f"LIMIT {_ROWS_AT_ONCE}"
            )
            parts = {f"part_{n}": part for n, part in enumerate(last or ())}
            async with self._reading() as session:
                rows = (await session.execute(query, {"start": self._start, **parts})).all()
            took = time.monotonic() - started
            for row in rows:
                book.see(row.of_row, row.version, is_new=row.is_new)
                left.pop(row.of_row, None)
            if len(rows) < _ROWS_AT_ONCE:
                break
            last = rows[-1][: len(table.key)]
            progress(table.table, book.rows)
            await asyncio.sleep(took)
        book.suspects.update(left)


class _Numbers:
    """The numbers of the events of each type, which follow each other."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._gaps: list[str] = []

    def note(self, row: Any) -> None:
        if row.sequence is None:
            return  # it waits in the outbox
        last = self._last.get(row.type)
        if last is not None and row.sequence != last + 1:
            self._gaps.append(f"{row.type}: number {row.sequence} after {last}")
        self._last[row.type] = row.sequence

    def gaps(self, streams: dict[str, int]) -> list[str]:
        """What is amiss, also at the end: the last number of each type is known."""
        ends = [
            f"{kind}: numbers up to {streams[kind]} were given, the record ends with {last}"
            for kind, last in self._last.items()
            if last < streams.get(kind, 0)
        ]
        return [*self._gaps, *ends]


async def _pages(
    reading: Begin, start: datetime, session: AsyncSession | None = None
) -> AsyncIterator[Sequence[Any]]:
    """What was published since then, in order, and then what waits for it; as long as a page took the database rests.

    With a ``session`` all of one snapshot, without rests.
    """
    position: dict[str, Any] = {"at": start, "id": 0, "limit": _EVENTS_AT_ONCE}
    published = text(
        "SELECT published_at, id, type, sequence, transaction_id, keys, versions FROM published_events "
        "WHERE (published_at, id) > (:at, :id) ORDER BY published_at, id LIMIT :limit"
    )
    waiting = text(
        "SELECT NULL AS published_at, id, type, NULL AS sequence, transaction_id, keys, versions FROM outbox "
        "WHERE id > :id ORDER BY id LIMIT :limit"
    )
    for query in (published, waiting):
        while True:
            started = time.monotonic()
            if session is not None:
                rows = (await session.execute(query, position)).all()
            else:
                async with reading() as own:
                    rows = (await own.execute(query, position)).all()
            took = time.monotonic() - started
            if rows:
                position |= {"at": rows[-1].published_at, "id": rows[-1].id}
                yield rows
            if len(rows) < _EVENTS_AT_ONCE:
                break
            if session is None:
                await asyncio.sleep(took)
        position = {"id": 0, "limit": _EVENTS_AT_ONCE}


async def _judge(
    reading: Begin, start: datetime, suspects: dict[str, set[str]], streams: dict[str, int]
) -> tuple[dict[str, list[str]], list[str]]:
    """What is wrong with the suspects, and with the events' numbers, as one snapshot shows them."""
    numbers = _Numbers()
    kinds: set[str] = set()
    versions: dict[str, dict[str, list[int]]] = {
        name: {key: [] for key in sorted(keys, key=_in_order)[:_JUDGED_AT_MOST]} for name, keys in suspects.items()
    }
    problems: dict[str, list[str]] = {}
    async with reading(isolation_level="REPEATABLE READ") as session:
        async for page in _pages(reading, start, session):
            for event in page:
                kinds.add(event.type)
                numbers.note(event)
                for name, key, version in _changes(event):
                    if key in versions[name]:
                        versions[name][key].append(version)
        for table in ANNOUNCED:
            judged = versions[table.table]
            rows = await _rows(session, table, list(judged), start)
            may_go = not kinds.isdisjoint(table.goes_with)
            problems[table.table] = [
                f"{table.table} {key}: {wrong}"
                for key, announced in judged.items()
                if (wrong := out_of_order(announced) or misfit(announced, rows.get(key), may_go=may_go)) is not None
            ]
    return problems, numbers.gaps(streams)


@dataclass(frozen=True)
class Row:
    """A row that is there."""

    version: int
    is_changed: bool
    """Whether it was added or changed since the start, so that this is on record."""
    is_new: bool
    """Whether it is known to have been added since the start, so that its first version is on record."""


async def _rows(session: AsyncSession, table: Announced, keys: Sequence[str], start: datetime) -> dict[str, Row]:
    """The rows with these keys."""
    found: dict[str, Row] = {}
    is_number = len(table.key) == 1
    condition = f"{table.key[0]} = ANY(CAST(:keys AS bigint[]))" if is_number else f"{_key_of(table)} = ANY(:keys)"
    query = text(
        f"SELECT {_key_of(table)} AS key, {table.version} AS version, {table.changed_at} >= :start AS is_changed "  # noqa: S608
        f"FROM {table.table} WHERE {condition}"
    )
    for first in range(0, len(keys), _ROWS_AT_ONCE):
        some: Sequence[Any] = keys[first : first + _ROWS_AT_ONCE]
        values = [int(key) for key in some] if is_number else some
        for row in await session.execute(query, {"keys": values, "start": start}):
            found[row.key] = Row(row.version, row.is_changed, row.is_changed and table.grows)
    return found


def out_of_order(versions: Sequence[int]) -> str | None:
    """What is wrong with the order in which versions of a row were announced."""
    for last, version in pairwise(versions):
        if not _follows(last, version):
            return f"version {abs(version)} was announced after version {abs(last)}"
    return None


def misfit(versions: Sequence[int], row: Row | None, *, may_go: bool) -> str | None:
    """What is wrong with a row, or that there is none, where these versions of it were announced in this order."""
    last = versions[-1] if versions else None
    problem = None
    if row is None:
        if last is not None and last > 0 and not may_go:
            problem = "was announced, and is not there"
    elif last is None:
        problem = "was not announced" if row.is_changed else None
    elif last < 0:
        problem = "was announced as deleted, and is there"
    elif row.is_new and versions[0] != 1:
        problem = f"version 1 was not announced, version {versions[0]} was"
    elif row.version != last:
        problem = f"is at version {row.version}, and version {last} was announced last"
    return problem


def _follows(last: int | None, version: int) -> bool:
    """Whether a version may be announced after another; rows that came before the record begin anywhere."""
    if last is None:
        return True
    return version == 1 if last < 0 else abs(version) == last + 1


def _changes(row: Any) -> Iterable[tuple[str, str, int]]:
    """Table, key and version of the rows that an event is about."""
    if row.type == _PARAMS:
        # Settings count in the version of the account they belong to, or of the exchange; several changes that name
        # many accounts of an exchange are one.
        for key, version in dict.fromkeys(zip(row.keys, row.versions, strict=True)):
            cat_ex_id, ex_id = key.split(",")
            yield ("exchanges", ex_id, version) if ex_id else ("cat_exchanges", cat_ex_id, version)
    elif row.type not in ABOUT_NO_ROW:
        table = _TABLE_OF[row.type]
        for key, version in zip(row.keys, row.versions, strict=True):
            yield table, key, version


def _key_of(table: Announced) -> str:
    return f"concat_ws(',', {', '.join(table.key)})"


def _in_order(key: str) -> tuple[int, str]:
    return len(key), key
