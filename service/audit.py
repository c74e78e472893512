"""Looks over a live system for what must not be, and says what cannot be seen. Reads only, and never hastily."""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Any, Final
from uuid import UUID

from aio_pika.abc import AbstractIncomingMessage
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.amqp import BROKEN_LINK, Link, lost_links_as_errors
from contracts.topology import DEAD_LETTER_QUEUE, EVENTS, QUEUES
from service.database import SessionMaker
from service.history import Comparison, Progress, Reading, compare
from service.jobs.partitions import PARTITIONED


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


@dataclass(frozen=True)
class Check:
    """A query whose every row is something that was looked at: ``what`` it is, and whether that is ``wrong``."""

    name: str
    worst: Result
    """What it comes to if something is wrong."""
    fine: str
    """What it says if nothing is."""
    wrong: str
    """What it says about ``{n}`` that are."""
    query: str

    async def run(self, session: AsyncSession, since: datetime) -> Finding:
        """Look; ``:since`` in the query is ``since``."""
        query = text(
            "SELECT count(*) AS examined, count(*) FILTER (WHERE wrong) AS wrong, "  # noqa: S608 - of this module
            f"(array_agg(what ORDER BY what) FILTER (WHERE wrong))[1 \\: {_EXAMPLES}] AS examples "
            f"FROM ({self.query}) AS looked"
        )
        row = (await session.execute(query, {"since": since} if ":since" in self.query else {})).one()
        if not row.wrong:
            return Finding(self.name, Result.OK, row.examined, self.fine)
        return Finding(self.name, self.worst, row.examined, self.wrong.format(n=row.wrong), list(row.examples))


CANNOT_SEE: Final = (
    "whether what was published reached a subscriber: --listen tries it with what is published meanwhile",
    "changes and events from before the record of events begins, and an update of such a row that was not announced",
    "the inbox keeps ids for some days: which message made an older row cannot be told",
    "rows of programs that use the library came in no message",
    "messages that a sender never handed over",
)
"""What no look at the servers can verify."""

_EXAMPLES: Final = 5
_CHUNK: Final = 2_000
_SLOW_OUTBOX_SECONDS: Final = 5
_SECONDS_FOR_EVENTS: Final = 5.0

# Whose rows are noted in the inbox by their id.
_MADE_ROWS: Final = {
    "record_trade": ("trades", "trade_id"),
    "record_dry_trade": ("dry_trades", "dry_trade_id"),
    "save_bot_log": ("bot_logs", "log_id"),
}
_ANNOUNCED: Final = {
    "trade.recorded": ("trades", "trade_id"),
    "dry_trade.recorded": ("dry_trades", "dry_trade_id"),
    "bot_log.saved": ("bot_logs", "log_id"),
}
_DEFAULTS: Final = " UNION ALL ".join(
    f"SELECT '{table.default}' AS what, EXISTS (SELECT FROM {table.default}) AS wrong"  # noqa: S608 - names from here
    for table in PARTITIONED
)

CHECKS: Final = (
    Check(
        "relay",
        Result.BROKEN,
        "somebody publishes, or nobody had to yet",
        "nobody publishes",
        """
        SELECT format('the lease of term %s ran out %s s ago', term,
            extract(epoch FROM clock_timestamp() - expires_at)::int) AS what, expires_at < clock_timestamp() AS wrong
        FROM leases WHERE name = 'relay'
        """,
    ),
    Check(
        "outbox",
        Result.BROKEN,
        f"no event waits for more than {_SLOW_OUTBOX_SECONDS} s",
        f"{{n}} events have waited for more than {_SLOW_OUTBOX_SECONDS} s",
        f"""
        SELECT format('%s of %s', type, occurred_at) AS what,
            occurred_at < clock_timestamp() - interval '{_SLOW_OUTBOX_SECONDS} s' AS wrong
        FROM outbox ORDER BY id LIMIT 100000
        """,  # noqa: S608 - a number
    ),
    Check(
        "dead letters",
        Result.NOTICE,
        "none is open",
        "of {n} kinds some are open",
        """
        SELECT format('%s x %s %s, since %s', count(*), command, code,
            to_char(min(received_at), 'YYYY-MM-DD HH24:MI')) AS what, true AS wrong
        FROM dead_letters WHERE state = 'open' GROUP BY command, code
        """,
    ),
    Check(
        "refused messages",
        Result.BROKEN,
        "every refused message has its letter",
        "{n} refused messages are in no dead letter",
        """
        SELECT format('%s %s', command, message_id) AS what, NOT EXISTS (
            SELECT FROM dead_letters AS letter WHERE letter.message_id = inbox.message_id::text
        ) AS wrong
        FROM inbox WHERE refused AND received_at >= :since LIMIT 100000
        """,
    ),
    Check(
        "replayed letters",
        Result.BROKEN,
        "the inbox agrees that replayed letters are done",
        "{n} are replayed, and refused in the inbox",
        """
        SELECT letter.dead_letter_id::text AS what, inbox.refused AS wrong
        FROM dead_letters AS letter JOIN inbox ON inbox.message_id::text = letter.message_id
        WHERE letter.state = 'replayed' AND letter.resolved_at >= :since
            AND letter.message_id ~* '^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$' LIMIT 100000
        """,
    ),
    Check(
        "orders and trades",
        Result.NOTICE,
        "no order is traded beyond its size",
        "{n} orders have more trades than their size",
        """
        SELECT format('order %s: size %s, trades %s', o.order_id, o.size, sum(t.size)) AS what,
            sum(t.size) > o.size AS wrong
        FROM orders AS o JOIN trades AS t ON t.order_id = o.order_id AND t.side = o.side
        WHERE t.recorded_at >= :since GROUP BY o.order_id LIMIT 100000
        """,
    ),
    Check(
        "partitions",
        Result.NOTICE,
        "no default partition holds rows",
        "{n} default partitions hold rows, for which no partition was made",
        _DEFAULTS,
    ),
    Check(
        "transactions",
        Result.NOTICE,
        "none is open for long",
        "{n} are open for more than a minute",
        """
        SELECT format('%s (%s), %s: %s s', coalesce(nullif(application_name, ''), 'unnamed'), pid, state,
            extract(epoch FROM clock_timestamp() - xact_start)::int) AS what,
            xact_start < clock_timestamp() - interval '1 minute' AS wrong
        FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL
        """,
    ),
    Check(
        "statistics",
        Result.NOTICE,
        "vacuum and analyze keep up",
        "{n} tables need a vacuum or an analyze",
        """
        SELECT format('%s: %s dead rows of %s', relname, n_dead_tup, n_live_tup)
                || CASE WHEN blind THEN ', never analyzed' ELSE '' END AS what,
            blind OR n_dead_tup > n_live_tup AS wrong
        FROM pg_stat_user_tables,
            LATERAL (SELECT last_analyze IS NULL AND last_autoanalyze IS NULL AS blind) AS analyzed
        WHERE n_live_tup + n_dead_tup > 10000
        """,
    ),
    Check(
        "durability",
        Result.BROKEN,
        "commits survive a power cut",
        "commits may be lost with the power",
        """
        SELECT format('%s = %s', name, setting) AS what, setting IN ('off', 'local') AS wrong
        FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit')
        """,
    ),
    Check(
        "constraints",
        Result.BROKEN,
        "all hold for every row",
        "{n} do not hold for every row",
        """
        SELECT conname::text AS what, NOT convalidated AS wrong FROM pg_constraint WHERE connamespace <> 11
        UNION ALL SELECT indexrelid::regclass::text, NOT indisvalid FROM pg_index
        """,
    ),
)


