"""Commands about ticks."""

from contracts.tick import RecordTicks, TicksRecorded
from service.registry import CommandTable
from service.unit_of_work import UnitOfWork

handlers = CommandTable()


@handlers.handles(RecordTicks)
async def record_ticks(command: RecordTicks, work: UnitOfWork) -> TicksRecorded:
    inserted = await work.ticks.record_ticks([tick.model_dump() for tick in command.ticks])
    return TicksRecorded(inserted=inserted, duplicates=len(command.ticks) - inserted)
