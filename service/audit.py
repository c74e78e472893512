"""Looks over a live system for what must not be, and says what cannot be seen. Reads only, and never hastily."""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from aio_pika.abc import AbstractIncomingMessage
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.amqp import BROKEN_LINK, Link, lost_links_as_errors
from contracts.topology import DEAD_LETTER_QUEUE, EVENTS, QUEUES
from service.database import SessionMaker


class Result(StrEnum):
    """What a check came to."""

    OK = "ok"
    NOTICE = "notice"
    """Worth a look, and no promise broken."""
    BROKEN = "broken"
    """Something that must not be."""
    UNKNOWN = "unknown"
    """It could not be seen."""


@dataclass
class Finding:
    """One check, and what it found."""

    check: str
    result: Result
    examined: int
    """Rows, events or things that were looked at."""
    says: str
    examples: list[str] = field(default_factory=list)


Progress = Callable[[str, int], None]

CANNOT_SEE: Final = (
    "events are not kept once published, so the past's cannot be compared with rows: --listen compares the present's",
    "the inbox keeps ids for some days: which message made an older row cannot be told",
    "rows of programs that use the library came in no message",
    "messages that a sender never handed over",
)
"""What no look at the servers can verify."""

_EXAMPLES: Final = 5
_CHUNK: Final = 2_000
_SLOW_OUTBOX_SECONDS: Final = 5
_LONG_TRANSACTION_SECONDS: Final = 60
_SECONDS_FOR_EVENTS: Final = 5.0

# Whose rows are noted in the inbox by their id, and whether such a row may be deleted later.
_MADE_ROWS: Final = {
    "record_trade": ("trades", "trade_id", False),
    "record_dry_trade": ("dry_trades", "dry_trade_id", True),
    "save_bot_log": ("bot_logs", "log_id", True),
}
_ANNOUNCED: Final = {
    "trade.recorded": ("trades", "trade_id"),
    "dry_trade.recorded": ("dry_trades", "dry_trade_id"),
    "bot_log.saved": ("bot_logs", "log_id"),
}