class Audit:
    """One look over everything that was stored since an instant."""

    def __init__(self, sessions: SessionMaker, since: datetime, *, progress: Progress = lambda *_: None) -> None:
        self._sessions = sessions
        self._since = since
        self._progress = progress
        self._reading = partial(Reading, sessions)

    async def run(self) -> list[Finding]:
        """What the database tells, check by check."""
        history = await compare(self._reading, self._since, self._progress)
        findings = [*_told(history, self._since), await self._inbox(history)]
        for check in CHECKS:
            self._progress(check.name, 0)
            async with self._reading() as session:
                findings.append(await check.run(session, self._since))
        return findings

    async def _inbox(self, history: Comparison) -> Finding:
        """Every message that made a row made one of its own, and it is there."""
        examined, missing, gone = 0, [], 0
        makers: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
        async for rows in self._inbox_rows():
            examined += len(rows)
            for command, (table, key) in _MADE_ROWS.items():
                made = {row.row_id: row.message_id for row in rows if row.command == command}
                for row in rows:
                    if row.command == command:
                        makers[command, row.row_id].append(str(row.message_id))
                if not made:
                    continue
                async with self._reading() as session:
                    query = text(f"SELECT {key} FROM {table} WHERE {key} = ANY(:ids)")  # noqa: S608 - names from here
                    there = set(await session.scalars(query, {"ids": list(made)}))
                for row_id in made.keys() - there:
                    if history.may_be_gone(table, str(row_id)):
                        gone += 1
                    else:
                        missing.append(f"{command} {made[row_id]}: no {table} {row_id}")
            self._progress("inbox and rows", examined)
        twice = [f"{command} {row}: {', '.join(ids)}" for (command, row), ids in makers.items() if len(ids) > 1]
        says = "every message noted with a row has one of its own"
        if missing or twice:
            says = f"{len(missing)} messages without their row, {len(twice)} rows of several messages"
        elif gone:
            says = f"{says}; {gone} rows were deleted since"
        return _finding("inbox and rows", Result.BROKEN, examined, says, [*missing, *twice])

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


def _told(history: Comparison, since: datetime) -> list[Finding]:
    """What comparing rows with events came to."""
    if history.begins is None:
        return [Finding("events and rows", Result.NOTICE, 0, "no event is on record yet")]
    late = f", from {history.begins:%Y-%m-%d %H:%M:%S} on, when the record begins" if history.begins > since else ""
    findings = [
        _finding(
            f"events of {compared.table}",
            Result.BROKEN,
            compared.rows,
            f"{len(compared.problems)} rows do not fit what was announced"
            if compared.problems
            else f"each version of each row was announced once{late}",
            compared.problems,
        )
        for compared in history.tables
    ]
    says = f"{len(history.gaps)} breaks in their numbers" if history.gaps else "their numbers have no gap"
    return [*findings, _finding("events", Result.BROKEN, history.events.total(), says, history.gaps)]


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
        return Finding("events heard", Result.UNKNOWN, 0, f"the broker does not answer ({type(error).__name__})")
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
    return _finding("events heard", Result.BROKEN, examined, says, problems)


async def _clock(sessions: SessionMaker) -> datetime:
    async with Reading(sessions) as session:
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
    async with Reading(sessions) as session:
        return set(await session.scalars(query, {"since": since, "until": until}))


def _finding(
    check: str, worst: Result, examined: int, says: str, examples: list[str], *, when_none: str | None = None
) -> Finding:
    if not examples:
        return Finding(check, Result.OK, examined, when_none or says)
    return Finding(check, worst, examined, says, examples[:_EXAMPLES])
