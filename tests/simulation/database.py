"""A database in memory for executor and relay: transactions, locks, and all that may go wrong with a connection.

What the service's statements mean is told here once more, as briefly as can be; that PostgreSQL takes them to mean
the same is what tests/integration shows. A commit may fail before or after it took effect; nobody is told which.
"""

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self, cast
from unittest.mock import patch
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from contracts.base import Command
from contracts.bot_log import BotLogRef, SaveBotLog
from contracts.errors import ErrorCode, Refusal
from contracts.user import SetUserActive, UserPasswordChanged, UserRef, UserView
from service import dead_letters, executor, inbox, lease, outbox, relay
from service.inbox import Handled, Sent
from service.models import EventStream
from service.received import Received
from service.registry import Handler
from service.unit_of_work import UnitOfWork

_EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
UNKNOWN_BOT: Final = 999


class _InboxViolationError(Exception):
    """What asyncpg says of a key that is taken."""

    sqlstate = "23505"
    constraint_name = "inbox_pkey"


@dataclass(frozen=True)
class LogRow:
    """A log entry: who said it, as the how many-th thing, and in which message."""

    log_id: int
    message: str


@dataclass
class OutboxRow:
    """An event that waits."""

    id: int
    event_id: UUID
    type: str
    transaction_id: int
    occurred_at: datetime
    changes: str
    causation_ids: str
    stale_keys: str
    keys: list[str]
    versions: list[int]
    age: timedelta = timedelta()


@dataclass
class Tables:
    """What is committed."""

    logs: list[LogRow] = field(default_factory=list)
    """In the order of commits."""
    versions: dict[int, int] = field(default_factory=dict)
    """By user."""
    changes: list[tuple[int, int]] = field(default_factory=list)
    """User and version, in the order of commits."""
    inbox: dict[UUID, Handled] = field(default_factory=dict)
    letters: dict[str, str] = field(default_factory=dict)
    """Codes by message id."""
    outbox: dict[int, OutboxRow] = field(default_factory=dict)
    streams: dict[str, int] = field(default_factory=dict)
    published: list[tuple[str, int]] = field(default_factory=list)
    """Type and number of what the relay deleted."""
    holder: UUID | None = None
    term: int = 0
    lease_until: float = 0.0


class Database:
    """Tables, and the connections to them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, chance: random.Random) -> None:
        self.tables = Tables()
        self.chance = chance
        self.is_down = False
        self.trouble = 0.0
        """How likely each round trip fails."""
        self._loop = loop
        self._locks: dict[object, tuple[FakeSession, asyncio.Event]] = {}
        self._last_id = 0

    def now(self) -> float:
        return self._loop.time()

    def next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def uuid(self) -> UUID:
        return UUID(int=self.chance.getrandbits(128), version=4)

    async def round_trip(self) -> None:
        """To the server and back; raises what a lost connection does."""
        if self.chance.random() < 0.7:
            await asyncio.sleep(self.chance.choice((0, 0.001, 0.001, 0.02)))
        if self.is_down or self.chance.random() < self.trouble:
            raise ConnectionError("the database is away")

    async def lock(self, key: object, session: "FakeSession") -> None:
        """Wait for a row or a key until nobody else holds it, and hold it to the transaction's end."""
        while key in self._locks and self._locks[key][0] is not session:
            await self._locks[key][1].wait()
        self._locks.setdefault(key, (session, asyncio.Event()))

    def unlock(self, session: "FakeSession") -> None:
        for key, (holder, free) in list(self._locks.items()):
            if holder is session:
                del self._locks[key]
                free.set()

    def __call__(self) -> "FakeSession":
        return FakeSession(self)

    def begin(self) -> Any:
        """What ``async_sessionmaker.begin`` gives."""
        return self._begin()

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator["FakeSession"]:
        session = FakeSession(self)
        async with session:
            await self.round_trip()
            yield session
            await session.commit()


