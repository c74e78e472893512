"""Publishes what is in the outbox, in order, each event at least once; one instance at a time.

Read, publish with confirms, delete: three steps, and no transaction is open while the broker is asked. A crash
between the last two publishes the same events again, under the same ids and in the same order. While the broker
stores what one round sent, the next round reads and sends: so a lone event does not wait for others' confirms, and
a backlog waits for the slowest of the three steps instead of for their sum.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import structlog
from sqlalchemy import Row, Uuid, bindparam, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.amqp import BROKEN_LINK
from contracts.cancellation import end
from contracts.heartbeat import HEARTBEAT_SECONDS, Heartbeat
from contracts.topology import HEARTBEATS
from service import lease, outbox
from service.config import Settings
from service.database import AutocommitSessions, SessionMaker
from service.errors import is_transient, reason
from service.models import EventStream
from service.observability import EVENTS_PUBLISHED, OUTBOX_LAG, RELAY_LEADER
from service.publisher import InFlight, Publication, Publisher

log = structlog.get_logger()

_LEASE = "relay"
_BYTES_AT_ONCE: Final = 4 * 1024 * 1024
"""What the events that are read at once may say together, so that a backlog does not fill the memory."""
_ROUNDS: Final = 3
"""How many rounds may wait for their confirms and deletes: with more, a failure has more to publish again."""

# Lists go out as JSON, so they are read as JSON.
_OLDEST: Final = text("""
SELECT id, event_id, type, transaction_id, occurred_at, changes,
    CAST(to_json(causation_ids) AS text) AS causation_ids, CAST(to_json(stale_keys) AS text) AS stale_keys,
    clock_timestamp() - occurred_at AS age
