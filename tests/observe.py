"""What a test sees of the service without a broker: answers, refusals, events and how many statements it took."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import ErrorBody, Lookup
from contracts.base import EVENT_TYPES, Change, Command, decode
from service.database import SessionMaker
from service.executor import Executor
from service.models import OutboxEvent
from tests.builders import Asking, received


async def answer(sessions: SessionMaker, lookup: Lookup[Any]) -> Any:
    """The answer to a lookup, read from the database and through the wire format."""
    return await Asking(sessions).ask(decode(type(lookup), lookup.model_dump_json().encode()))


async def refusal(executor: Executor, command: Command[Any] | Any) -> ErrorBody:
    """Why a command is refused; fails the test if it is not. A message as received is taken too."""
    message = received(command) if isinstance(command, Command) else command
    [reply] = await executor.execute([message])
    assert reply.error is not None, reply.data
    return reply.error


async def refused(executor: Executor, command: Command[Any] | Any) -> tuple[str, str | None]:
    """Code and field of a refusal; fails the test if the command is carried out."""
    error = await refusal(executor, command)
    return error.code.value, error.field


async def announced(sessions: SessionMaker, kind: str) -> list[OutboxEvent]:
    """The events of one kind that wait in the outbox, in order."""
    async with sessions() as session:
        return list(
            await session.scalars(select(OutboxEvent).where(OutboxEvent.type == kind).order_by(OutboxEvent.id))
        )


async def events(sessions: SessionMaker, kind: str) -> list[dict[str, Any]]:
    """All changes of one kind that wait in the outbox, in order, each with the stale keys of its own images."""
    rows = await announced(sessions, kind)
    event_type = EVENT_TYPES[kind]
    changes = []
    for row in rows:
        for change in json.loads(row.changes):
            keys = set(event_type.stale_keys_of([Change[event_type.view_type()].model_validate(change)]))  # type: ignore[misc]
            assert keys <= set(row.stale_keys)
            changes.append({**change, "stale_keys": keys})
    return changes


@contextmanager
def statements(engine: AsyncEngine) -> Iterator[list[str]]:
    """The statements that the database is sent meanwhile, without those that begin and end transactions."""
    sent: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        if not statement.startswith(("SAVEPOINT", "RELEASE SAVEPOINT")):
            sent.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", note)