class Audit:
    """One look over everything that was stored since an instant."""

    def __init__(self, sessions: SessionMaker, since: datetime, *, progress: Progress = lambda *_: None) -> None:
        self._sessions = sessions
        self._since = since
        self._progress = progress

    async def run(self) -> list[Finding]:
        """What the database tells, check by check."""
        checks: tuple[Callable[[AsyncSession], Awaitable[Finding]], ...] = (
            self._lease,
            self._outbox,
            self._open_letters,
            self._letters_of_refused,
            self._replayed_letters,
            self._filled_orders,
            self._partitions,
            self._long_transactions,
            self._statistics,
            self._settings,
            self._constraints,
        )
        findings = [await self._inbox()]
        for check in checks:
            self._progress(check.__name__.strip("_").replace("_", " "), 0)
            async with self._reading() as session:
                findings.append(await check(session))
        return findings

    def _reading(self) -> "_Reading":
        return _Reading(self._sessions)

    async def _inbox(self) -> Finding:
        """Every message that made a row made one of its own, and it is there."""
        examined, missing, gone = 0, [], 0
        makers: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
        async for rows in self._inbox_rows():
            examined += len(rows)
            for command, (table, key, may_go) in _MADE_ROWS.items():
                made = {row.row_id: row.message_id for row in rows if row.command == command}
                for row in rows:
                    if row.command == command:
                        makers[command, row.row_id].append(str(row.message_id))
                if not made:
                    continue
                async with self._reading() as session:
                    query = text(f"SELECT {key} FROM {table} WHERE {key} = ANY(:ids)")  # noqa: S608 - names from here
                    there = set(await session.scalars(query, {"ids": list(made)}))
                absent = made.keys() - there
                gone += len(absent) if may_go else 0
                missing += [] if may_go else [f"{command} {made[row]}: no {table} {row}" for row in absent]
            self._progress("inbox and rows", examined)
        twice = [f"{command} {row}: {', '.join(ids)}" for (command, row), ids in makers.items() if len(ids) > 1]
        says = "every message noted with a row has one of its own"
        if missing or twice:
            says = f"{len(missing)} messages without their row, {len(twice)} rows of several messages"
        elif gone:
            says = f"{says}; {gone} rows of logs and dry trades were deleted since"
        problems = [*missing, *twice]
        return _finding("inbox and rows", Result.BROKEN, examined, says, problems)

    async def _inbox_rows(self) -> AsyncIterator[list[Any]]:
        """The inbox since then, in chunks; as long as a chunk took the database rests."""
        after = UUID(int=0)
        while True:
            started = time.monotonic()
            async with self._reading() as session:
                chunk = (
                    await session.execute(
                        text(
                            "SELECT message_id, command, row_id, received_at >= :since AS is_asked_for FROM inbox "
                            "WHERE message_id > :after ORDER BY message_id LIMIT :limit"
                        ),
                        {"after": after, "since": self._since, "limit": _CHUNK},
                    )
                ).all()
            if not chunk:
                return
            after = chunk[-1].message_id
            yield [row for row in chunk if row.is_asked_for and row.row_id is not None]
            await asyncio.sleep(time.monotonic() - started)

    async def _lease(self, session: AsyncSession) -> Finding:
        row = (
            await session.execute(
                text(
                    "SELECT holder, term, extract(epoch FROM expires_at - clock_timestamp()) AS remains "
                    "FROM leases WHERE name = 'relay'"
                )
            )
        ).one_or_none()
        if row is None:
            return Finding("relay", Result.NOTICE, 0, "no service has published here yet")
        if row.remains < 0:
            return Finding("relay", Result.BROKEN, 1, f"nobody publishes: the lease ran out {-row.remains:.0f} s ago")
        return Finding("relay", Result.OK, 1, f"term {row.term}, held by {row.holder}")

    async def _outbox(self, session: AsyncSession) -> Finding:
        row = (
            await session.execute(
                text(
                    "SELECT count(*) AS waiting, "
                    "coalesce(max(extract(epoch FROM clock_timestamp() - occurred_at)), 0) AS oldest "
                    "FROM (SELECT occurred_at FROM outbox ORDER BY id LIMIT 100000) AS first"
                )
            )
        ).one()
        says = f"{row.waiting} events wait, the oldest for {row.oldest:.1f} s"
        result = Result.BROKEN if row.oldest > _SLOW_OUTBOX_SECONDS else Result.OK
        return Finding("outbox", result, row.waiting, says)

    async def _open_letters(self, session: AsyncSession) -> Finding:
        rows = (
            await session.execute(
                text(
                    "SELECT command, code, count(*) AS number, min(received_at) AS oldest FROM dead_letters "
                    "WHERE state = 'open' GROUP BY command, code ORDER BY number DESC"
                )
            )
        ).all()
        total = sum(row.number for row in rows)
        examples = [f"{row.number} x {row.command} {row.code}, since {row.oldest:%Y-%m-%d %H:%M}" for row in rows]
        return _finding("dead letters", Result.NOTICE, total, f"{total} are open", examples, when_none="none is open")

    async def _letters_of_refused(self, session: AsyncSession) -> Finding:
        """A message that was refused lies among the dead letters."""
        rows = (
            await session.execute(
                text(
                    "SELECT message_id, command, EXISTS (SELECT FROM dead_letters AS letter "
                    "WHERE letter.message_id = inbox.message_id::text) AS has_letter "
                    "FROM inbox WHERE refused AND received_at >= :since LIMIT 100000"
                ),
                {"since": self._since},
            )
        ).all()
        lost = [f"{row.command} {row.message_id}" for row in rows if not row.has_letter]
        says = (
            f"{len(lost)} refused messages are in no dead letter" if lost else "every refused message has its letter"
        )
        return _finding("refused messages", Result.BROKEN, len(rows), says, lost)

    async def _replayed_letters(self, session: AsyncSession) -> Finding:
        """A replayed letter is done, says the inbox as well."""
        rows = (
            await session.execute(
                text(
                    "SELECT letter.dead_letter_id, inbox.refused FROM dead_letters AS letter "
                    "JOIN inbox ON inbox.message_id::text = letter.message_id "
                    "WHERE letter.state = 'replayed' AND letter.resolved_at >= :since "
                    "AND letter.message_id ~* '^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$' LIMIT 100000"
                ),
                {"since": self._since},
            )
        ).all()
        wrong = [str(row.dead_letter_id) for row in rows if row.refused]
        says = f"{len(wrong)} are replayed, and refused in the inbox" if wrong else "the inbox agrees"
        return _finding("replayed letters", Result.BROKEN, len(rows), says, wrong)

    async def _filled_orders(self, session: AsyncSession) -> Finding:
        """An order is filled by no less than its trades, and by no more than its size."""
        rows = (
            await session.execute(
                text(
                    "SELECT o.order_id, o.size, o.filled_size, sum(t.size) AS traded FROM orders AS o "
                    "JOIN trades AS t ON t.order_id = o.order_id AND t.side = o.side "
                    "WHERE t.recorded_at >= :since GROUP BY o.order_id LIMIT 100000"
                ),
                {"since": self._since},
            )
        ).all()
        wrong = [f"order {r.order_id}: size {r.size}, trades {r.traded}" for r in rows if r.traded > r.size]
        says = (
            f"{len(wrong)} orders have more trades than their size" if wrong else "no order is traded beyond its size"
        )
        return _finding("orders and trades", Result.NOTICE, len(rows), says, wrong)

    async def _partitions(self, session: AsyncSession) -> Finding:
        """Rows in a default partition are where no partition was made for them."""
        parents = list(
            await session.scalars(
                text(
                    "SELECT c.relname FROM pg_class AS c JOIN pg_inherits AS i ON i.inhrelid = c.oid "
                    "WHERE pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT' AND pg_table_is_visible(c.oid)"
                )
            )
        )
        filled = [
            name
            for name in parents
            if await session.scalar(text(f'SELECT EXISTS (SELECT FROM "{name}")'))  # noqa: S608 - from the catalog
        ]
        says = f"{len(filled)} default partitions hold rows" if filled else "no default partition holds rows"
        return _finding("partitions", Result.NOTICE, len(parents), says, filled)

    async def _long_transactions(self, session: AsyncSession) -> Finding:
        rows = (
            await session.execute(
                text(
                    "SELECT pid, application_name, state, extract(epoch FROM clock_timestamp() - xact_start) AS age "
                    "FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL"
                )
            )
        ).all()
        old = [
            f"{row.application_name or 'unnamed'} ({row.pid}), {row.state}: {row.age:.0f} s"
            for row in rows
            if row.age > _LONG_TRANSACTION_SECONDS
        ]
        says = f"{len(old)} are open for more than a minute" if old else "none is open for long"
        return _finding("transactions", Result.NOTICE, len(rows), says, old)

    async def _statistics(self, session: AsyncSession) -> Finding:
        rows = (
            await session.execute(
                text(
                    "SELECT relname, n_live_tup, n_dead_tup, "
                    "last_analyze IS NULL AND last_autoanalyze IS NULL AS blind "
                    "FROM pg_stat_user_tables WHERE n_live_tup + n_dead_tup > 10000"
                )
            )
        ).all()
        bad = [
            f"{r.relname}: {r.n_dead_tup} dead rows of {r.n_live_tup}" for r in rows if r.n_dead_tup > r.n_live_tup
        ]
        bad += [f"{row.relname}: never analyzed" for row in rows if row.blind]
        says = f"{len(bad)} tables need a vacuum or an analyze" if bad else "vacuum and analyze keep up"
        return _finding("statistics", Result.NOTICE, len(rows), says, bad)

    async def _settings(self, session: AsyncSession) -> Finding:
        """What was committed survives a power cut only with these."""
        names = ("fsync", "full_page_writes", "synchronous_commit")
        values = {name: await session.scalar(text(f"SHOW {name}")) for name in names}
        wrong = [f"{name} = {value}" for name, value in values.items() if value in ("off", "local")]
        says = "commits may be lost with the power" if wrong else "commits survive a power cut"
        return _finding("durability", Result.BROKEN, len(names), says, wrong)

    async def _constraints(self, session: AsyncSession) -> Finding:
        invalid = list(
            await session.scalars(
                text(
                    "SELECT conname::text FROM pg_constraint WHERE NOT convalidated UNION ALL "
                    "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
                )
            )
        )
        total = await session.scalar(text("SELECT count(*) FROM pg_constraint WHERE connamespace <> 11")) or 0
        says = f"{len(invalid)} do not hold for every row" if invalid else "all hold for every row"
        return _finding("constraints", Result.BROKEN, total, says, invalid)


