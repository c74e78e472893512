"""Message ids that were handled: a repeated message gets its first answer and has no second effect."""

import hashlib
from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from service.models import InboxMessage


def payload_hash(command: str, body: bytes) -> bytes:
    """Tells two messages under one id apart. Resending means the same bytes, so the bytes are what is hashed."""
    return hashlib.sha256(command.encode() + b"\0" + body).digest()


async def find(session: AsyncSession, message_ids: Collection[UUID]) -> dict[UUID, InboxMessage]:
    """Which of these messages were handled, by id."""
    rows = await session.scalars(select(InboxMessage).where(InboxMessage.message_id.in_(message_ids)))
    return {row.message_id: row for row in rows}


async def remember(session: AsyncSession, messages: Sequence[dict[str, Any]]) -> None:
    """Note messages as handled, as part of the transaction that has their effects.

    Fails with a unique violation if one of them was handled in the meantime by someone else.
    """
    if messages:
        await session.execute(insert(InboxMessage), messages)


async def replace(session: AsyncSession, message: dict[str, Any]) -> None:
    """Note what a replayed message came to, in place of its refusal."""
    await session.execute(
        update(InboxMessage).where(InboxMessage.message_id == message["message_id"]).values(message)
    )
