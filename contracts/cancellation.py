"""Ending tasks for sure, although client libraries may lose a cancellation.

redis-py sends in `asyncio.wait_for`, which up to Python 3.11 loses a cancellation that comes when it is done
(python/cpython#86296); aiormq takes some for lost links.
"""

import asyncio
from typing import Any, Final

_SECONDS_TO_HEED: Final = 0.5


def heed_cancellation() -> None:
    """Raise CancelledError if this task was cancelled; for loops that ask servers."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, as often as need be, and return when they have ended, whatever they raised."""
    while going := [task for task in tasks if not task.done()]:
        for task in going:
            task.cancel()
        await asyncio.wait(going, timeout=_SECONDS_TO_HEED)
    await asyncio.gather(*tasks, return_exceptions=True)