class Rows(list[Any]):
    """What a statement gave."""

    def all(self) -> list[Any]:
        return self

    def one_or_none(self) -> Any:
        return self[0] if self else None


class FakeSession:
    """A transaction: its writes are its own until the commit."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.info: dict[str, Any] = {}
        self.writes: list[Callable[[Tables], None]] = []
        self.versions: dict[int, int] = {}
        self.transaction_id = database.next_id()
        self._commits_itself = False
        self._savepoints: list[_Savepoint] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        self.database.unlock(self)

    async def connection(self, *, execution_options: Mapping[str, Any]) -> None:
        self._commits_itself = execution_options.get("isolation_level") == "AUTOCOMMIT"
        await self.database.round_trip()

    async def commit(self) -> None:
        outbox._write(cast("Session", _AtCommit(self)))
        await self.database.round_trip()
        await self._take_effect()

    async def end_of_statement(self) -> None:
        """The answer to a statement comes back, and what it did is committed if it is a transaction by itself."""
        if self._commits_itself:
            await self._take_effect()
        else:
            await self.database.round_trip()

    async def _take_effect(self) -> None:
        for write in self.writes:
            write(self.database.tables)
        self.writes.clear()
        self.database.unlock(self)
        await self.database.round_trip()  # it may be lost after it took effect

    @asynccontextmanager
    async def begin_nested(self) -> AsyncIterator[None]:
        savepoint = _Savepoint(len(self.writes), dict(self.versions))
        outbox._mark(cast("Session", self), cast("Any", savepoint))
        self._savepoints.append(savepoint)
        try:
            await self.database.round_trip()
            yield
            await self.database.round_trip()
        except BaseException:
            del self.writes[savepoint.writes :]
            self.versions = savepoint.versions
            outbox._drop(cast("Session", self), cast("Any", savepoint))
            raise
        finally:
            self._savepoints.remove(savepoint)

    async def execute(self, statement: Any, parameters: Any = None) -> Rows:
        await self.database.round_trip()
        tables = self.database.tables
        if statement is inbox._FIND:
            found = (tables.inbox.get(message_id) for message_id in parameters["ids"])
            return Rows(handled for handled in found if handled is not None)
        if statement is inbox._REMEMBER:
            await self._remember(parameters, overwrites="ON CONFLICT" in str(statement))
            return Rows()
        if statement is relay._OLDEST:
            return self._oldest(parameters)
        if statement is relay._DELETE:
            self._delete(parameters)
            await self.database.round_trip()  # it may be lost after it took effect
            return Rows()
        if statement is relay._MARK:
            return self._mark(parameters["holder"], parameters["sent"])
        assert statement.table.name == "outbox", statement
        self.add_events(parameters)
        return Rows()

    async def scalars(self, _: Any) -> list[EventStream]:
        """The only question of this kind is for the last numbers given."""
        await self.database.round_trip()
        return [EventStream(type=kind, sequence=last) for kind, last in self.database.tables.streams.items()]

    def add_events(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write events, whose ids are given now, whenever the commit may be."""
        for row in rows:
            event = OutboxRow(
                id=self.database.next_id(),
                event_id=self.database.uuid(),
                type=row["type"],
                transaction_id=self.transaction_id,
                occurred_at=_EPOCH,
                changes=row["changes"],
                causation_ids=json.dumps([str(cause) for cause in row["causation_ids"]]),
                stale_keys=json.dumps(row["stale_keys"]),
                keys=list(row.get("keys", ())),
                versions=list(row.get("versions", ())),
            )
            self.writes.append(lambda tables, event=event: tables.outbox.__setitem__(event.id, event))  # type: ignore[misc]

    async def _remember(self, parameters: Mapping[str, Any], *, overwrites: bool) -> None:
        names = ("ids", "commands", "hashes", "refused", "replies", "row_ids")
        for message_id, command, payload, refused, reply, row_id in zip(*(parameters[n] for n in names), strict=True):
            kept = json.loads(reply) if reply else None
            await self.remember(Handled(message_id, command, payload, refused, kept, row_id), overwrites=overwrites)

    async def remember(self, handled: Handled, *, overwrites: bool) -> None:
        await self.database.lock(handled.message_id, self)
        if handled.message_id in self.database.tables.inbox and not overwrites:
            if self._commits_itself:
                self.writes.clear()
                self.database.unlock(self)
            raise IntegrityError("INSERT", {}, _InboxViolationError())

        def write(tables: Tables) -> None:
            tables.inbox.setdefault(handled.message_id, handled)

        self.writes.append(write)

    def _holds(self, holder: UUID) -> bool:
        tables = self.database.tables
        return tables.holder == holder and tables.lease_until > self.database.now()

    def _oldest(self, parameters: Mapping[str, Any]) -> Rows:
        if not self._holds(parameters["holder"]):
            return Rows()
        unsent = _without(self.database.tables.outbox, parameters["sent"])
        return Rows([self.database.tables.outbox[row_id] for row_id in unsent][: parameters["rows"]])

    def _delete(self, parameters: Mapping[str, Any]) -> None:
        tables = self.database.tables
        if tables.term != parameters["term"]:
            return
        for row_id, number in sorted(zip(parameters["ids"], parameters["sequences"], strict=True)):
            row = tables.outbox.pop(row_id, None)
            if row is not None:
                tables.published.append((row.type, number))
        tables.streams |= zip(parameters["types"], parameters["numbers"], strict=True)

    def _mark(self, holder: UUID, sent: str) -> Rows:
        if not self._holds(holder):
            return Rows()
        newest = max(_without(self.database.tables.outbox, sent), default=None)
        return Rows([_Mark(_EPOCH + timedelta(seconds=self.database.now()), newest, "1.1.1")])


