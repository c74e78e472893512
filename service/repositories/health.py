"""What the tables tell about how the service is."""

from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Interval, bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from service import outbox
from service.errors import reason
from service.models import Bot, DeadLetter, Order, Trade, User

# One statement each: a table that cannot be read must not give another one's number.
_NEW: Final[dict[str, Any]] = {
    model.__tablename__: select(func.count())
    .select_from(model)
    .where(model.timestamp >= func.now() - bindparam("window", type_=Interval))
    for model in (User, Bot, Order, Trade)
}


class HealthRepository:
    """Numbers over tables; no rows."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def now(self) -> datetime:
        """The database's time."""
        now: datetime = (await self.session.execute(select(func.now()))).scalar_one()
        return now

    async def new_records(self, window: timedelta) -> dict[str, int | str]:
        """How many users, bots, orders and trades are of the time since ``window``, or why that is not known."""
        found: dict[str, int | str] = {}
        for table, count in _NEW.items():
            try:
                async with self.session.begin_nested():
                    found[table] = (await self.session.execute(count, {"window": window})).scalar_one()
            except Exception as error:  # noqa: BLE001 - the others are known nevertheless
                found[table] = reason(error)
        return found

    async def outbox_lag(self) -> float:
        """Seconds that the oldest event has waited to be published; 0 if none does."""
        return await outbox.lag(self.session)

    async def open_dead_letters(self) -> int:
        """How many refused commands nobody has looked after yet."""
        count = select(func.count()).select_from(DeadLetter).where(DeadLetter.state == "open")
        return (await self.session.execute(count)).scalar_one()
