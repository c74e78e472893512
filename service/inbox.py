"""Message ids that were handled: a repeated message gets its first answer and has no second effect."""

import hashlib
import json
from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import delete, insert, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.base import Command
from service.errors import constraint_of
from service.models import InboxMessage


class Handled(NamedTuple):
    """What is known of a message that was handled."""

    message_id: UUID
    command: str
    payload_hash: bytes
    """SHA-256 of command name and body: the same id with another content is a conflict."""
    refused: bool
    reply: dict[str, Any] | None = None
    """The answer, unless ``row_id`` stands for it."""
    row_id: int | None = None
    """The row that the command made, out of which its answer can be made again."""


def payload_hash(command: str, body: bytes) -> bytes:
    """Tells two messages under one id apart. Resending means the same bytes, so the bytes are what is hashed."""
    return hashlib.sha256(command.encode() + b"\0" + body).digest()


class Sent(NamedTuple):
    """The messages that rows came in, by the position of the rows."""

    ids: Sequence[UUID | None]
    hashes: Sequence[bytes] = ()
    """What the inbox has to remember of them; without, whoever carries them out will tell it."""

    def parameters(self, rows: str) -> dict[str, Any]:
        """For a statement that is made of the parts below; ``rows`` is a JSON array."""
        return {"rows": rows, "message_ids": list(self.ids), "hashes": list(self.hashes)}


# Parts of a statement that stores a row for each of many messages and remembers the messages with them, all in one
# round trip. ``given`` has a row for each, with ``message_id`` and ``payload_hash``. Nobody asks first which messages
# are known: nearly always none is, and if one is, the primary key has the whole statement fail (`is_repetition`).
SENT: Final = "unnest(CAST(:message_ids AS uuid[]), CAST(:hashes AS bytea[]))"


def remembered(command: type[Command[Any]], row_id: str, *, which: str = "true") -> str:
    """The part that notes those given messages as handled by a row ``which`` hold; their answers are their rows."""
    return f"""remembered AS (
    INSERT INTO inbox (message_id, command, payload_hash, row_id)
    SELECT message_id, '{command.wire_name}', payload_hash, {row_id} FROM given
    WHERE payload_hash IS NOT NULL AND {which}
)"""  # noqa: S608 - put together from names of the code


# One array for any number of ids: so many parameters would take longer to pass than to find. A join, because a plan
# that was made while a partition was empty reads all of it until it is analyzed: once, and not once for each id.
_FIND: Final = text(
    "SELECT message_id, command, payload_hash, refused, reply, row_id "
    "FROM unnest(CAST(:ids AS uuid[])) AS asked (message_id) JOIN inbox USING (message_id)"
).columns(
    InboxMessage.message_id,
    InboxMessage.command,
    InboxMessage.payload_hash,
    InboxMessage.refused,
    InboxMessage.reply,
    InboxMessage.row_id,
)


async def find(session: AsyncSession, message_ids: Collection[UUID]) -> dict[UUID, Handled]:
    """Which of these messages were handled, by id."""
    if not message_ids:
        return {}
    rows = await session.execute(_FIND, {"ids": list(message_ids)})
    return {row[0]: Handled(*row) for row in rows}


_REMEMBER: Final = text(
    "INSERT INTO inbox (message_id, command, payload_hash, refused, reply, row_id) "
    "SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:commands AS text[]), CAST(:hashes AS bytea[]), "
    "CAST(:refused AS boolean[]), CAST(:replies AS jsonb[]), CAST(:row_ids AS bigint[]))"
)


def is_repetition(error: BaseException) -> bool:
    """Whether it is the inbox saying that it knows one of the messages that were to be remembered."""
    return isinstance(error, IntegrityError) and "inbox" in (constraint_of(error) or "")


async def remember(session: AsyncSession, handled: Sequence[Handled]) -> None:
    """Note messages as handled, as part of the transaction that has their effects; one statement.

    Fails with a unique violation if one of them was handled in the meantime by someone else.
    """
    if not handled:
        return
    ids, commands, hashes, refused, replies, row_ids = zip(*handled, strict=True)
    await session.execute(
        _REMEMBER,
        {
            "ids": list(ids),
            "commands": list(commands),
            "hashes": list(hashes),
            "refused": list(refused),
            "replies": [None if reply is None else json.dumps(reply) for reply in replies],
            "row_ids": list(row_ids),
        },
    )


async def replace(session: AsyncSession, handled: Handled) -> None:
    """Note what a replayed message came to, in place of its refusal."""
    await session.execute(
        update(InboxMessage)
        .where(InboxMessage.message_id == handled.message_id)
        .values(refused=handled.refused, reply=handled.reply, row_id=handled.row_id)
    )


async def probe(session: AsyncSession) -> None:
    """Write and delete a note, to see that notes can be written."""
    note = {"message_id": uuid4(), "command": "probe", "payload_hash": b""}
    await session.execute(insert(InboxMessage), [note])
    await session.execute(delete(InboxMessage).where(InboxMessage.message_id == note["message_id"]))