FROM (
    SELECT id, sum(octet_length(changes)) OVER (ORDER BY id) - octet_length(changes) AS bytes_before
    FROM (
        SELECT id, changes FROM outbox WHERE NOT id <@ CAST(CAST(:sent AS text) AS int8multirange)
        ORDER BY id LIMIT :rows
    ) AS first
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
SELECT statement_timestamp() AS as_of,
    (SELECT max(id) FROM outbox WHERE NOT id <@ CAST(CAST(:sent AS text) AS int8multirange)) AS newest,
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
    """The last row of the outbox then that was not sent yet; None if all was."""
    timeline: str

    def is_reached(self, rows: Sequence[Row[Any]]) -> bool:
        """Whether with these, the oldest there are, everything is published that was committed at the moment."""
        return self.newest is None or (bool(rows) and rows[-1].id >= self.newest)


@dataclass(frozen=True)
class _Round:
    """Events that were sent and are deleted when they are confirmed."""

    ids: Sequence[int]
    sent: InFlight
    settled: asyncio.Task[None]


class Relay:
    """The only one that publishes, as long as it holds the lease."""

    def __init__(
        self,
        sessions: SessionMaker,
        publisher: Publisher,
        settings: Settings,
        *,
        autocommit: AutocommitSessions | None = None,
    ) -> None:
        """``autocommit`` is for who keeps connections; they are of the same database as ``sessions``."""
        self._sessions = sessions
        self._autocommit = autocommit or AutocommitSessions(sessions)
        self._publisher = publisher
        self._lease = timedelta(seconds=settings.relay_lease)
        self._poll_interval = settings.relay_poll_interval
        self._batch = settings.relay_batch
        self._holder = uuid4()
        self._committed = asyncio.Event()
        self._turn = asyncio.Lock()
        self._rounds: deque[_Round] = deque()
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
        try:
            while True:
                self._committed.clear()
                try:
                    sent = await self._send_oldest()
                    pause = self._poll_interval
                except Exception as error:
                    if not (isinstance(error, BROKEN_LINK) or is_transient(error)):
                        raise
                    log.warning("relay_waits", error=reason(error))
                    sent, pause = 0, min(pause * 2, 2.0)
                if not sent:
                    try:
                        async with asyncio.timeout(pause):
                            await self._committed.wait()
                    except TimeoutError:
                        pass  # the poll, for rows that other processes wrote
        finally:
            await self._give_up()

    async def publish_once(self) -> int:
        """Publish the oldest events there are, up to a batch, and return when they are deleted.

        Gives their number, 0 too for who has no lease.
        """
        number = await self._send_oldest()
        async with self._turn, self._or_begin_again():
            for each in list(self._rounds):
                await each.settled
        return number

    async def release(self) -> None:
        """Let another instance take over at once instead of after the lease has run out."""
        async with self._sessions.begin() as session:
            await lease.release(session, _LEASE, self._holder)
        self._term = None

    async def _send_oldest(self) -> int:
        """Send the oldest events that were not sent yet, up to a batch, and have them deleted once confirmed.

        Raises what an earlier round came to if it failed; all that was under way begins again then.
        """
        async with self._turn:
            async with self._or_begin_again():
                await self._make_room()
            if time.monotonic() >= self._renew_at or self._sequences is None:
                await self._prepare()
            if self._term is None or self._sequences is None:
                return 0
            rows = await self._read()
            async with self._or_begin_again():
                await self._send(rows, self._term, self._sequences)
            return len(rows)

    async def _make_room(self) -> None:
        """Forget rounds that are done, and wait for the oldest if there are too many."""
        while self._rounds and (len(self._rounds) >= _ROUNDS or self._rounds[0].settled.done()):
            await self._rounds[0].settled
            self._rounds.popleft()

    async def _read(self) -> Sequence[Row[Any]]:
        under_way = _ranges(row_id for each in self._rounds for row_id in each.ids)
        async with self._autocommit() as session:
            if self._mark is None and time.monotonic() >= self._beat_at:
                self._mark = await _mark(session, self._holder, under_way)
            rows = await _oldest(session, self._holder, self._batch, under_way)
        self.lag = rows[0].age.total_seconds() if rows else 0.0
        OUTBOX_LAG.set(self.lag)
        return rows

    async def _send(self, rows: Sequence[Row[Any]], term: int, sequences: dict[str, int]) -> None:
        events = [_publication(row, sequences) for row in rows]
        beats = self._due_heartbeats(rows, term, sequences)
        if not events and not beats:
            return
        # Beats go behind what they speak of, on the same channel. Should one of those get lost, its number tells.
        before = self._rounds[-1] if self._rounds else None
        sent = await self._publisher.send_events([*events, *beats], after=before.sent if before else None)
        numbers = {row.type: sequences[row.type] for row in rows}
        settled = asyncio.create_task(self._settle(sent, before, rows, numbers, term), name="relay round")
        settled.add_done_callback(self._wake_if_failed)
        self._rounds.append(_Round([row.id for row in rows], sent, settled))

    async def _settle(
        self, sent: InFlight, before: _Round | None, rows: Sequence[Row[Any]], numbers: dict[str, int], term: int
    ) -> None:
        """Delete a round's events when they are confirmed and those of the round before are deleted.

        What is confirmed is not sent again because the database is away: the delete waits for it.
        """
        await self._publisher.confirmed(sent)
        if before is not None:
            await before.settled
        if not rows:
            return
        pause = self._poll_interval
        while not await self._is_deleted(rows, numbers, term):
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)
        for kind, number in Counter(row.type for row in rows).items():
            EVENTS_PUBLISHED.labels(type=kind).inc(number)

    async def _is_deleted(self, rows: Sequence[Row[Any]], numbers: dict[str, int], term: int) -> bool:
        try:
            async with self._autocommit() as session:
                await _delete(session, rows, numbers, term)
        except Exception as error:
            if not is_transient(error):
                raise
            log.warning("relay_waits", error=reason(error))
            return False
        return True

    def _wake_if_failed(self, settled: asyncio.Task[None]) -> None:
        if settled.cancelled() or settled.exception() is not None:
            self._committed.set()

    @asynccontextmanager
    async def _or_begin_again(self) -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            await self._give_up()
            raise

    async def _give_up(self) -> None:
        """Begin again with what is in the outbox: nobody knows how far the rounds under way got."""
        await end(*(each.settled for each in self._rounds))
        self._rounds.clear()
        self._sequences = self._mark = None

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
        if time.monotonic() >= self._renew_at:
            await self._renew()
        if self._term is not None and self._sequences is None:
            async with self._sessions.begin() as session:
                self._sequences = {row.type: row.sequence for row in await session.scalars(select(EventStream))}

    async def _renew(self) -> None:
        """Take the lease, or renew it long before it runs out; whoever does not have it tries at every look."""
        async with self._sessions.begin() as session:
            term = await lease.take(session, _LEASE, self._holder, self._lease)
            if term is None:
                self.lag = await outbox.lag(session)
        if term != self._term:
            # Another one led meanwhile: what is under way from before can be deleted by nobody.
            await self._give_up()
        self._term = term
        self._renew_at = 0.0 if term is None else time.monotonic() + self._lease.total_seconds() / 4
        RELAY_LEADER.set(term is not None)


async def _oldest(session: AsyncSession, holder: UUID, limit: int, sent: str) -> Sequence[Row[Any]]:
    """The first rows not ``sent``, as long as ``holder`` has the lease: who slept through a takeover gets none."""
    asked = {"holder": holder, "rows": limit, "bytes": _BYTES_AT_ONCE, "sent": sent}
    return (await session.execute(_OLDEST, asked)).all()


async def _mark(session: AsyncSession, holder: UUID, sent: str) -> _Mark | None:
    """What is to be published now; None if ``holder`` has lost the lease."""
    row = (await session.execute(_MARK, {"holder": holder, "sent": sent})).one_or_none()
    return None if row is None else _Mark(row.as_of, row.newest, row.timeline)


def _ranges(ids: Iterable[int]) -> str:
    """Ascending ids as a multirange of PostgreSQL's, which tells in a few steps whether it holds an id.

    It holds no other id: one that is missing among them may be committed later, and must be found then.
    """
    ranges: list[list[int]] = []
    for each in ids:
        if ranges and ranges[-1][1] == each:
            ranges[-1][1] = each + 1
        else:
            ranges.append([each, each + 1])
    return f"{{{','.join(f'[{first},{end})' for first, end in ranges)}}}"


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
