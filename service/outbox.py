"""Change events of a transaction: recorded by repositories, written with the commit, published by the relay.

Recorded changes wait in the session and become outbox rows in one go just before the commit. By then the
transaction holds all its row locks, so whoever changes a row next gets higher outbox ids: ordering by id gives the
events of each row in version order, without any watermark.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin
from uuid import UUID

from sqlalchemy import event as sqlalchemy_events
from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from contracts.base import Change, Event, V
from contracts.topology import MAX_CHANGES_PER_EVENT, MAX_EVENT_BYTES
from service.models import OutboxEvent

_PENDING: Final = "pending_changes"
_MARKS: Final = "pending_changes_at_savepoint"
_CAUSE: Final = "causation_id"
_STALE: Final = "stale_keys"


@dataclass(frozen=True)
class PendingChange:
    """A change that waits for its transaction to commit."""

    event: type[Event[Any]]
    key: str
    version: int
    """Below 0 if it is the change with which the row went."""
    body: str
    stale_keys: list[str]
    causation_id: UUID | None


def set_cause(session: AsyncSession, message_id: UUID | None) -> None:
    """Attribute what is recorded from here on to this message."""
    session.info[_CAUSE] = message_id


def cause(session: AsyncSession) -> UUID | None:
    """The message that what is recorded at present is attributed to."""
    message_id: UUID | None = session.info.get(_CAUSE)
    return message_id


def stale_keys(session: AsyncSession | Session) -> list[str]:
    """The cache keys that what ``session`` has committed made stale."""
    keys: list[str] = session.info.get(_STALE, [])
    return keys


def record(session: AsyncSession, event: type[Event[V]], *, before: V | None = None, after: V | None = None) -> None:
    """Announce a change when ``session`` commits, and only then.

    Call it after the row was locked and flushed. ``before`` is None for a new row, ``after`` for a deleted one.
    """
    image = after if after is not None else before
    if image is None:
        raise ValueError("a change has an image before or after it")
    old = before.model_dump(mode="json") if before is not None else None
    new = after.model_dump(mode="json") if after is not None else None
    fields = (new or old or {}).keys()
    key = {name: getattr(image, name) for name in event.key_fields}
    version = getattr(image, "row_version", 1) + (after is None)
    change = {
        "key": key,
        "version": version,
        "before": old,
        "after": new,
        "changed": [name for name in fields if old is None or new is None or old[name] != new[name]],
    }
    pending = PendingChange(
        event=event,
        key=",".join("" if part is None else str(part) for part in key.values()),
        version=-version if after is None else version,
        body=json.dumps(change, separators=(",", ":"), ensure_ascii=False),
        stale_keys=event.stale_keys_of([Change(key={}, version=0, before=before, after=after)]),
        causation_id=session.info.get(_CAUSE),
    )
    session.info.setdefault(_PENDING, []).append(pending)


def pending_stale_keys(session: AsyncSession) -> list[str]:
    """The logical cache keys that what is recorded in ``session``, and not committed yet, makes stale."""
    changes: list[PendingChange] = session.info.get(_PENDING, [])
    return list(dict.fromkeys(key for change in changes for key in change.stale_keys))


async def lag(session: AsyncSession) -> float:
    """Seconds that the oldest event has waited for the relay; 0 if none does."""
    age = await session.scalar(
        select(func.clock_timestamp() - OutboxEvent.occurred_at).order_by(OutboxEvent.id).limit(1)
    )
    return age.total_seconds() if age is not None else 0.0


def change_as_json(event: type[Event[Any]], row: str) -> str:
    """An SQL expression for the change that a new row of this kind is, as text.

    ``row`` is the name under which the statement knows it. For statements that store and announce many rows in one
    round trip; what it gives equals what `record` writes for the same row (tests/integration/test_batches.py). It is
    one ``concat`` because ``json_build_object`` looks up the type of each argument anew for each row, which takes
    longer than storing it.
    """
    fields = event.view_type().model_fields
    key = ", ',', ".join(f"'\"{name}\":', {row}.{name}" for name in event.key_fields)
    columns = {name: _as_json(f'{row}."{name}"', field.annotation) for name, field in fields.items()}
    image = ", ',', ".join(f"'\"{name}\":', {expression}" for name, expression in columns.items())
    version = f"{row}.row_version" if "row_version" in fields else "1"
    changed = json.dumps(list(fields))
    return (
        f"""concat('{{"key":{{', {key}, '}},"version":', {version}, ',"before"\\:null,"after":{{', {image}, """
        f"""'}},"changed":{changed}}}')"""
    )


def announced_as(event: type[Event[Any]], row: str, *, order_by: str) -> str:
    """SQL expressions for what a new row of ``outbox`` is about: ``keys, versions`` of many new rows of a kind."""
    key = " || ',' || ".join(f"{row}.{name}" for name in event.key_fields)
    # A row that is new is at its first version, also in the tables whose rows have no other.
    return f"array_agg({key}::text ORDER BY {order_by}), array_fill(1, ARRAY[count(*)::int])"


def _as_json(column: str, annotation: Any) -> str:
    kinds = _types_in(annotation)
    if Decimal in kinds:
        expression = f"""'"' || {column} || '"'"""
    elif int in kinds:
        expression = f"{column}::text"
    else:
        expression = f"to_json({column})::text"
    return f"coalesce({expression}, 'null')" if NoneType in kinds else expression


def _types_in(annotation: Any) -> set[Any]:
    """The plain types that an annotation is made of: Decimal and NoneType for ``ExactDecimal | None``."""
    if get_origin(annotation) is Annotated:
        return _types_in(get_args(annotation)[0])
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    return {kind for part in parts for kind in _types_in(part)} or {annotation}


@sqlalchemy_events.listens_for(Session, "before_commit")
def _write(session: Session) -> None:
    changes: list[PendingChange] = session.info.get(_PENDING, [])
    if not changes or session.in_nested_transaction():
        return
    session.flush()
    rows = [_row(run) for run in _runs(changes)]
    session.execute(insert(OutboxEvent), rows)
    session.info[_STALE] = list(dict.fromkeys(key for row in rows for key in row["stale_keys"]))
    changes.clear()


@sqlalchemy_events.listens_for(Session, "after_transaction_create")
def _mark(session: Session, transaction: SessionTransaction) -> None:
    if transaction.nested:
        session.info.setdefault(_MARKS, {})[transaction] = len(session.info.get(_PENDING, []))


@sqlalchemy_events.listens_for(Session, "after_transaction_end")
def _forget_marks(session: Session, transaction: SessionTransaction) -> None:
    # Not a savepoint's own mark: its rollback is announced after its end.
    if transaction.parent is None:
        session.info.pop(_MARKS, None)


@sqlalchemy_events.listens_for(Session, "after_soft_rollback")
def _drop(session: Session, previous: SessionTransaction) -> None:
    """What a rolled back transaction or savepoint changed is not announced."""
    # A flush that fails is announced as a transaction of its own; what it takes back is the savepoint around it.
    while not previous.nested and previous.parent is not None:
        previous = previous.parent
    kept = session.info.get(_MARKS, {}).get(previous, 0) if previous.nested else 0
    del session.info.get(_PENDING, [])[kept:]


def _runs(changes: Iterable[PendingChange]) -> Iterator[list[PendingChange]]:
    """Changes of one type that stand next to each other, as many as one event may carry."""
    for _, same_type in groupby(changes, key=lambda change: change.event):
        run: list[PendingChange] = []
        size = 0
        for change in same_type:
            if run and (len(run) == MAX_CHANGES_PER_EVENT or size + len(change.body) > MAX_EVENT_BYTES):
                yield run
                run, size = [], 0
            run.append(change)
            size += len(change.body)
        yield run


def _row(run: list[PendingChange]) -> dict[str, Any]:
    causes = (change.causation_id for change in run if change.causation_id is not None)
    return {
        "type": run[0].event.wire_name,
        "causation_ids": list(dict.fromkeys(causes)),
        "changes": f"[{','.join(change.body for change in run)}]",
        "stale_keys": list(dict.fromkeys(key for change in run for key in change.stale_keys)),
        "keys": [change.key for change in run],
        "versions": [change.version for change in run],
    }
