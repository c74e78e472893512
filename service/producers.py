"""Misses commands: of a producer that numbers what it sends, each number has to arrive."""

import asyncio
from collections.abc import Iterable
from typing import Any, Final
from uuid import UUID

import structlog
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.producer import PRODUCER_HEADER, SEQUENCE_HEADER, CommandsMissing, MissingView
from service.database import SessionMaker
from service.errors import is_transient
from service.observability import COMMANDS_MISSING
from service.outbox import record

log = structlog.get_logger()

_SWEEP_SECONDS: Final = 5.0
_PATIENCE_SECONDS: Final = 30.0
_LARGEST: Final = 2**63 - 1

_NOTE: Final = text(
    "INSERT INTO producer_numbers (producer, number) SELECT * FROM unnest(CAST(:producers AS uuid[]), "
    "CAST(:numbers AS bigint[])) ON CONFLICT DO NOTHING"
)
# Numbers that follow what has arrived without a gap are forgotten, and so are those that came twice.
_FORGET_REPEATED: Final = text(
    "DELETE FROM producer_numbers AS n USING producers AS p "
    "WHERE p.producer = n.producer AND n.number <= p.complete_to"
)
_FORGET_COMPLETE: Final = text("""
WITH placed AS (
    SELECT n.producer, n.number,
        n.number - coalesce(p.complete_to, 0)
            - row_number() OVER (PARTITION BY n.producer ORDER BY n.number) AS missing
    FROM producer_numbers AS n LEFT JOIN producers AS p ON p.producer = n.producer
), gone AS (
    DELETE FROM producer_numbers AS n USING placed
    WHERE placed.missing = 0 AND n.producer = placed.producer AND n.number = placed.number
    RETURNING n.producer, n.number
)
INSERT INTO producers (producer, complete_to) SELECT producer, max(number) FROM gone GROUP BY producer
ON CONFLICT (producer) DO UPDATE SET complete_to = excluded.complete_to
""")
# What is left has a gap before it. Whose first number has waited long enough is given up, up to that number.
_GIVE_UP: Final = text("""
WITH waiting AS (
    SELECT DISTINCT ON (producer) producer, number, received_at FROM producer_numbers ORDER BY producer, number
), before AS (
    SELECT w.producer, coalesce(p.complete_to, 0) + 1 AS first, w.number - 1 AS last, w.received_at
    FROM waiting AS w LEFT JOIN producers AS p ON p.producer = w.producer
    WHERE w.received_at < clock_timestamp() - make_interval(secs => :patience)
), noted AS (
    INSERT INTO producers (producer, complete_to) SELECT producer, last FROM before
    ON CONFLICT (producer) DO UPDATE SET complete_to = excluded.complete_to
)
SELECT producer, first, last, received_at FROM before ORDER BY producer
""")
_LOCK: Final = 0x70726F6475636572


async def note(session: AsyncSession, headers: Iterable[dict[str, Any]]) -> None:
    """Note the numbers of commands that have one, in the transaction that handles them."""
    numbered = {pair for each in headers if (pair := _number(each)) is not None}
    if numbered:
        producers, numbers = zip(*sorted(numbered), strict=True)
        await session.execute(_NOTE, {"producers": list(producers), "numbers": list(numbers)})


def _number(headers: dict[str, Any]) -> tuple[UUID, int] | None:
    """Producer and number; what is no UUID or no number counts for nothing, and is no reason to refuse a trade."""
    producer, number = headers.get(PRODUCER_HEADER), headers.get(SEQUENCE_HEADER)
    if not isinstance(producer, str) or not isinstance(number, int) or not 0 < number <= _LARGEST:
        return None
    try:
        return UUID(producer), number
    except ValueError:
        return None


async def watch(sessions: SessionMaker) -> None:
    """Announce what is missing until cancelled. Any number of instances may; one at a time does."""
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        try:
            await sweep(sessions)
        except Exception as error:
            if not is_transient(error):
                raise


async def sweep(sessions: SessionMaker, *, patience: float = _PATIENCE_SECONDS) -> list[MissingView]:
    """Announce the numbers that have been missing for ``patience`` seconds; each is announced once."""
    async with sessions.begin() as session:
        if not await session.scalar(select(func.pg_try_advisory_xact_lock(_LOCK))):
            return []
        if not await session.scalar(text("SELECT EXISTS (SELECT FROM producer_numbers)")):
            return []
        await session.execute(_FORGET_REPEATED)
        await session.execute(_FORGET_COMPLETE)
        found = [
            MissingView(producer=str(row.producer), first=row.first, last=row.last, next_received_at=row.received_at)
            for row in await session.execute(_GIVE_UP, {"patience": patience})
        ]
        for missing in found:
            record(session, CommandsMissing, after=missing)
    for missing in found:
        COMMANDS_MISSING.inc(missing.last - missing.first + 1)
        log.error("commands_missing", **missing.model_dump(mode="json"))
    return found
