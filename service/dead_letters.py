"""Refused commands: kept with their reason and without their secrets, announced, replayed, discarded."""

import json
import re
from typing import Any, Final

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.errors import Refusal
from contracts.rejection import CommandRejected, RejectionView
from contracts.sealing import is_secret_name
from service.inbox import payload_hash
from service.models import DeadLetter
from service.outbox import record
from service.received import Received

REDACTED: Final = "***"
# A name, quoted or not, and what makes a value follow it, in text that is unescaped by `_unescaped`.
# It begins at a name's beginning only and never steps back: a word of a megabyte is read once.
_NAME_AND_VALUE: Final = re.compile(r"(?<![\w-])([\w-]++)[\"']?\s*+[:=]")
_ESCAPE: Final = re.compile(r"\\u00([0-9a-f]{2})", re.IGNORECASE)
_KEPT_BYTES: Final = 1024 * 1024


async def add(session: AsyncSession, received: Received, refusal: Refusal) -> None:
    """Keep a refused command and announce it, in the transaction of its batch.

    A redelivery of the same message is the same dead letter; it is announced once.
    """
    kept, complete = _presentable(received)
    letter = await session.scalar(
        insert(DeadLetter)
        .values(
            message_id=received.message_id,
            command=received.command,
            code=refusal.code.value,
            field=refusal.field,
            reason=refusal.message,
            body=kept,
            body_size=len(received.body),
            body_hash=payload_hash(received.command, received.body),
            complete=complete,
            properties=redact(received.properties),
        )
        .on_conflict_do_nothing(index_elements=["message_id", "body_hash"])
        .returning(DeadLetter)
    )
    if letter is None:
        return
    record(
        session,
        CommandRejected,
        after=RejectionView(
            dead_letter_id=letter.dead_letter_id,
            message_id=letter.message_id,
            command=letter.command,
            code=refusal.code,
            field=refusal.field,
            reason=refusal.message,
            user_id=received.user_id,
            app_id=received.app_id,
            received_at=letter.received_at,
        ),
    )


async def refused_again(session: AsyncSession, received: Received, refusal: Refusal) -> None:
    """Note that a replay was refused too: the dead letter is open again, with the newest reason."""
    await session.execute(
        _of(received).values(
            state="open",
            resolved_at=None,
            code=refusal.code.value,
            field=refusal.field,
            reason=refusal.message,
            attempts=DeadLetter.attempts + 1,
        )
    )


async def resolved(session: AsyncSession, received: Received) -> None:
    """Note that a replay succeeded."""
    await session.execute(_of(received).values(state="replayed", resolved_at=func.now()))


def _of(received: Received) -> Any:
    return update(DeadLetter).where(
        DeadLetter.message_id == received.message_id,
        DeadLetter.body_hash == payload_hash(received.command, received.body),
    )


async def find(
    session: AsyncSession, *, state: str | None = "open", command: str | None = None, limit: int = 100
) -> list[DeadLetter]:
    """Dead letters, oldest first."""
    query = select(DeadLetter).order_by(DeadLetter.dead_letter_id).limit(limit)
    if state is not None:
        query = query.where(DeadLetter.state == state)
    if command is not None:
        query = query.where(DeadLetter.command == command)
    return list(await session.scalars(query))


async def discard(session: AsyncSession, dead_letter_id: int) -> bool:
    """Close an open dead letter without carrying it out; False if it is not open."""
    closed = await session.scalar(
        update(DeadLetter)
        .where(DeadLetter.dead_letter_id == dead_letter_id, DeadLetter.state == "open")
        .values(state="discarded", resolved_at=func.now())
        .returning(DeadLetter.dead_letter_id)
    )
    return closed is not None


def _presentable(received: Received) -> tuple[bytes, bool]:
    """The body as it may be kept, and whether it is all of it."""
    if received.content_encoding not in (None, "", "identity", "utf-8"):
        return b"", False  # whatever is packed in there may hold a secret, and it is never unpacked
    kept = _without_secrets(received.body)[:_KEPT_BYTES]
    return kept, kept == received.body


def _without_secrets(body: bytes) -> bytes:
    try:
        # Pairs, because of two fields of one name a dictionary would show only the last.
        fields = json.loads(body, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        # What cannot be parsed cannot be redacted in places.
        return b"" if _names_a_secret(body.decode(errors="replace")) else body
    redacted = redact(fields)
    return body if redacted == fields else json.dumps(_plain(redacted), ensure_ascii=True).encode()


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it was written."""


def redact(value: Any) -> Any:
    """The same structure without the values of secret names, also of those in JSON that was packed into a string."""
    if isinstance(value, _Pairs):
        return _Pairs((name, _redacted(name, part)) for name, part in value)
    if isinstance(value, dict):
        return {name: _redacted(name, part) for name, part in value.items()}
    if isinstance(value, list):
        return [redact(part) for part in value]
    if isinstance(value, str) and _names_a_secret(value):
        return REDACTED
    return value


def _redacted(name: str, value: Any) -> Any:
    return REDACTED if value is not None and is_secret_name(_unescaped(name)) else redact(value)


def _names_a_secret(text: str) -> bool:
    names = (found[1] for found in _NAME_AND_VALUE.finditer(_unescaped(text)))
    # In prose a "key:" is mostly one of something else.
    return any(is_secret_name(name) and name.lower() != "key" for name in names)


def _unescaped(text: str) -> str:
    r"""``api\u005fkey`` is ``api_key``, however a sender writes it."""
    unescaped = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)
    return unescaped.translate(dict.fromkeys(map(ord, "\0\\")))


def _plain(value: Any) -> Any:
    if isinstance(value, _Pairs):
        return {name: _plain(part) for name, part in value}
    return [_plain(part) for part in value] if isinstance(value, list) else value
