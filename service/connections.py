"""What an engine knows of its connections: which still live, and what the server may still have of those it gave up.

A link that falls silent is noticed here by a time-out. The server need not notice at all: a proxy between the two may
keep its side open, and a session that was cut between the two halves of a statement (asyncpg prepares with Parse and
Flush, and only then sends Bind and Sync) counts as active and waits for the rest, which neither
``statement_timeout`` nor ``idle_in_transaction_session_timeout`` ends. Its locks would keep everybody waiting. So the
sessions of connections that were given up are ended from the next one that works.
"""

import math
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import asyncpg
import structlog
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

log = structlog.get_logger()

REST_SECONDS: Final = 0.5
"""After a rest of that long a connection is tried before it is used."""
_PING_SECONDS: Final = 2.0
_SESSION: Final = "session"

# Behind a pooler the session that answers is not the one that was connected to, and it may be another's next moment.
_WHICH_SESSION: Final = (
    "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid() AND pid = $1::integer"
)
# By start as well: a number may have been given to another process since.
_END: Final = (
    "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity "
    "JOIN unnest($1::integer[], $2::timestamptz[]) AS given_up (pid, backend_start) USING (pid, backend_start)"
)


class _Session(NamedTuple):
    """What tells a session of the server's from any other that it has had."""

    pid: int
    started: datetime


class Connections:
    """Watches over the connections of an engine."""

    def __init__(self, engine: Engine, *, ping_after_rest: bool) -> None:
        self.invalidated = 0
        """How many were found broken and thrown away; pools do not count that."""
        self._ping_after_rest = ping_after_rest
        self._given_up: set[_Session] = set()
        self._silent_at = -math.inf
        event.listen(engine.pool, "connect", self._opened)
        event.listen(engine.pool, "checkin", self._rests)
        event.listen(engine.pool, "checkout", self._is_wanted)
        event.listen(engine.pool, "invalidate", self._is_broken)
        event.listen(engine.pool, "soft_invalidate", self._is_broken)
        event.listen(engine.pool, "close", self._closes)
        event.listen(engine, "handle_error", self._failed)

    def _opened(self, connection: Any, record: ConnectionPoolEntry) -> None:
        record.info["opened"] = time.monotonic()
        found = _run(connection, _WHICH_SESSION, connection.driver_connection.get_server_pid())
        record.info[_SESSION] = [_Session(*row) for row in found]

    def _rests(self, _: Any, record: ConnectionPoolEntry) -> None:
        record.info["idle_since"] = time.monotonic()

    def _is_wanted(self, connection: Any, record: ConnectionPoolEntry, _: Any) -> None:
        """Try a connection that was idle before it is used: SQLAlchemy's own pre-ping tries it each time.

        A lane gets its connection back within a millisecond, and a round trip per batch is a large part of what a
        batch costs. One that breaks while in use is an outage that callers handle anyway.
        """
        rested = time.monotonic() - record.info.get("idle_since", math.inf)
        try:
            if self._ping_after_rest and rested >= REST_SECONDS:
                _run(connection, "SELECT")
            if self._given_up:
                self._end_given_up(connection)
        except Exception as error:
            self._fell_silent(connection)
            if record.info.get("idle_since") is None:
                raise ConnectionError("the connection broke while it was opened") from error
            # The others rested on the same link: they are replaced as well, before each makes somebody wait.
            raise InvalidatePoolError("the connection broke while nobody used it") from error

    def _end_given_up(self, connection: Any) -> None:
        sessions = list(self._given_up)
        try:
            ended = _run(connection, _END, [session.pid for session in sessions], [one.started for one in sessions])
        except asyncpg.InsufficientPrivilegeError:
            ended = ()  # the login has become another's; time-outs of the server have to do
        self._given_up.difference_update(sessions)
        if ended:
            log.warning("sessions_ended", pids=[row["pid"] for row in ended])

    def _failed(self, context: ExceptionContext) -> None:
        """A statement that got no answer in time breaks its connection, as SQLAlchemy sees it too."""
        connection = context.connection
        if isinstance(context.original_exception, TimeoutError) and connection is not None:
            self._fell_silent(connection.connection.dbapi_connection)

    def _fell_silent(self, connection: Any) -> None:
        """Hang up without a goodbye, here and on all that were open by now: it would be waited for."""
        self._silent_at = time.monotonic()
        if connection is not None:
            connection.driver_connection.terminate()

    def _is_broken(self, _: Any, record: ConnectionPoolEntry, __: BaseException | None) -> None:
        self.invalidated += 1
        self._given_up.update(record.info.get(_SESSION, ()))

    def _closes(self, connection: Any, record: ConnectionPoolEntry) -> None:
        if record.info.get("opened", math.inf) <= self._silent_at:
            self._given_up.update(record.info.get(_SESSION, ()))
            connection.driver_connection.terminate()


def _run(connection: Any, statement: str, *arguments: Any) -> Iterable[Any]:
    """What a statement gives on a connection that nobody uses at the moment, without a transaction around it."""
    rows: Iterable[Any] = connection.run_async(
        lambda driver: driver.fetch(statement, *arguments, timeout=_PING_SECONDS)
    )
    return rows


_WATCHED: Final[WeakKeyDictionary[Engine, Connections]] = WeakKeyDictionary()


def watch(engine: AsyncEngine, *, ping_after_rest: bool) -> None:
    """Replace connections of ``engine`` that broke, and end what the server still has of them."""
    _WATCHED[engine.sync_engine] = Connections(engine.sync_engine, ping_after_rest=ping_after_rest)


def invalidated_connections(engine: Engine) -> int:
    """How many connections of a watched engine were found broken and thrown away."""
    return _WATCHED[engine].invalidated if engine in _WATCHED else 0
