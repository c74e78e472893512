"""The manual's jobs, to be run by hand; the service runs them by the clock."""

from service import jobs
from service.config import LibrarySettings


async def cache_warming_job() -> int:
    """Cache the symbols of all exchanges with active accounts; gives how many answers were not cached before."""
    async with jobs.scheduler(LibrarySettings.read()) as scheduler:
        return (await scheduler.run_now("warming", {}))["keys"]


async def daily_cleanup_job() -> dict[str, int]:
    """Remove what is older than the retention of its table; gives how many rows of which, those of logs among them.

    Raises `service.jobs.Busy` if a service does it at the moment.
    """
    async with jobs.scheduler(LibrarySettings.read()) as scheduler:
        return dict(await scheduler.run_now("cleanup", {}))
