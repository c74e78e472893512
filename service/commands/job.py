"""Commands that ask for a job. The scheduler runs it, in transactions of its own: it may take long."""

from typing import Any

from contracts.errors import ErrorCode, Refusal
from contracts.job import JobRequested, RunCleanup, WarmCache
from service.models import CatExchange, JobRun
from service.outbox import cause
from service.registry import CommandTable
from service.unit_of_work import UnitOfWork

handlers = CommandTable()


@handlers.handles(WarmCache)
async def warm_cache(command: WarmCache, work: UnitOfWork) -> JobRequested:
    cat_ex_id = command.cat_ex_id
    if cat_ex_id is not None and await work.session.get(CatExchange, cat_ex_id) is None:
        raise Refusal(ErrorCode.NOT_FOUND, f"there is no catalog exchange {cat_ex_id}", field="cat_ex_id")
    return await _asked_for(work, "warming", command.model_dump(exclude_none=True))


@handlers.handles(RunCleanup)
async def run_cleanup(command: RunCleanup, work: UnitOfWork) -> JobRequested:
    return await _asked_for(work, "cleanup", command.model_dump(exclude_none=True))


async def _asked_for(work: UnitOfWork, job: str, parameters: dict[str, Any]) -> JobRequested:
    run = JobRun(job=job, recurs=False, parameters=parameters, message_id=cause(work.session))
    work.session.add(run)
    await work.session.flush()
    return JobRequested(run_id=run.run_id, job=job, requested_at=run.due_at)
