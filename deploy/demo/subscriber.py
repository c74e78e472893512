"""Another service with a cache of its own: ``python -m deploy.demo.subscriber NAMESPACE CAT_EX_ID``.

It keeps every symbol of an exchange in Redis, hears of one that changes, and looks at what that did to its cache. It
goes on until it is asked to end.
"""

import asyncio
import os
import sys
from collections import Counter
from typing import Any

from pydantic import BaseModel
from redis.asyncio import Redis

from contracts import GetDecimals, GetSymbol, GetSymbolsByExchange, SymbolUpdated, SymbolView, cache_keys
from contracts.base import Event, Lookup, answer_adapter
from contracts.certificate import name_of
from contracts.client import PersistenceClient
from contracts.invalidator import CacheInvalidator
from contracts.leased_cache import LeasedCache, connect
from deploy.demo import market
from deploy.demo.children import SECONDS_TO_END, report
from deploy.service import interrupt_on_sigterm


class CacheReport(BaseModel):
    """What one change did to the cache."""

    removed: list[str]
    """Logical keys that were there before the event and were not after it."""
    kept: int
    """Keys that are there still, with the very same value."""
    altered: list[str]
    """Keys that are there still, with another value."""
    before: SymbolView
    """The symbol as this cache gave it before the event."""
    after: SymbolView
    """The next read of it through this cache."""


class SubscriberReport(BaseModel):
    """What the subscriber says: first that it is ready, then what it saw."""

    cached: int = 0
    """Keys in its cache, each read from there once more."""
    change: CacheReport | None = None


class Symbols:
    """The symbols of an exchange, read through a cache."""

    def __init__(self, client: PersistenceClient, redis: Redis, *, namespace: str, cat_ex_id: int) -> None:
        self._client = client
        self._redis = redis
        self._prefix = name_of(namespace, "")
        self._cat_ex_id = cat_ex_id
        self.reads: Counter[str] = Counter()
        """Reads so far: ``hit``, ``miss`` or ``bypass``."""
        self._cache = LeasedCache(
            redis, namespace=namespace, timeout=2, count=lambda _, result: self.reads.update([result])
        )

    async def symbol(self, symbol: str) -> SymbolView:
        """A symbol of this exchange."""
        lookup = GetSymbol(symbol=symbol, cat_ex_id=self._cat_ex_id)
        view: SymbolView = await self._read(cache_keys.symbol(symbol, self._cat_ex_id), lookup)
        return view

    async def read_all(self) -> None:
        """Read the list of symbols, each of them, and each one's decimals."""
        lookup = GetSymbolsByExchange(cat_ex_id=self._cat_ex_id)
        listed: list[SymbolView] = await self._read(cache_keys.symbols_of_exchange(self._cat_ex_id), lookup)
        await asyncio.gather(
            *(self.symbol(each.symbol) for each in listed),
            *(
                self._read(cache_keys.symbol_decimals(each.symbol_id), GetDecimals(symbol_id=each.symbol_id))
                for each in listed
            ),
        )

    async def contents(self) -> dict[str, bytes]:
        """What the cache holds at this moment, by logical key."""
        names = [name async for name in self._redis.scan_iter(match=f"{self._prefix}*", count=1_000)]
        values = await self._redis.mget(names) if names else []
        return {
            name.decode().removeprefix(self._prefix): value.encode() if isinstance(value, str) else value
            for name, value in zip(names, values, strict=True)
            if value is not None
        }

    async def clear(self) -> None:
        """Leave nothing behind."""
        await self._cache.invalidate(await self.contents())

    async def _read(self, key: str, lookup: Lookup[Any]) -> Any:
        adapter = answer_adapter(type(lookup))

        async def load() -> bytes:
            # The service answers from its own cache, which may hear of a change later than this one does.
            return adapter.dump_json(await self._client.lookup(lookup, fresh=True))

        return adapter.validate_json(await self._cache.get(key, load) or b"null")


async def main(namespace: str, cat_ex_id: int) -> None:
    url = os.environ["RABBITMQ_URL"]
    changed = asyncio.Event()

    async def notice(event: Event[Any]) -> None:
        if isinstance(event, SymbolUpdated):
            changed.set()

    async with (
        connect(os.environ["REDIS_URL"], timeout=2) as redis,
        PersistenceClient(url, app_id=namespace, answer_timeout=60) as client,
        CacheInvalidator(
            url,
            redis,
            queue=f"{namespace}.cache",
            namespace=namespace,
            bindings=["symbol.#", "symbols.#"],
            on_event=notice,
        ),
    ):
        symbols = Symbols(client, redis, namespace=namespace, cat_ex_id=cat_ex_id)
        try:
            await symbols.read_all()
            symbols.reads.clear()
            await symbols.read_all()
            cached = symbols.reads["hit"]
            symbol = await symbols.symbol(market.TRADED.symbol)
            before = await symbols.contents()
            report(SubscriberReport(cached=cached))
            await changed.wait()
            held = await symbols.contents()
            report(
                SubscriberReport(
                    change=CacheReport(
                        removed=sorted(before.keys() - held.keys()),
                        kept=sum(before[key] == held.get(key) for key in before),
                        altered=sorted(key for key in before.keys() & held.keys() if before[key] != held[key]),
                        before=symbol,
                        after=await symbols.symbol(market.TRADED.symbol),
                    )
                )
            )
            # As long as there is a service its heartbeats come, and somebody has to take them from the queue.
            await asyncio.Event().wait()
        finally:
            await symbols.clear()


if __name__ == "__main__":
    # So that it can leave nothing behind: neither its keys nor, where nobody is left to kill it, itself.
    interrupt_on_sigterm(within=SECONDS_TO_END)
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
