"""Events keep a cache fresh that lies on many servers, and it is left behind when one of them was restarted."""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import aio_pika
import pytest
from redis.asyncio import RedisCluster

from contracts.amqp import Link
from contracts.certificate import Certificate, name_of, name_of_certificate
from contracts.certificate_watch import CertificateWatch
from contracts.leased_cache import LeasedCache
from service import topology
from tests.cache.conftest import answers
from tests.e2e.wire import eventually
from tests.integration.test_invalidator import Feed, as_it_is, held, running

KEYS = [f"symbol:COIN{number}/USDT:1" for number in range(30)]


@pytest.fixture
async def feed(rabbitmq_url: str) -> AsyncIterator[Feed]:
    link = Link(rabbitmq_url, name="test", setup=topology.declare)
    await link.channel()
    await link.close()
    async with await aio_pika.connect(rabbitmq_url) as connection:
        yield Feed(await connection.channel())


async def value() -> bytes:
    return b"value"


async def certified(feed: Feed, redis: Any, *, after: int = 0) -> Certificate:
    """Beat until there is a certificate of a later epoch: a beat that took too long gives none."""

    async def beaten() -> Certificate | None:
        await feed.beat()
        found = await held(redis)
        return found if found is not None and found.epoch > after else None

    found: Certificate = await eventually(beaten, seconds=20, pause=0.2)
    return found


async def are_gone(redis: Any, certificate: Certificate) -> bool:
    return not any([await redis.exists(name_of("web", key, certificate)) for key in KEYS])


async def restart(cluster: RedisCluster) -> None:
    """Have a server begin anew, without what it held: not the one that has the certificate."""
    certified = cluster.get_node_from_key(name_of_certificate("web"))
    node: Any = next(node for node in cluster.get_primaries() if node is not certified)
    with suppress(Exception):  # it says nothing more
        await cluster.execute_command("DEBUG", "RESTART", target_nodes=node)
    await eventually(lambda: answers(cluster), seconds=20)


async def test_events_reach_every_server(rabbitmq_url: str, cluster: RedisCluster, feed: Feed) -> None:
    redis: Any = cluster
    async with running(rabbitmq_url, redis) as instance:
        before = await certified(feed, redis)
        cache = LeasedCache(cluster, namespace="web", timeout=5, certificate=lambda: before)
        for key in KEYS:
            await cache.get(key, value)
        assert set(await cache.cached(KEYS)) == set(KEYS)
        assert len({cluster.keyslot(name_of("web", key, before)) // 5462 for key in KEYS}) == 3

        await feed.event(*KEYS)

        await eventually(lambda: are_gone(redis, before))
        assert instance.why == ["start"]
        assert len(before.run_id.split("+")) == 3


async def test_all_is_left_behind_when_one_server_was_restarted(
    rabbitmq_url: str, cluster: RedisCluster, feed: Feed
) -> None:
    redis: Any = cluster
    watch = CertificateWatch(cluster, namespace="web")
    async with running(rabbitmq_url, redis) as instance:
        before = await certified(feed, redis)
        await redis.pexpire(name_of_certificate("web"), 60_000)
        await watch.look()
        assert watch.current() is not None

        await restart(cluster)
        await watch.look()

        found = watch.current()
        assert found is None or found.epoch > before.epoch
        await certified(feed, redis, after=before.epoch)
        await eventually(lambda: as_it_is(instance.invalidator.certificate()))
        assert instance.why == ["start", "run_id"]
