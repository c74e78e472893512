"""Lookups of ticks."""

from contracts.tick import GetTicks, TicksPage, TickView
from service.cursor import next_after
from service.registry import LookupTable
from service.unit_of_work import UnitOfWork

lookups = LookupTable()


@lookups.answers(GetTicks)
async def get_ticks(lookup: GetTicks, reads: UnitOfWork) -> TicksPage:
    ticks = await reads.ticks.get_ticks(**lookup.model_dump())
    return TicksPage(
        ticks=[TickView.model_validate(tick) for tick in ticks],
        next_cursor=next_after(ticks, lookup.limit, "timestamp"),
    )
