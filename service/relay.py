"""Publishes what is in the outbox, in order, each event at least once; one instance at a time.

Read, publish with confirms, delete: three steps, and no transaction is open while the broker is asked. A crash
between the last two publishes the same events again, under the same ids and in the same order.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import structlog
from sqlalchemy import Row, Uuid, bindparam, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.amqp import BROKEN_LINK
from contracts.heartbeat import HEARTBEAT_SECONDS, Heartbeat
from contracts.topology import HEARTBEATS
from service import lease, outbox
from service.config import Settings
from service.database import SessionMaker, single_statements
from service.errors import is_transient
from service.models import EventStream
from service.observability import EVENTS_PUBLISHED, OUTBOX_LAG, RELAY_LEADER
from service.publisher import Publication, Publisher

log = structlog.get_logger()

_LEASE = "relay"
_BYTES_AT_ONCE: Final = 4 * 1024 * 1024
"""What the events that are read at once may say together, so that a backlog does not fill the memory."""

# Lists go out as JSON, so they are read as JSON.
_OLDEST: Final = text("""
SELECT id, event_id, type, transaction_id, occurred_at, changes,
    CAST(to_json(causation_ids) AS text) AS causation_ids, CAST(to_json(stale_keys) AS text) AS stale_keys,
    clock_timestamp() - occurred_at AS age
FROM (
    SELECT id, sum(octet_length(changes)) OVER (ORDER BY id) - octet_length(changes) AS bytes_before
    FROM (SELECT id, changes FROM outbox ORDER BY id LIMIT :rows) AS first
) AS few
JOIN outbox USING (id)
WHERE bytes_before < :bytes AND EXISTS (
    SELECT FROM leases WHERE name = 'relay' AND holder = :holder AND expires_at > clock_timestamp()
)
ORDER BY id
""").bindparams(bindparam("holder", type_=Uuid()))
_DELETE: Final = text("""
WITH ours AS MATERIALIZED (
    SELECT FROM leases WHERE name = 'relay' AND term = :term
), gone AS (
    DELETE FROM outbox WHERE id = ANY(CAST(:ids AS bigint[])) AND EXISTS (SELECT FROM ours)
    RETURNING id, event_id, type, transaction_id, occurred_at, keys, versions
), kept AS (
    INSERT INTO published_events (id, event_id, type, sequence, transaction_id, occurred_at, keys, versions)
    SELECT id, event_id, type, sequence, transaction_id, occurred_at, keys, versions
    FROM unnest(CAST(:ids AS bigint[]), CAST(:sequences AS bigint[])) AS numbered (id, sequence) JOIN gone USING (id)
)
INSERT INTO event_streams (type, sequence)
SELECT * FROM unnest(CAST(:types AS text[]), CAST(:numbers AS bigint[])) WHERE EXISTS (SELECT FROM ours)
ON CONFLICT (type) DO UPDATE SET sequence = excluded.sequence
""")

# The statement's time is before its snapshot, so whatever was committed before that time is seen. Neither a failover
# nor a restored dump keeps all three parts of the timeline.
_MARK: Final = text("""
SELECT statement_timestamp() AS as_of, (SELECT max(id) FROM outbox) AS newest,
    concat_ws(
        '.',
        (SELECT system_identifier FROM pg_control_system()),
        (SELECT oid FROM pg_database WHERE datname = current_database()),
        left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
    ) AS timeline
