"""Takes what a commit made stale out of the cache at once, before anybody is told of the commit.

So whoever reads through the cache after the answer reads what was written, wherever it runs. The event that follows
removes the same keys again, and for good where this could not.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from contracts.cache_store import REDIS_AWAY
from contracts.leased_cache import LeasedCache
from service.observability import CACHE_REMOVALS

Remove = Callable[[Sequence[str]], Awaitable[bool]]
"""Removes logical keys; gives whether it is certain that they are gone."""

_BUDGET_SECONDS: Final = 0.1


def remover(cache: LeasedCache) -> Remove:
    """Removes from ``cache``, and gives up after a tenth of a second."""

    async def remove(keys: Sequence[str]) -> bool:
        try:
            async with asyncio.timeout(_BUDGET_SECONDS):
                await cache.invalidate(keys)
        except REDIS_AWAY:
            is_done = False
        else:
            is_done = True
        CACHE_REMOVALS.labels(outcome="done" if is_done else "pending").inc()
        return is_done

    return remove
