"""Tasks end although a library may lose their cancellation."""

import asyncio
from contextlib import suppress

from contracts.cancellation import end


async def test_a_task_whose_library_swallows_a_cancellation_ends_all_the_same() -> None:
    async def deaf() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await end(task)
    assert task.cancelled()
