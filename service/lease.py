"""Leases: what one instance at a time may do, by a row each and the database's clock.

Whoever falls silent loses it when it has run out; a host's own clock is never asked.
"""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, case, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from service.models import Lease


async def take(session: AsyncSession, name: str, holder: UUID, duration: timedelta) -> int | None:
    """Take or renew the lease; gives its term, or None while somebody else holds it.

    The term counts the holders, so it stays the same as long as one renews in time or nobody else wanted it.
    """
    until = func.clock_timestamp() + literal(duration)
    return await session.scalar(
        insert(Lease)
        .values(name=name, holder=holder, term=1, expires_at=until)
        .on_conflict_do_update(
            index_elements=["name"],
            set_={
                "holder": holder,
                "expires_at": until,
                "term": case((Lease.holder == holder, Lease.term), else_=Lease.term + 1),
            },
            where=or_(Lease.holder == holder, Lease.expires_at < func.clock_timestamp()),
        )
        .returning(Lease.term)
    )


async def release(session: AsyncSession, name: str, holder: UUID) -> None:
    """Let another one take it at once instead of after it has run out."""
    await session.execute(
        update(Lease)
        .where(Lease.name == name, Lease.holder == holder)
        .values(expires_at=func.clock_timestamp())
        .execution_options(synchronize_session=False)
    )


def is_held(name: str, holder: UUID) -> ColumnElement[bool]:
    """The condition that ``holder`` has it at this moment, for a statement that must not act without."""
    return (
        select(Lease.term)
        .where(Lease.name == name, Lease.holder == holder, Lease.expires_at > func.clock_timestamp())
        .exists()
    )