class _Reading:
    """A transaction that can only read, on a connection that waits for nobody."""

    def __init__(self, sessions: SessionMaker) -> None:
        self._session = sessions()

    async def __aenter__(self) -> AsyncSession:
        await self._session.connection(execution_options={"postgresql_readonly": True})
        return self._session

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()


async def queues(link: Link) -> Finding:
    """What the broker has given up on, and what waits."""
    examples = []
    given_up = 0
    try:
        with lost_links_as_errors():
            channel = await link.channel()
            for queue in QUEUES:
                declared = (await channel.declare_queue(queue.name, passive=True, timeout=5)).declaration_result
                if declared.message_count or not declared.consumer_count:
                    examples.append(
                        f"{queue.name}: {declared.message_count} wait, {declared.consumer_count} consumers"
                    )
                if queue.name == DEAD_LETTER_QUEUE:
                    given_up = declared.message_count or 0
                    if not given_up and examples and examples[-1].startswith(queue.name):
                        examples.pop()  # nobody consumes what the broker gave up on
    except BROKEN_LINK as error:
        return Finding("queues", Result.UNKNOWN, 0, f"the broker does not answer ({type(error).__name__})")
    if given_up:
        return Finding("queues", Result.BROKEN, len(QUEUES), f"the broker gave up on {given_up} messages", examples)
    return _finding(
        "queues", Result.NOTICE, len(QUEUES), "some wait, or have no consumer", examples, when_none="all are empty"
    )


