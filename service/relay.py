"""Publishes what is in the outbox, in order, each event at least once; one instance at a time.

Read, publish with confirms, delete: three steps, and no transaction is open while the broker is asked. A crash
between the last two publishes the same events again, under the same ids and in the same order.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import structlog
from sqlalchemy import Row, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.amqp import BROKEN_LINK
from service import lease, outbox
from service.config import Settings
from service.database import SessionMaker
from service.errors import is_transient
from service.models import EventStream, Lease, OutboxEvent
from service.observability import EVENTS_PUBLISHED, OUTBOX_LAG, RELAY_LEADER
from service.publisher import Publication, Publisher

log = structlog.get_logger()

_LEASE = "relay"


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
        async with self._sessions.begin() as session:
            if time.monotonic() >= self._renew_at:
                await self._renew(session)
            if self._term is None:
                self.lag = await outbox.lag(session)
                return 0
            if self._sequences is None:
                self._sequences = {row.type: row.sequence for row in await session.scalars(select(EventStream))}
            rows = await _oldest(session, self._holder, self._batch)
        self.lag = rows[0].age.total_seconds() if rows else 0.0
        OUTBOX_LAG.set(self.lag)
        if not rows:
            return 0
        sequences = dict(self._sequences)
        await self._publisher.publish_events([_publication(row, sequences) for row in rows])
        async with self._sessions.begin() as session:
            await session.execute(delete(OutboxEvent).where(OutboxEvent.id.in_([row.id for row in rows])))
            await _keep_sequences(session, {row.type: sequences[row.type] for row in rows}, self._term)
        self._sequences = sequences
        for row in rows:
            EVENTS_PUBLISHED.labels(type=row.type).inc()
        return len(rows)

    async def release(self) -> None:
        """Let another instance take over at once instead of after the lease has run out."""
        async with self._sessions.begin() as session:
            await lease.release(session, _LEASE, self._holder)
        self._term = None

    async def _renew(self, session: AsyncSession) -> None:
        """Take the lease, or renew it long before it runs out; whoever does not have it tries at every look."""
        term = await lease.take(session, _LEASE, self._holder, self._lease)
        if term is None or term != self._term:
            self._sequences = None
        self._term = term
        self._renew_at = 0.0 if term is None else time.monotonic() + self._lease.total_seconds() / 4
        RELAY_LEADER.set(term is not None)


async def _oldest(session: AsyncSession, holder: UUID, limit: int) -> Sequence[Row[Any]]:
    """The first rows, as long as ``holder`` has the lease: who was asleep while another took over gets none."""
    columns = (
        OutboxEvent.id,
        OutboxEvent.event_id,
        OutboxEvent.type,
        OutboxEvent.transaction_id,
        OutboxEvent.occurred_at,
        OutboxEvent.causation_ids,
        OutboxEvent.changes,
        OutboxEvent.stale_keys,
        (func.clock_timestamp() - OutboxEvent.occurred_at).label("age"),
    )
    is_held = lease.is_held(_LEASE, holder)
    return (await session.execute(select(*columns).where(is_held).order_by(OutboxEvent.id).limit(limit))).all()


def _publication(row: Row[Any], sequences: dict[str, int]) -> Publication:
    sequences[row.type] = sequences.get(row.type, 0) + 1
    head = {
        "event_id": str(row.event_id),
        "type": row.type,
        "sequence": sequences[row.type],
        "occurred_at": row.occurred_at.isoformat(),
        "transaction": str(row.transaction_id),
        "causation_ids": [str(UUID(str(cause))) for cause in row.causation_ids],
        "stale_keys": row.stale_keys,
    }
    # The changes were serialized once, when they were made; they go out as they are.
    body = f'{json.dumps(head, separators=(",", ":"), ensure_ascii=False)[:-1]},"changes":{row.changes}}}'
    return Publication(row.event_id, row.type, row.occurred_at, body.encode())


async def _keep_sequences(session: AsyncSession, sequences: dict[str, int], term: int | None) -> None:
    """Note the last numbers given, unless another instance has taken over and gives them now."""
    is_ours = select(text("1")).where(Lease.name == _LEASE, Lease.term == term).select_from(Lease)
    if await session.scalar(is_ours) is None:
        return
    statement = insert(EventStream).values([{"type": kind, "sequence": n} for kind, n in sorted(sequences.items())])
    await session.execute(
        statement.on_conflict_do_update(index_elements=["type"], set_={"sequence": statement.excluded.sequence})
    )
