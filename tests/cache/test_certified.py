"""A cache whose readers ask for a certificate is read only under a valid one, and only what its epoch holds."""

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from redis.asyncio import Redis

from contracts import cache_keys
from contracts.certificate import Certificate, name_of
from contracts.leased_cache import LeasedCache


def certificate(epoch: int = 1) -> Certificate:
    return Certificate(epoch=epoch, as_of=datetime(2026, 1, 1, tzinfo=UTC))


class Source:
    """What is loaded: 1, 2, 3, ..."""

    def __init__(self) -> None:
        self.loads = 0

    async def __call__(self) -> bytes:
        self.loads += 1
        return str(self.loads).encode()


async def test_without_a_certificate_every_read_goes_to_the_source(redis: Redis) -> None:
    cache, source = LeasedCache(redis, namespace="test", timeout=2, certificate=lambda: None), Source()

    assert [await cache.get("a", source) for _ in range(3)] == [b"1", b"2", b"3"]
    assert await redis.dbsize() == 0


async def test_what_it_is_not_for_is_neither_read_nor_stored(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    current = certificate().model_copy(update={"kinds": frozenset({cache_keys.user.pattern})})
    cache, source = LeasedCache(redis, namespace="test", timeout=2, certificate=lambda: current), Source()

    async def load_many(keys: Sequence[str]) -> dict[str, bytes]:
        return {key: await source() for key in keys}

    for key in (cache_keys.symbol("A", 1), cache_keys.all_symbols(), "nokind:1"):
        before = source.loads
        await redis.set(name_of("test", key, current), b"\x01" + bytes(40))
        await cache.get(key, source)
        await cache.get_decoded(key, source, bytes_of)
        await cache.get_many([key, cache_keys.user(1)], load_many)
        assert await cache.cached([key]) == {}
        assert await cache.fill([key], load_many) == 0
        assert source.loads >= before + 3
        assert not await redis.exists(name_of("test", key, current))

    assert await cache.cached([cache_keys.user(1)]) == {cache_keys.user(1): b"4"}
    assert len([line for line in caplog.messages if "is not cached" in line]) == 3


def bytes_of(value: bytes | None) -> bytes:
    return value or b""


async def test_another_epoch_holds_other_values(redis: Redis) -> None:
    current = certificate(1)
    cache, source = LeasedCache(redis, namespace="test", timeout=2, certificate=lambda: current), Source()
    assert [await cache.get("a", source) for _ in range(2)] == [b"1", b"1"]
    assert await redis.exists(name_of("test", "a", current))

    current = certificate(2)

    assert [await cache.get("a", source) for _ in range(2)] == [b"2", b"2"]
    current = certificate(1)
    await cache.invalidate(["a"])
    assert not await redis.exists(name_of("test", "a", current))
