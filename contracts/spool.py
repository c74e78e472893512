"""Keep commands on disk until the broker has them for good (extra ``client``).

For a bot that must not lose a trade when it dies, is cut off, or the broker takes nothing. What is put here is sent
in order, one after the other, always the same bytes under the same message id, also by the next process that opens
the same file. The service carries it out once, as long as it knows the id again: for `REMEMBERED_DAYS`, and a trade
with an ``ex_trade_id`` for ever.

    async with PersistenceClient("amqp://...") as client, Spool(client, "bot-7.spool") as spool:
        await spool.put(RecordTrade(...))  # on disk: no outage and no kill -9 takes it away any more
        await spool.flush()                # or wait until the broker has everything

What may pass (no broker, no service, a refused login, a full disk) is waited for and logged once. Any other failure
ends the sending: from then on `put`, `flush` and `close` raise `SpoolFailed` with its cause, and what was put stays
on disk for the next process. One process at a time may hold a spool.
"""

import asyncio
import fcntl
import json
import logging
import os
import sqlite3
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self
from uuid import UUID, uuid4

from contracts.base import Command
from contracts.cancellation import end
from contracts.client import PersistenceClient, new_message_id
from contracts.errors import ErrorCode, LoginRefused, NotConfirmed, Refusal, Unroutable
from contracts.producer import PRODUCER_HEADER, SEQUENCE_HEADER
from contracts.topology import MAX_COMMAND_BYTES, Lane

Durability = Literal["power loss", "process death"]