def _without(ids: Iterable[int], multirange: str) -> list[int]:
    """Ids in order, but for those in a multirange of PostgreSQL's."""
    ranges = [(int(first), int(end)) for first, end in re.findall(r"\[(\d+),(\d+)\)", multirange)]
    return sorted(each for each in ids if not any(first <= each < end for first, end in ranges))


@dataclass(frozen=True)
class _Mark:
    as_of: datetime
    newest: int | None
    timeline: str


@dataclass(eq=False)
class _Savepoint:
    """Stands for SQLAlchemy's in what the outbox is told of."""

    writes: int
    versions: dict[int, int]
    nested: bool = True
    parent: None = None


class _AtCommit:
    """The session as the outbox sees it just before the commit."""

    def __init__(self, session: FakeSession) -> None:
        self._session = session
        self.info = session.info

    def in_nested_transaction(self) -> bool:
        return False

    def flush(self) -> None:
        """Nothing waits to be written."""

    def execute(self, _: Any, rows: Sequence[Mapping[str, Any]]) -> None:
        self._session.add_events(rows)


def _session(work: UnitOfWork | AsyncSession) -> FakeSession:
    return cast("FakeSession", work.session if isinstance(work, UnitOfWork) else work)


async def _save(command: SaveBotLog, work: UnitOfWork) -> BotLogRef:
    session = _session(work)
    await session.database.round_trip()
    if command.bot_id == UNKNOWN_BOT:
        raise Refusal(ErrorCode.NOT_FOUND, "there is no such bot", field="bot_id")
    entry = BotLogRef(log_id=session.database.next_id(), bot_id=command.bot_id)
    row = LogRow(entry.log_id, command.message)
    session.writes.append(lambda tables: tables.logs.append(row))
    session.add_events([_saved([row], [outbox.cause(cast("AsyncSession", session))])])
    return entry