async def listen(sessions: SessionMaker, url: str, seconds: float, progress: Progress) -> Finding:
    """Whether what is stored from now on is announced: every new row of the ledgers once, and nothing else."""
    heard: defaultdict[str, list[int]] = defaultdict(list)
    sequences: defaultdict[str, list[int]] = defaultdict(list)
    seen: set[str] = set()

    async def hear(message: AbstractIncomingMessage) -> None:
        event = json.loads(message.body)
        if event["event_id"] in seen:
            return  # a repetition, which is allowed
        seen.add(event["event_id"])
        sequences[event["type"]].append(event["sequence"])
        if event["type"] in _ANNOUNCED:
            _, key = _ANNOUNCED[event["type"]]
            heard[event["type"]] += [change["key"][key] for change in event["changes"]]

    link = Link(url, name="persistence-audit")
    try:
        with lost_links_as_errors():
            channel = await link.channel()
            queue = await channel.declare_queue(exclusive=True, auto_delete=True)
            await queue.bind(EVENTS.name, "#")
            await queue.consume(hear, no_ack=True)
        since = await _clock(sessions)
        for second in range(round(seconds)):
            progress("listening", len(seen))
            await asyncio.sleep(min(1.0, seconds - second))
        until = await _clock(sessions)
        stored = {kind: await _stored(sessions, kind, since, until) for kind in _ANNOUNCED}
        deadline = time.monotonic() + _SECONDS_FOR_EVENTS
        while any(rows - set(heard[kind]) for kind, rows in stored.items()) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    except BROKEN_LINK as error:
        return Finding("events", Result.UNKNOWN, 0, f"the broker does not answer ({type(error).__name__})")
    finally:
        await link.close()
    problems = []
    for kind, rows in stored.items():
        problems += [f"{kind} {row}: not announced" for row in sorted(rows - set(heard[kind]))]
        problems += [
            f"{kind} {row}: announced twice" for row in sorted(set(heard[kind])) if heard[kind].count(row) > 1
        ]
    for kind, numbers in sequences.items():
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            problems.append(f"{kind}: its numbers have a gap")
    examined = sum(map(len, stored.values()))
    says = f"{len(problems)} rows or events do not fit" if problems else f"{len(seen)} events fit the rows"
    return _finding("events", Result.BROKEN, examined, says, problems)


async def _clock(sessions: SessionMaker) -> datetime:
    async with _Reading(sessions) as session:
        now: datetime = await session.scalar(text("SELECT clock_timestamp()"))
        return now


async def _stored(sessions: SessionMaker, kind: str, since: datetime, until: datetime) -> set[int]:
    """The rows whose transactions began in between."""
    table, key = _ANNOUNCED[kind]
    # The newest by id: recorded_at has no index of its own.
    query = text(
        f"SELECT {key} FROM (SELECT {key}, recorded_at FROM {table} ORDER BY {key} DESC LIMIT 100000) AS newest "  # noqa: S608 - names from here
        "WHERE recorded_at >= :since AND recorded_at < :until"
    )
    async with _Reading(sessions) as session:
        return set(await session.scalars(query, {"since": since, "until": until}))


def _finding(
    check: str, worst: Result, examined: int, says: str, examples: list[str], *, when_none: str | None = None
) -> Finding:
    if not examples:
        return Finding(check, Result.OK, examined, when_none or says)
    return Finding(check, worst, examined, says, examples[:_EXAMPLES])
