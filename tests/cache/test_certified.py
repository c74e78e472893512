"""A cache whose readers ask for a certificate is read only under a valid one, and only what its epoch holds."""

from datetime import UTC, datetime

from redis.asyncio import Redis

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