_LIMIT_BYTES: Final = 256 * 1024 * 1024
_ATTEMPT_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 1.0
_DONE_AT_ONCE: Final = 100
_NOT_OPEN: Final = "the spool is not open: use `async with`"
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS producer (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS commands (
    -- AUTOINCREMENT: the number of a command that is gone is not given to another.
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    message_id TEXT NOT NULL,
    name TEXT NOT NULL,
    body BLOB NOT NULL,
    headers TEXT NOT NULL,
    may_be_dropped INTEGER NOT NULL
);
"""


log = logging.getLogger(__name__)


class SpoolFailed(Exception):  # noqa: N818 - as the refusals of the client
    """Nothing is sent any more, for a reason that does not pass; it is the cause of this."""


class SpoolFull(Exception):  # noqa: N818 - as above
    """There is no room, and nothing in the spool may be dropped: the broker has been away for too long."""


class SpoolInUse(Exception):  # noqa: N818 - as above
    """Another process holds this spool."""


class _Stored(NamedTuple):
    sequence: int
    message_id: str
    name: str
    body: bytes
    headers: str


class Spool:
    """A file of commands on their way to the broker."""

    def __init__(
        self,
        client: PersistenceClient,
        path: str | os.PathLike[str],
        *,
        durability: Durability = "power loss",
        limit_bytes: int = _LIMIT_BYTES,
    ) -> None:
        """``durability`` says what a command survives once `put` has returned.

        "power loss" waits for the disk with each command; "process death" does not, and the last commands before a
        power cut may be gone. With more than ``limit_bytes`` waiting the oldest log entries are dropped; other
        commands never are.
        """
        self._client = client
        self._path = Path(path)
        self._durability = durability
        self._limit = limit_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._database: sqlite3.Connection | None = None
        self._lock: int | None = None
        self._producer = ""
        self._bytes = 0
        self._confirmed = 0
        """Up to which number the broker has everything."""
        self._deleted = 0
        """Up to which number everything is gone from the file."""
        self._sending = 0
        self._news = asyncio.Event()
        self._empty = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._complaint = ""
        self.dropped = 0
        """Log entries that were given up for want of room."""
        self.refused: list[tuple[UUID, Refusal]] = []
        """Commands that no broker would take, with the reason; they are not sent again."""

    async def __aenter__(self) -> Self:
        try:
            await self._in_thread(self._open)
        except BaseException:
            await self._in_thread(self._shut)
            raise
        self._sender = asyncio.create_task(self._send_all(), name=f"spool {self._path.name}")
        self._sender.add_done_callback(self._sender_ended)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except SpoolFailed:
            if error is None:
                raise

    async def close(self) -> None:
        """Stop sending; what is not confirmed stays for the next process.

        Raises `SpoolFailed` if sending had failed before.
        """
        sender, self._sender = self._sender, None
        if sender is None:
            return
        failed = _failure(sender, self._path)
        try:
            await end(sender)
        finally:
            await self._in_thread(self._shut)
            self._thread.shutdown()
        if failed is not None:
            raise failed

    async def put(
        self, command: Command[Any], *, message_id: UUID | None = None, headers: Mapping[str, Any] | None = None
    ) -> UUID:
        """Keep a command, to be sent as soon as can be; gives its message id.

        Never waits for the broker. Raises `SpoolFull` if there is no room, `Refusal` for one that is too large,
        ``sqlite3.OperationalError`` if the disk does not take it, and `SpoolFailed` if nothing is sent any more; in
        each case it is not kept.
        """
        self._check()
        message_id = message_id or new_message_id()
        body = command.model_dump_json(exclude_unset=True).encode()
        if len(body) > MAX_COMMAND_BYTES:
            raise Refusal(
                ErrorCode.VALIDATION, f"is {len(body)} bytes; at most {MAX_COMMAND_BYTES} are taken", field="body"
            )
        may_be_dropped = command.lane is Lane.BOT_LOGS
        row = (str(message_id), command.wire_name, body, json.dumps(dict(headers or {})), may_be_dropped)
        # Once begun it is either on disk and sent, or raises, also if the caller is cancelled.
        await asyncio.shield(self._keep(row))
        return message_id

    async def _keep(self, row: tuple[Any, ...]) -> None:
        await self._in_thread(self._insert, row)
        self._empty.clear()
        self._news.set()

    async def flush(self) -> None:
        """Return when the broker has everything that was put here; raises `SpoolFailed` if it never will."""
        self._check()
        await self._empty.wait()
        self._check()

    async def waiting(self) -> int:
        """How many commands the broker has not confirmed."""
        number: int = await self._in_thread(self._count)
        return number

    # In the event loop.

    def _check(self) -> None:
        if self._sender is None:
            raise RuntimeError(_NOT_OPEN)
        if (failed := _failure(self._sender, self._path)) is not None:
            raise failed

    def _sender_ended(self, sender: asyncio.Task[None]) -> None:
        if (failed := _failure(sender, self._path)) is not None and self._sender is sender:
            log.error("%s", failed, exc_info=failed.__cause__)
        self._empty.set()  # whoever waits has to look again

    async def _send_all(self) -> None:
        confirmed = 0
        while True:
            self._news.clear()
            try:
                stored: _Stored | None = await self._in_thread(self._next, confirmed)
            except sqlite3.OperationalError as error:
                if not _may_pass(error):
                    raise
                await self._pause(error)
                continue
            self._complaint = ""
            if stored is None:
                if not self._news.is_set():
                    self._empty.set()
                await self._news.wait()
                continue
            await self._send(stored)
            confirmed = stored.sequence

    async def _send(self, stored: _Stored) -> None:
        """Until it is confirmed: what comes after it must not overtake it."""
        headers = {
            **json.loads(stored.headers),
            PRODUCER_HEADER: self._producer,
            SEQUENCE_HEADER: stored.sequence,
        }
        message_id = UUID(stored.message_id)
        while True:
            try:
                await self._client.publish_bytes(
                    stored.name, stored.body, message_id=message_id, headers=headers, timeout=_ATTEMPT_SECONDS
                )
            except NotConfirmed:
                continue  # it has waited already
            except (Unroutable, LoginRefused) as error:
                # No service was ever started there, or its login is not let in: one may yet be.
                await self._pause(error)
            except Refusal as refusal:
                self.refused.append((message_id, refusal))
                return
            else:
                return

    async def _pause(self, error: Exception) -> None:
        """Before another attempt; the reason is logged once and not with each."""
        complaint = f"{type(error).__name__}: {error}"
        if complaint != self._complaint:
            log.warning("%s waits: %s", self._path, complaint)
            self._complaint = complaint
        await asyncio.sleep(_PAUSE_SECONDS)

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    # In the one thread that touches the file.

    def _open(self) -> None:
        self._lock = os.open(f"{self._path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = None
            raise SpoolInUse(f"{self._path} is held by another process") from None
        # Commands may hold what is nobody else's business.
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"PRAGMA synchronous = {'FULL' if self._durability == 'power loss' else 'NORMAL'}")
        database.executescript(_TABLES)
        database.execute("INSERT INTO producer SELECT ? WHERE NOT EXISTS (SELECT 1 FROM producer)", (str(uuid4()),))
        [self._producer] = database.execute("SELECT id FROM producer").fetchone()
        [self._bytes] = database.execute("SELECT coalesce(sum(length(body)), 0) FROM commands").fetchone()
        self._database = database
        self._sync_folder()

    def _sync_folder(self) -> None:
        """A new file is there after a power cut only if its folder was written too."""
        folder = os.open(self._path.resolve().parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _shut(self) -> None:
        try:
            if self._database is not None:
                with suppress(sqlite3.Error):
                    self._forget_done()
                self._database.close()
                self._database = None
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _held(self) -> sqlite3.Connection:
        if self._database is None:
            raise RuntimeError(_NOT_OPEN)
        return self._database

    def _insert(self, row: tuple[str, str, bytes, str, bool]) -> None:
        database, size = self._held(), len(row[2])
        dropped: list[tuple[int]] = []
        freed = 0
        if self._bytes + size > self._limit:
            self._forget_done()
            dropped, freed = self._superfluous(self._bytes + size - self._limit)
        database.execute("BEGIN IMMEDIATE")
        try:
            database.executemany("DELETE FROM commands WHERE sequence = ?", dropped)
            database.execute(
                "INSERT INTO commands (message_id, name, body, headers, may_be_dropped) VALUES (?, ?, ?, ?, ?)", row
            )
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:  # SQLite has taken some failures back by itself
                database.execute("ROLLBACK")
            raise
        self._bytes += size - freed
        self.dropped += len(dropped)

    def _superfluous(self, size: int) -> tuple[list[tuple[int]], int]:
        """The oldest log entries, as few as make up ``size`` bytes, and how many bytes they are."""
        freed = 0
        dropped: list[tuple[int]] = []
        for sequence, length in self._held().execute(
            # Not the one that is being sent.
            "SELECT sequence, length(body) FROM commands WHERE may_be_dropped AND sequence > ? ORDER BY sequence",
            (self._sending,),
        ):
            if freed >= size:
                break
            dropped.append((sequence,))
            freed += length
        if freed < size:
            raise SpoolFull(f"{self._path} holds {self._bytes} bytes that the broker has not taken")
        return dropped, freed

    def _next(self, confirmed: int) -> _Stored | None:
        """The oldest command behind ``confirmed``, the last one that the broker has."""
        self._confirmed = confirmed
        row = (
            self._held()
            .execute(
                "SELECT sequence, message_id, name, body, headers FROM commands WHERE sequence > ? "
                "ORDER BY sequence LIMIT 1",
                (confirmed,),
            )
            .fetchone()
        )
        if row is None or confirmed - self._deleted >= _DONE_AT_ONCE:
            with suppress(sqlite3.OperationalError):  # a full disk must not keep the rest from being sent
                self._forget_done()
        if row is None:
            return None
        stored = _Stored(*row)
        self._sending = stored.sequence
        return stored

    def _forget_done(self) -> None:
        """Delete what is confirmed, many at once: to send it again would do no harm."""
        if self._confirmed == self._deleted:
            return
        database, last = self._held(), self._confirmed
        [size] = database.execute(
            "SELECT coalesce(sum(length(body)), 0) FROM commands WHERE sequence <= ?", (last,)
        ).fetchone()
        database.execute("DELETE FROM commands WHERE sequence <= ?", (last,))
        self._deleted = last
        self._bytes -= size

    def _count(self) -> int:
        [number] = (
            self._held().execute("SELECT count(*) FROM commands WHERE sequence > ?", (self._confirmed,)).fetchone()
        )
        return int(number)


def _may_pass(error: sqlite3.OperationalError) -> bool:
    """Whether it is the disk's or another process's doing, and not that of the statement or the tables."""
    return getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_ERROR


def _failure(sender: asyncio.Task[None], path: Path) -> SpoolFailed | None:
    """What to raise if the sender has ended, which it does by itself only for a reason that does not pass."""
    if not sender.done():
        return None
    cause = None if sender.cancelled() else sender.exception()
    reason = "its task was cancelled" if cause is None else f"{type(cause).__name__}: {cause}"
    failed = SpoolFailed(f"{path} sends nothing any more: {reason}; what was put is on disk")
    failed.__cause__ = cause
    return failed
