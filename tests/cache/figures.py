"""What a read through the cache costs, beside what it takes the place of."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from typing import Any, Final

from pydantic import TypeAdapter

from contracts.cache_keys import symbols_of_exchange
from contracts.certificate import name_of
from contracts.leased_cache import LeasedCache, connect
from contracts.symbol import SymbolView

_ROUNDS: Final = 2_000
_READS: Final = 8
"""Few at a time, so that both kinds of reads find the machine the same."""
_SYMBOLS: Final = 2_000
_LOAD_SECONDS: Final = 0.001
_READERS: Final = 20
_PATIENCE: Final = 5.0
"""Seconds for Redis where it is there, since a busy machine is no reason to go around it."""

Read = Callable[[], Awaitable[Any]]


async def _times_as_fast(ours: Read, bare: Read, *, rounds: int, count: int) -> float:
    """How many reads of ours fit into the processor time of a bare one; they take turns, and the median counts."""

    async def cpu_seconds(read: Read) -> float:
        began = time.process_time()
        for _ in range(count):
            await read()
        return time.process_time() - began

    return statistics.median([await cpu_seconds(bare) / await cpu_seconds(ours) for _ in range(rounds)])


async def a_hit(url: str) -> float:
    """How many hits fit into the time of one GET with redis-py on the same connection."""
    redis = connect(url, timeout=_PATIENCE)
    cache = LeasedCache(redis, namespace="figures", timeout=_PATIENCE)

    async def load() -> bytes:
        return b"x" * 300

    await cache.get("a", load)
    name = name_of("figures", "a")
    ratio = await _times_as_fast(lambda: cache.get("a", load), lambda: redis.get(name), rounds=_ROUNDS, count=_READS)
    await redis.aclose()
    return ratio


async def a_large_list(url: str) -> float:
    """How many reads of a kept list of 2,000 symbols fit into the time of one GET and decoding it."""
    redis = connect(url, timeout=_PATIENCE)
    cache = LeasedCache(redis, namespace="figures", timeout=_PATIENCE)
    symbols = TypeAdapter(list[SymbolView])
    value = symbols.dump_json([_symbol(number) for number in range(_SYMBOLS)])

    async def load() -> bytes:
        return value

    async def get_and_decode() -> None:
        symbols.validate_json(await redis.get("list") or b"")

    def decode(held: bytes | None) -> list[SymbolView]:
        return symbols.validate_json(held or b"")

    await redis.set("list", value)
    key = symbols_of_exchange(1)
    kept = cache.get_decoded(key, load, decode)
    assert len(await kept) == _SYMBOLS
    ratio = await _times_as_fast(lambda: cache.get_decoded(key, load, decode), get_and_decode, rounds=40, count=5)
    await redis.aclose()
    return ratio


def _symbol(number: int) -> SymbolView:
    return SymbolView(
        symbol_id=number + 1,
        symbol=f"COIN{number}/USDT",
        cat_ex_id=1,
        ticker=None,
        base=f"COIN{number}",
        quote="USDT",
        decimals=8,
        tick_size=Decimal("0.01"),
        step_size=Decimal("0.0001"),
        min_size=Decimal("0.001"),
        max_size=None,
        status="active",
        updateframe="1h",
        backtest=True,
        futures=False,
        only_ticker=False,
        row_version=1,
    )


async def without_redis(kind: str, seconds: float = 3.0) -> float:
    """Milliseconds that the 99th percentile of a read is above that of its load alone, with Redis gone this way."""
    async with _GONE[kind]() as url:
        redis = connect(url)
        cache = LeasedCache(redis, namespace="figures")

        async def load() -> bytes:
            await asyncio.sleep(_LOAD_SECONDS)
            return b"x"

        async def through(number: int) -> None:
            await cache.get(f"key:{number}", load)

        alone = await _percentile(lambda _: load(), seconds)
        with_cache = await _percentile(through, seconds)
        await cache.close()
        await redis.aclose()
    return (with_cache - alone) * 1_000


async def _percentile(read: Callable[[int], Awaitable[Any]], seconds: float) -> float:
    until = time.perf_counter() + seconds
    took: list[float] = []

    async def reader(number: int) -> None:
        while (began := time.perf_counter()) < until:
            await read(number)
            took.append(time.perf_counter() - began)

    await asyncio.gather(*(reader(number) for number in range(_READERS)))
    return statistics.quantiles(took, n=100)[98]


@asynccontextmanager
async def _refused() -> AsyncIterator[str]:
    yield "redis://127.0.0.1:1/0"


@asynccontextmanager
async def _silent() -> AsyncIterator[str]:
    """Connections are taken, and nothing is ever said."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while await reader.read(1_024):
                pass
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


@asynccontextmanager
async def _slow() -> AsyncIterator[str]:
    """Every command is answered after 80 ms, by nothing."""

    async def answer_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while asked := await reader.read(65_536):
                await asyncio.sleep(0.08)
                said = b"%1\r\n+proto\r\n:3\r\n" if b"HELLO" in asked else b"_\r\n"
                writer.write(said * max(asked.count(b"*"), 1))
        writer.close()

    async with await asyncio.start_server(answer_late, "127.0.0.1", 0) as server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


_GONE: Final = {"refused": _refused, "silent": _silent, "slow": _slow}