async def _save_many(commands: Sequence[SaveBotLog], sent: Sent, work: UnitOfWork) -> dict[int, int]:
    session = _session(work)
    await session.database.round_trip()
    good = [n for n, command in enumerate(commands) if command.bot_id != UNKNOWN_BOT]
    rows = {n: LogRow(session.database.next_id(), commands[n].message) for n in good}
    if rows:
        session.writes.append(lambda tables: tables.logs.extend(rows.values()))
        session.add_events([_saved(list(rows.values()), [sent.ids[n] for n in good])])
    overwrites = "ON CONFLICT" in inbox.remembered(SaveBotLog, "log_id")
    for n, row in rows.items():
        handled = Handled(cast("UUID", sent.ids[n]), "save_bot_log", sent.hashes[n], refused=False, row_id=row.log_id)
        await session.remember(handled, overwrites=overwrites)
    await session.end_of_statement()
    return {n: row.log_id for n, row in rows.items()}


def _saved(rows: Sequence[LogRow], causes: Sequence[UUID | None]) -> dict[str, Any]:
    changes = [{"key": {"log_id": row.log_id}, "version": 1, "after": {"message": row.message}} for row in rows]
    return {
        "type": "bot_log.saved",
        "causation_ids": [cause for cause in causes if cause is not None],
        "changes": json.dumps(changes),
        "stale_keys": [],
    }


async def _recall(row_id: int, work: UnitOfWork) -> BotLogRef | None:
    await _session(work).database.round_trip()
    there = any(row.log_id == row_id for row in _session(work).database.tables.logs)
    return BotLogRef(log_id=row_id, bot_id=1) if there else None


async def _change(command: SetUserActive, work: UnitOfWork) -> UserView:
    session = _session(work)
    await session.database.lock(("user", command.uid), session)
    await session.database.round_trip()
    version = session.versions.get(command.uid, session.database.tables.versions.get(command.uid, 1))
    new = session.versions[command.uid] = version + 1

    def write(tables: Tables) -> None:
        tables.versions[command.uid] = new
        tables.changes.append((command.uid, new))

    session.writes.append(write)
    before, after = (UserRef(uid=command.uid, row_version=number) for number in (version, new))
    outbox.record(cast("AsyncSession", session), UserPasswordChanged, before=before, after=after)
    return UserView(
        **dict.fromkeys(("mail", "name", "lastname", "phone", "id_num"), "x"),
        **dict.fromkeys(("note", "manager", "external_id")),
        uid=command.uid,
        role="USER",
        active=command.active,
        timestamp=_EPOCH,
        row_version=new,
    )


HANDLERS: Final[Mapping[type[Command[Any]], Handler]] = {
    SaveBotLog: Handler(_save, _save_many, _recall),
    SetUserActive: Handler(_change),
}


@contextmanager
def in_place(database: Database) -> Iterator[None]:
    """Put what else the service asks the database for into its place."""

    async def take(session: Any, _: str, holder: UUID, duration: timedelta) -> int | None:
        await database.round_trip()
        tables = database.tables
        if tables.holder != holder:
            if tables.lease_until > database.now():
                return None
            tables.holder, tables.term = holder, tables.term + 1
        tables.lease_until = database.now() + duration.total_seconds()
        return tables.term

    async def add(session: Any, received: Received, refusal: Refusal) -> None:
        await database.round_trip()
        code, message_id = refusal.code.value, received.message_id or ""
        session.writes.append(lambda tables: tables.letters.setdefault(message_id, code))

    async def lag(_: Any) -> float:
        await database.round_trip()
        return 0.0

    async def probe(_: Any) -> None:
        await database.round_trip()

    async def transaction_id(session: Any) -> str:
        await database.round_trip()
        return str(session.transaction_id)

    with ExitStack() as stack:
        for module, name, function in (
            (lease, "take", take),
            (dead_letters, "add", add),
            (outbox, "lag", lag),
            (inbox, "probe", probe),
            (executor, "_transaction_id", transaction_id),
        ):
            stack.enter_context(patch.object(module, name, function))
        yield
