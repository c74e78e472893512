"""Ticks in the database."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Final

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.errors import ErrorCode, Refusal
from service.cursor import behind
from service.models import Symbol, Tick
from service.repositories.base import BaseRepository, exact, in_utc

_UNSAID: Final[dict[str, Any]] = dict.fromkeys(("volume", "bid", "ask", "last"))
# asyncpg binds at most 32,767 parameters in a statement, and a tick has seven.
_ROWS_PER_INSERT: Final = 4_000


class TickRepository(BaseRepository[Tick]):
    """Prices that were seen."""

    never: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("create", "update", "delete"), "ticks come many at once and stay as they are; use record_ticks"
    )

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, Tick)

    async def record_ticks(self, ticks: Sequence[dict[str, Any]]) -> int:
        """How many of ``ticks`` are new; of a symbol and a moment that has one, the stored one stays.

        ``not_found`` names the first one of a symbol that does not exist, and nothing is stored.
        """
        rows = [_UNSAID | exact(tick) for tick in ticks]
        known = set(
            await self.session.scalars(select(Symbol.id).where(Symbol.id.in_({row["symbol_id"] for row in rows})))
        )
        for place, row in enumerate(rows):
            if row["symbol_id"] not in known:
                raise Refusal(
                    ErrorCode.NOT_FOUND, f"there is no symbol {row['symbol_id']}", field=f"ticks.{place}.symbol_id"
                )
        # Sorted, so that two writers of the same ticks wait for each other instead of deadlocking.
        rows.sort(key=lambda row: (row["symbol_id"], row["timestamp"]))
        new = 0
        for start in range(0, len(rows), _ROWS_PER_INSERT):
            inserted = await self.session.scalars(
                insert(Tick)
                .values(rows[start : start + _ROWS_PER_INSERT])
                .on_conflict_do_nothing(index_elements=["symbol_id", "timestamp"])
                .returning(Tick.tick_id)
            )
            new += len(inserted.all())
        return new

    async def get_ticks(
        self,
        symbol_id: int,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        *,
        limit: int = 100,
        cursor: str | None = None,
    ) -> list[Tick]:
        """The ticks of a symbol, newest first; from ``start_date`` on, before ``end_date``."""
        ticks = select(Tick).where(Tick.symbol_id == symbol_id, behind(cursor, Tick.timestamp, newest_first=True))
        if start_date is not None:
            ticks = ticks.where(Tick.timestamp >= in_utc(start_date))
        if end_date is not None:
            ticks = ticks.where(Tick.timestamp < in_utc(end_date))
        return list(await self.session.scalars(ticks.order_by(Tick.timestamp.desc()).limit(limit)))