WHERE EXISTS (
    SELECT FROM leases WHERE name = 'relay' AND holder = :holder AND expires_at > clock_timestamp()
)
""").bindparams(bindparam("holder", type_=Uuid()))


@dataclass(frozen=True)
class _Mark:
    """What had to be published at a moment; once it is, a heartbeat may tell of that moment."""

    as_of: datetime
    newest: int | None
    """The last row of the outbox then; None if all was published already."""
    timeline: str

    def is_reached(self, rows: Sequence[Row[Any]]) -> bool:
        """Whether with these, the oldest there are, everything is published that was committed at the moment."""
        return self.newest is None or (bool(rows) and rows[-1].id >= self.newest)


class Relay:
    """The only one that publishes, as long as it holds the lease."""

    def __init__(self, sessions: SessionMaker, publisher: Publisher, settings: Settings) -> None:
        self._sessions = sessions
        self._publisher = publisher
        self._lease = timedelta(seconds=settings.relay_lease)
        self._poll_interval = settings.relay_poll_interval
        self._batch = settings.relay_batch
        self._holder = uuid4()
        self._committed = asyncio.Event()
        self._term: int | None = None
        self._renew_at = 0.0
        self._sequences: dict[str, int] | None = None
        self._mark: _Mark | None = None
        self._beat_at = 0.0
        self.lag: float | None = None
        """Seconds the oldest unpublished event has waited at the last look; None before the first look."""

    def wake(self) -> None:
        """There is something new in the outbox."""
        self._committed.set()

    async def run(self) -> None:
        """Publish until cancelled. Outages of broker or database are waited out."""
        pause = self._poll_interval
        while True:
            self._committed.clear()
            try:
                published = await self.publish_once()
                pause = self._poll_interval
            except Exception as error:
                if not (isinstance(error, BROKEN_LINK) or is_transient(error)):
                    raise
                log.warning("relay_waits", error=type(error).__name__)
                published, pause = 0, min(pause * 2, 2.0)
                self._sequences = None
            if not published:
                try:
                    async with asyncio.timeout(pause):
                        await self._committed.wait()
                except TimeoutError:
                    pass  # the poll, for rows that other processes wrote

    async def publish_once(self) -> int:
        """Publish the oldest events there are, up to a batch; gives their number, 0 too for who has no lease."""
        if time.monotonic() >= self._renew_at or self._sequences is None:
            await self._prepare()
        if self._term is None or self._sequences is None:
            return 0
        async with single_statements(self._sessions) as session:
            if self._mark is None and time.monotonic() >= self._beat_at:
                self._mark = await _mark(session, self._holder)
            rows = await _oldest(session, self._holder, self._batch)
        self.lag = rows[0].age.total_seconds() if rows else 0.0
        OUTBOX_LAG.set(self.lag)
        sequences = dict(self._sequences)
        events = [_publication(row, sequences) for row in rows]
        beats = self._due_heartbeats(rows, self._term, sequences)
        if not events and not beats:
            return 0
        # Beats go behind what they speak of, on the same channel. Should one of those get lost, its number tells.
        await self._publisher.publish_events([*events, *beats])
        if not rows:
            return 0
        async with single_statements(self._sessions) as session:
            await _delete(session, rows, {row.type: sequences[row.type] for row in rows}, self._term)
        self._sequences = sequences
        for kind, number in Counter(row.type for row in rows).items():
            EVENTS_PUBLISHED.labels(type=kind).inc(number)
        return len(rows)

    def _due_heartbeats(self, rows: Sequence[Row[Any]], term: int, sequences: dict[str, int]) -> list[Publication]:
        """The heartbeat that may follow these rows, the oldest there are, if it is time for one."""
        mark = self._mark
        if mark is None or (rows and not mark.is_reached(rows)):
            return []
        self._mark = None
        if not mark.is_reached(rows):
            return []  # what it waited for is gone by another hand
        self._beat_at = time.monotonic() + HEARTBEAT_SECONDS
        beat = Heartbeat(as_of=mark.as_of, term=term, timeline=mark.timeline, sequences=sequences)
        body = beat.model_dump_json().encode()
        return [Publication(uuid4(), Heartbeat.wire_name, mark.as_of, body, exchange=HEARTBEATS.name)]

    async def _prepare(self) -> None:
        """Hold the lease, and know the last numbers given."""
        async with self._sessions.begin() as session:
            if time.monotonic() >= self._renew_at:
                await self._renew(session)
            if self._term is None:
                self.lag = await outbox.lag(session)
            elif self._sequences is None:
                self._sequences = {row.type: row.sequence for row in await session.scalars(select(EventStream))}

    async def release(self) -> None:
        """Let another instance take over at once instead of after the lease has run out."""
        async with self._sessions.begin() as session:
            await lease.release(session, _LEASE, self._holder)
        self._term = None

    async def _renew(self, session: AsyncSession) -> None:
        """Take the lease, or renew it long before it runs out; whoever does not have it tries at every look."""
        term = await lease.take(session, _LEASE, self._holder, self._lease)
        if term is None or term != self._term:
            self._sequences = self._mark = None
        self._term = term
        self._renew_at = 0.0 if term is None else time.monotonic() + self._lease.total_seconds() / 4
        RELAY_LEADER.set(term is not None)


async def _oldest(session: AsyncSession, holder: UUID, limit: int) -> Sequence[Row[Any]]:
    """The first rows, as long as ``holder`` has the lease: who was asleep while another took over gets none."""
    return (await session.execute(_OLDEST, {"holder": holder, "rows": limit, "bytes": _BYTES_AT_ONCE})).all()


async def _mark(session: AsyncSession, holder: UUID) -> _Mark | None:
    """What is to be published now; None if ``holder`` has lost the lease."""
    row = (await session.execute(_MARK, {"holder": holder})).one_or_none()
    return None if row is None else _Mark(row.as_of, row.newest, row.timeline)


def _publication(row: Row[Any], sequences: dict[str, int]) -> Publication:
    sequences[row.type] = sequences.get(row.type, 0) + 1
    # The lists come as JSON, and the changes were serialized once, when they were made; they go out as they are.
    body = (
        f'{{"event_id":"{row.event_id}","type":"{row.type}","sequence":{sequences[row.type]},'
        f'"occurred_at":"{row.occurred_at.isoformat()}","transaction":"{row.transaction_id}",'
        f'"causation_ids":{row.causation_ids},"stale_keys":{row.stale_keys},"changes":{row.changes}}}'
    )
    return Publication(row.event_id, row.type, row.occurred_at, body.encode())


async def _delete(session: AsyncSession, rows: Sequence[Row[Any]], sequences: dict[str, int], term: int) -> None:
    """Keep of what was published only what it was about, and note the last numbers given.

    Does nothing if another instance publishes it again now.
    """
    types, numbers = zip(*sorted(sequences.items()), strict=True)
    given = dict(sequences)
    each = []
    for row in reversed(rows):
        each.append(given[row.type])
        given[row.type] -= 1
    ids = [row.id for row in reversed(rows)]
    parameters = {"ids": ids, "sequences": each, "types": list(types), "numbers": list(numbers), "term": term}
    await session.execute(_DELETE, parameters)
