"""A certificate is held no longer than it lies in Redis, and for the server that it was written for only."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import Connection
from redis.exceptions import ConnectionError as RedisConnectionError

from contracts.certificate import Certificate, name_of_certificate
from contracts.certificate_watch import CertificateWatch
from contracts.leased_cache import LeasedCache

KEY = "symbol:BTC/USDT:1"


class TestWatch:
    async def test_holds_a_certificate_no_longer_than_redis_does(self, redis: Redis) -> None:
        watch = CertificateWatch(redis, namespace="web")
        await redis.set(name_of_certificate("web"), await a_certificate(redis), px=300)
        await watch.look()
        assert watch.current() is not None

        await asyncio.sleep(0.31)

        assert watch.current() is None

    async def test_takes_none_for_another_run_of_the_server(self, redis: Redis) -> None:
        watch = CertificateWatch(redis, namespace="web")
        await redis.set(name_of_certificate("web"), await a_certificate(redis, run_id="0" * 40), px=3_000)

        await watch.look()

        assert watch.current() is None

    async def test_takes_none_that_it_cannot_read(self, redis: Redis) -> None:
        watch = CertificateWatch(redis, namespace="web")
        await redis.set(name_of_certificate("web"), b"{}", px=3_000)

        await watch.look()

        assert watch.current() is None

    async def test_looks_no_more_often_than_it_has_to(self, redis: Redis) -> None:
        watch = CertificateWatch(redis, namespace="web")
        await watch.look_if_due()
        await redis.set(name_of_certificate("web"), await a_certificate(redis), px=3_000)
        await watch.look_if_due()
        assert watch.current() is None

        await asyncio.sleep(0.51)
        await watch.look_if_due()

        assert watch.current() is not None

    async def test_takes_only_a_later_one_after_a_connection_was_lost(self, redis: Redis) -> None:
        """Who read past the cache meanwhile may know more than what Redis holds."""
        watch = CertificateWatch(redis, namespace="web")
        await redis.set(name_of_certificate("web"), await a_certificate(redis), px=10_000)
        await watch.look()
        cache = LeasedCache(redis, namespace="web", certificate=watch.current)
        assert await cache.get(KEY, value) == b"true"
        await redis.connection_pool.disconnect()

        assert await cache.get(KEY, other_value) == b"false"
        await watch.look()
        assert watch.current() is None
        await redis.set(name_of_certificate("web"), await a_certificate(redis), px=10_000)
        await watch.look()

        assert watch.current() is not None

    async def test_refuses_a_connection_to_another_server(
        self, redis: Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As after a failover: the certificate is still valid, the server behind the address is another one."""
        watch = CertificateWatch(redis, namespace="web")
        await redis.set(name_of_certificate("web"), await a_certificate(redis), px=3_000)
        await watch.look()
        cache = LeasedCache(redis, namespace="web", certificate=watch.current)
        assert await cache.get(KEY, value) == b"true"
        assert await cache.get(KEY, other_value) == b"true"
        watch._connections.clear()  # a new connection, not one that was lost
        await redis.connection_pool.disconnect()
        monkeypatch.setattr("contracts.certificate_watch._run_id", lambda _: "1" * 40)

        assert await cache.get(KEY, other_value) == b"false"

        assert watch.current() is None

    async def test_leaves_alone_a_connection_that_is_being_opened(
        self, redis: Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its last run may be another one than the certificate's; which it will be is not known yet."""
        watch = CertificateWatch(redis, namespace="web")
        await redis.set(name_of_certificate("web"), await a_certificate(redis), px=10_000)
        pool: Any = redis.connection_pool
        connection = await pool.get_connection()
        watch._connections[connection] = (0.0, "0" * 40)
        await connection.disconnect()
        opening, gate = asyncio.Event(), asyncio.Event()
        open_it = Connection.on_connect

        async def wait_first(self: Connection) -> None:
            if self is connection:
                opening.set()
                await gate.wait()
            await open_it(self)

        monkeypatch.setattr(Connection, "on_connect", wait_first)
        asking = asyncio.create_task(connection.connect())
        await opening.wait()

        await watch.look()

        assert watch.current() is not None
        assert connection.is_connected
        gate.set()
        await asking
        await pool.release(connection)

    async def test_hangs_up_on_another_run_without_failing_who_uses_the_connection(self, redis: Redis) -> None:
        watch = CertificateWatch(redis, namespace="web")
        await redis.set(name_of_certificate("web"), await a_certificate(redis), px=10_000)
        [connection] = watch._connections
        client: Any = redis
        waiting = asyncio.create_task(client.blpop(["nothing"], timeout=3))
        await asyncio.sleep(0.05)
        watch._connections[connection] = (0.0, "0" * 40)

        await watch.look()

        with pytest.raises(RedisConnectionError):
            await waiting

    async def test_has_a_connection_that_is_closed_while_it_opens_look_like_a_lost_one(
        self, redis: Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch = CertificateWatch(redis, namespace="web")

        async def break_down(_: Connection) -> None:
            raise AttributeError("'NoneType' object has no attribute 'writelines'")

        monkeypatch.setattr(Connection, "on_connect", break_down)

        with pytest.raises(RedisConnectionError, match="closed while it was opened"):
            await redis.ping()
        await watch.look()


async def a_certificate(redis: Redis, **fields: Any) -> str:
    run_id = (await redis.info("server"))["run_id"]
    return Certificate(epoch=1, as_of=datetime.now(UTC), **{"run_id": run_id, **fields}).model_dump_json()


async def value() -> bytes:
    return b"true"


async def other_value() -> bytes:
    return b"false"
