"""Removes what is older than its table's retention: whole partitions where there are some, else few rows at a time.

Orders and trades are a ledger and stay for ever.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.job import CLEANED, CleanupCompleted, CleanupView
from service.config import LibrarySettings
from service.jobs.partitions import PARTITIONED, partitions
from service.jobs.scheduler import Run
from service.outbox import record

_BATCH: Final = 5_000
_PAUSE_SECONDS: Final = 0.05

# Where old rows are deleted one by one, and by which column they are told to be old: what has no partitions, and what
# lies in partitions that stand for no time.
_BY_ROW: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "bot_logs": (("bot_logs_p_default", "timestamp"),),
    "ticks": (("ticks_p_default", "timestamp"),),
    "inbox": (("inbox_p_low", "received_at"), ("inbox_p_default", "received_at"), ("inbox_p_high", "received_at")),
    "simulations": (("simulations", "timestamp"),),
    "dead_letters": (("dead_letters", "state <> 'open' AND resolved_at"),),
    "published_events": (("published_events_p_default", "published_at"),),
}
_BY_PARTITION: Final = {table.table: table for table in PARTITIONED}


def retention(settings: LibrarySettings, older_than_days: int | None = None) -> dict[str, timedelta]:
    """How long what is kept, by table; those kept for ever are not in it.

    ``older_than_days`` is for all of them but the inbox, on which it depends that nothing is done twice.
    """
    days = {table: getattr(settings, f"{table}_retention_days") for table in CLEANED}
    if older_than_days is not None:
        days |= dict.fromkeys(days.keys() - {"inbox"}, older_than_days)
    return {table: timedelta(days=number) for table, number in days.items() if number}


async def clean_up(run: Run, settings: LibrarySettings, *, batch: int = _BATCH) -> None:
    """Remove what is old from every table."""
    for table, age in retention(settings, run.parameters.get("older_than_days")).items():
        async with run.step() as session:
            old = await _old_partitions(session, table, await _cutoff(session, age))
        for partition, rows in old.items():
            async with run.step() as session:
                await _drop(session, partition)
                run.done[table] += rows
        for part, column in _BY_ROW[table]:
            while True:
                async with run.step() as session:
                    deleted = await _delete(session, part, column, age, batch)
                    run.done[table] += deleted
                if deleted < batch:
                    break
                # Whoever has to write meanwhile goes first.
                await asyncio.sleep(_PAUSE_SECONDS)


async def would_remove(
    session: AsyncSession, settings: LibrarySettings, older_than_days: int | None
) -> dict[str, int]:
    """How many rows `clean_up` would remove now, by table."""
    found: dict[str, int] = {}
    for table, age in retention(settings, older_than_days).items():
        cutoff = await _cutoff(session, age)
        found[table] = sum((await _old_partitions(session, table, cutoff)).values())
        for part, column in _BY_ROW[table]:
            count = text(f"SELECT count(*) FROM {part} WHERE {column} < :cutoff")  # noqa: S608 - of names above
            found[table] += (await session.execute(count, {"cutoff": cutoff})).scalar_one()
    return found


def announcement(settings: LibrarySettings) -> Callable[[Run, AsyncSession], None]:
    """Records what a run has removed."""

    def announce(run: Run, session: AsyncSession) -> None:
        for table, age in retention(settings, run.parameters.get("older_than_days")).items():
            record(
                session,
                CleanupCompleted,
                after=CleanupView(table=table, rows=run.done[table], older_than_days=age.days),
            )

    return announce


async def _cutoff(session: AsyncSession, age: timedelta) -> datetime:
    cutoff: datetime = (
        await session.execute(text("SELECT now() - CAST(:age AS interval)"), {"age": age})
    ).scalar_one()
    return cutoff


async def _old_partitions(session: AsyncSession, table: str, cutoff: datetime) -> dict[str, int]:
    """Partitions whose time is over, with their number of rows."""
    if table not in _BY_PARTITION:
        return {}
    partitioned = _BY_PARTITION[table]
    over = [name for name, period in (await partitions(session, partitioned)).items() if period.end <= cutoff]
    found = {}
    for name in over:
        if not partitioned.by_id or await _all_came_before(session, name, cutoff):
            found[name] = int((await session.execute(text(f"SELECT count(*) FROM {name}"))).scalar_one())  # noqa: S608
    return found


async def _all_came_before(session: AsyncSession, partition: str, cutoff: datetime) -> bool:
    """Whether no message with an old id has come since: it is remembered as long as any other."""
    later = text(f"SELECT 1 FROM {partition} WHERE received_at >= :cutoff LIMIT 1")  # noqa: S608 - a name out of the catalog
    return (await session.execute(later, {"cutoff": cutoff})).first() is None


async def _drop(session: AsyncSession, partition: str) -> None:
    """Readers and writers wait for this, so it gives up at once if it would have to wait itself."""
    await session.execute(text("SET LOCAL lock_timeout = '500ms'"))
    await session.execute(text(f"DROP TABLE {partition}"))


async def _delete(session: AsyncSession, part: str, column: str, age: timedelta, limit: int) -> int:
    # Rows that somebody holds at the moment are left for the next time.
    some = (
        f"SELECT ctid FROM {part} WHERE {column} < now() - CAST(:age AS interval) "  # noqa: S608 - of names above
        "LIMIT :limit FOR UPDATE SKIP LOCKED"
    )
    statement = text(f"DELETE FROM {part} WHERE ctid = ANY(ARRAY({some}))")  # noqa: S608 - as above
    result = await session.execute(statement, {"age": age, "limit": limit})
    return int(result.rowcount)  # type: ignore[attr-defined]
