"""Makes partitions ahead of time, so that retention can drop whole ones instead of deleting rows.

A row that no partition is made for goes to the default one and is moved when its partition is made. Attaching a
partition keeps readers of the default one out while that is read. So it is kept small, message ids that are no times
having partitions of their own (migration 0005), few rows are moved, and what would take long is not tried.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from service.jobs.scheduler import Run

log = structlog.get_logger()

# A Monday, so that weeks begin on Mondays.
_ORIGIN: Final = datetime(2024, 1, 1, tzinfo=UTC)
_MOVED_AT_MOST: Final = 10_000
"""Rows that are moved while readers wait: a fraction of a second."""
_LOOK_BACK: Final = timedelta(days=90)
"""How far back partitions are made of a table that is kept for ever."""
_BOUNDS: Final = re.compile(r"FROM \('([^']+)'\) TO \('([^']+)'\)")
_MILLISECOND: Final = timedelta(milliseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Period(NamedTuple):
    """From one moment on and before another."""

    start: datetime
    end: datetime


@dataclass(frozen=True)
class Partitioned:
    """A table that is partitioned by range of time, or of ids that begin with their time."""

    table: str
    column: str
    length: timedelta
    """What one partition is for."""
    ahead: timedelta
    """How long before its time a partition is made."""
    by_id: bool = False

    @property
    def default(self) -> str:
        """Where rows go that no partition is made for."""
        return f"{self.table}_p_default"

    def name(self, period: Period) -> str:
        return f"{self.table}_p_{period.start:%Y%m%d}"

    def period(self, moment: datetime) -> Period:
        """The period that ``moment`` is in."""
        start = _ORIGIN + (moment - _ORIGIN) // self.length * self.length
        return Period(start, start + self.length)

    def bound(self, moment: datetime) -> str:
        """The first value of the column at ``moment``, as SQL."""
        return f"'{first_id(moment) if self.by_id else moment.isoformat()}'"

    def moment(self, bound: str) -> datetime:
        """The moment that a bound stands for, as PostgreSQL writes it."""
        return time_of(UUID(bound)) if self.by_id else datetime.fromisoformat(bound).astimezone(UTC)


PARTITIONED: Final = (
    Partitioned("bot_logs", "timestamp", length=timedelta(days=7), ahead=timedelta(days=28)),
    Partitioned("ticks", "timestamp", length=timedelta(days=7), ahead=timedelta(days=28)),
    Partitioned("inbox", "message_id", length=timedelta(days=1), ahead=timedelta(days=7), by_id=True),
    Partitioned("published_events", "published_at", length=timedelta(days=1), ahead=timedelta(days=7)),
)


def first_id(moment: datetime) -> UUID:
    """The smallest UUID of version 7 and of this moment, but for the version."""
    return UUID(int=(moment - _EPOCH) // _MILLISECOND << 80)


def time_of(message_id: UUID) -> datetime:
    """When a UUID of version 7 was made."""
    return _EPOCH + (message_id.int >> 80) * _MILLISECOND


async def make_partitions(run: Run, retention: Mapping[str, timedelta]) -> None:
    """Make the partitions of now and of the time ahead, and of the past where rows of the default one want them."""
    for table in PARTITIONED:
        async with run.step() as session:
            now: datetime = (await session.execute(text("SELECT clock_timestamp()"))).scalar_one()
            made = (await partitions(session, table)).values()
        kept_from = now - retention.get(table.table, _LOOK_BACK)
        present = table.period(now)
        ahead = (present.start + n * table.length for n in range(table.ahead // table.length + 1))
        back = (present.start - n * table.length for n in range(1, (now - kept_from) // table.length + 2))
        for start in (*ahead, *back):
            period = table.period(start)
            if period.end <= kept_from:
                continue
            if any(other.start < period.end and period.start < other.end for other in made):
                continue
            async with run.step() as session:
                waiting = await _waiting(session, table, period)
            if waiting > _MOVED_AT_MOST:
                log.warning("partition_left_out", table=table.table, start=str(start), rows=f"over {_MOVED_AT_MOST}")
            elif waiting or period.end > now:
                async with run.step() as session:
                    await _make(session, table, period)
                    run.done[table.table] += 1


async def partitions(session: AsyncSession, table: Partitioned) -> dict[str, Period]:
    """The partitions of a table that stand for a period, by name."""
    found = await session.execute(
        text(
            "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i JOIN pg_class c "
            "ON c.oid = i.inhrelid WHERE i.inhparent = CAST(:name AS regclass) ORDER BY 1"
        ),
        {"name": table.table},
    )
    bounds = {name: _BOUNDS.search(bound) for name, bound in found}
    return {
        name: Period(table.moment(match[1]), table.moment(match[2]))
        for name, match in bounds.items()
        if match is not None
    }


async def _waiting(session: AsyncSession, table: Partitioned, period: Period) -> int:
    """How many rows of a period are in the default partition, counted up to what can be moved and one more."""
    some = f"SELECT FROM {table.default} WHERE {_within(table, period)} LIMIT {_MOVED_AT_MOST + 1}"
    return int((await session.execute(text(f"SELECT count(*) FROM ({some}) AS waiting"))).scalar_one())  # noqa: S608


async def _make(session: AsyncSession, table: Partitioned, period: Period) -> None:
    """Make a partition and move the rows into it that wait in the default one, all in one transaction.

    It locks the default partition, not the table, and gives up at once if it would have to wait long for that, with
    others queueing up behind it.
    """
    name, default = table.name(period), table.default
    moved = f"WITH moved AS (DELETE FROM {default} WHERE {_within(table, period)} RETURNING *)"  # noqa: S608 - of names and dates
    bounds = f"FROM ({table.bound(period.start)}) TO ({table.bound(period.end)})"
    for statement in (
        "SET LOCAL lock_timeout = '500ms'",
        "SET LOCAL statement_timeout = '5s'",
        f"CREATE TABLE {name} (LIKE {table.table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)",
        # Whoever waits here to write a row that belongs to the new partition has to try again (`is_transient`). To
        # lock the table as well would be a deadlock with those who have read it and are going to write to it.
        f"LOCK TABLE {default} IN ACCESS EXCLUSIVE MODE",
        f"{moved} INSERT INTO {name} SELECT * FROM moved",  # noqa: S608 - as above
        f"ALTER TABLE {table.table} ATTACH PARTITION {name} FOR VALUES {bounds}",
    ):
        await session.execute(text(statement))


def _within(table: Partitioned, period: Period) -> str:
    return f"{table.column} >= {table.bound(period.start)} AND {table.column} < {table.bound(period.end)}"
