"""What a test sees of the service without a broker: answers, refusals, events and how many statements it took."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import ErrorBody, Lookup
from contracts.base import EVENT_TYPES, Command, answer_adapter, decode
from service.database import SessionMaker
from service.executor import Executor
from service.lookups import ANSWERS
from service.models import OutboxEvent
from service.unit_of_work import UnitOfWork
from tests.builders import received


async def answer(sessions: SessionMaker, lookup: Lookup[Any]) -> Any:
    """The answer to a lookup, read from the database and through the wire format."""
    entry = ANSWERS[type(lookup)]
    if entry.source is not None and entry.derive is not None:
        return entry.derive(await answer(sessions, entry.source(lookup)))
    assert entry.load is not None
    async with sessions() as session:
        loaded = await entry.load(decode(type(lookup), lookup.model_dump_json().encode()), UnitOfWork(session))
    adapter = answer_adapter(type(lookup))
    return adapter.validate_json(adapter.dump_json(loaded))


async def refusal(executor: Executor, command: Command[Any] | Any) -> ErrorBody:
    """Why a command is refused; fails the test if it is not. A message as received is taken too."""
    message = received(command) if isinstance(command, Command) else command
    [reply] = await executor.execute([message])
    assert reply.error is not None, reply.data
    return reply.error


async def events(sessions: SessionMaker, kind: str) -> list[dict[str, Any]]:
    """All changes of one kind that wait in the outbox, in order, each with the stale keys of its own images."""
    async with sessions() as session:
        rows = list(
            await session.scalars(select(OutboxEvent).where(OutboxEvent.type == kind).order_by(OutboxEvent.id))
        )
    view = EVENT_TYPES[kind].view_type()
    changes = []
    for row in rows:
        for change in json.loads(row.changes):
            images = [view.model_validate(change[side]) for side in ("before", "after") if change[side] is not None]
            keys = {key for image in images for key in EVENT_TYPES[kind].keys_of(image)}
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
