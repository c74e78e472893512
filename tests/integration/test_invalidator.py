"""A cache is certified while everything arrives, and left behind when something may have been missed."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from redis.asyncio import Redis

from contracts import cache_keys
from contracts.amqp import BROKEN_LINK, Link
from contracts.certificate import Certificate, name_of, name_of_certificate
from contracts.heartbeat import Heartbeat
from contracts.invalidator import CacheInvalidator
from contracts.key_spec import SPECS, KeySpec, On
from contracts.leased_cache import LeasedCache, Load
from contracts.topology import EVENTS, HEARTBEATS
from service import topology
from service.config import Settings
from tests.e2e.wire import eventually

KEY = "symbol:BTC/USDT:1"
KIND = "symbol.updated"


class Feed:
    """A relay by hand: publishes any event under any number, and heartbeats that may be wrong."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self.sequence = 0

    async def event(self, *stale: str, sequence: int | None = None, kind: str = KIND, **fields: Any) -> None:
        """Announce a change, under the next number if none is given."""
        self.sequence = self.sequence + 1 if sequence is None else max(sequence, self.sequence)
        now = datetime.now(UTC).isoformat()
        body = {
            "event_id": str(uuid4()),
            "type": kind,
            "sequence": self.sequence if sequence is None else sequence,
            "occurred_at": now,
            "transaction": "1",
            "causation_ids": [],
            "changes": [],
            "stale_keys": stale,
        }
        await self.publish(EVENTS.name, kind, json.dumps({**body, **fields}).encode())

    async def beat(self, *, late: float = 0, sequence: int | None = None, timeline: str = "1", term: int = 1) -> None:
        """Tell how far it is: at ``sequence``, or where it really is."""
        beat = Heartbeat(
            as_of=datetime.now(UTC) - timedelta(seconds=late),
            term=term,
            timeline=timeline,
            sequences={KIND: self.sequence if sequence is None else sequence, "trade.recorded": 99},
        )
        await self.publish(HEARTBEATS.name, Heartbeat.wire_name, beat.model_dump_json().encode())

    async def publish(self, exchange: str, routing_key: str, body: bytes, **headers: Any) -> None:
        target = await self._channel.get_exchange(exchange, ensure=False)
        headers = {"schema_version": 1, **headers}
        message = aio_pika.Message(body, headers=headers, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await target.publish(message, routing_key, mandatory=False)


@pytest.fixture
async def url(settings: Settings) -> str:
    """A broker with the exchanges of the service."""
    url = settings.rabbitmq_url.get_secret_value()
    link = Link(url, name="test", setup=topology.declare)
    await link.channel()
    await link.close()
    return url


@pytest.fixture
async def feed(url: str) -> AsyncIterator[Feed]:
    async with await aio_pika.connect(url) as connection:
        yield Feed(await connection.channel())


class Instance:
    """An invalidator of the namespace ``web`` and what it says."""

    def __init__(
        self, url: str, redis: Redis, bindings: Sequence[str] = ("symbol.#", "symbols.#"), **options: Any
    ) -> None:
        self.why: list[str] = []
        self.lags: list[float] = []
        self.invalidator = CacheInvalidator(
            url,
            redis,
            queue="web.cache",
            namespace="web",
            bindings=bindings,
            on_new_epoch=self.why.append,
            on_applied=lambda seconds, _: self.lags.append(seconds),
            **options,
        )


@asynccontextmanager
async def running(url: str, redis: Redis, **options: Any) -> AsyncIterator[Instance]:
    instance = Instance(url, redis, **options)
    async with instance.invalidator:
        yield instance


async def held(redis: Redis) -> Certificate | None:
    """The certificate that lies in Redis."""
    body: Any = await redis.get(name_of_certificate("web"))
    return None if body is None else Certificate.model_validate_json(body)


async def certified(feed: Feed, redis: Redis, *, after: Certificate | None = None) -> Certificate:
    """Beat once; gives the certificate that comes of it."""
    await feed.beat()
    found: Certificate = await eventually(lambda: newer(redis, after), pause=0.01)
    return found


async def newer(redis: Redis, after: Certificate | None) -> Certificate | None:
    found = await held(redis)
    return found if found is not None and (after is None or found.as_of > after.as_of) else None


async def put(redis: Redis, certificate: Certificate, *keys: str) -> None:
    """Cache something under the certificate."""
    for key in keys:
        await redis.set(name_of("web", key, certificate), b"value")


async def is_gone(redis: Redis, certificate: Certificate, key: str = KEY) -> bool:
    return not await redis.exists(name_of("web", key, certificate))


class TestCertificate:
    async def test_says_that_everything_before_it_was_applied(self, url: str, redis: Redis, feed: Feed) -> None:
        async with running(url, redis) as instance:
            assert instance.invalidator.certificate() is None
            first = await certified(feed, redis)
            await put(redis, first, KEY, "symbol:ADA/USDT:1")
            await feed.event(KEY)

            second = await certified(feed, redis, after=first)

            assert second == first.model_copy(update={"as_of": second.as_of})
            assert await is_gone(redis, first)
            assert not await is_gone(redis, first, "symbol:ADA/USDT:1")
            await eventually(lambda: as_it_is(instance.invalidator.certificate() == second))
            await eventually(lambda: as_it_is(instance.why == ["start"]))
            assert [0 <= lag < 5 for lag in instance.lags] == [True]

    async def test_lives_three_seconds(self, url: str, redis: Redis, feed: Feed) -> None:
        async with running(url, redis):
            await certified(feed, redis)

            assert 0 < await redis.pttl(name_of_certificate("web")) <= 3_000

    async def test_is_not_given_for_what_is_late(self, url: str, redis: Redis, feed: Feed) -> None:
        async with running(url, redis) as instance:
            await feed.beat(late=2.5)
            await feed.beat(late=-2.5)
            await feed.event(KEY)
            await eventually(lambda: as_it_is(instance.lags))

            assert await held(redis) is None

    @pytest.mark.parametrize(
        ("what", "why"),
        [
            ({"sequence": 5}, "gap"),
            ({"stale_keys": "not a list"}, "unreadable"),
            ({"stale_keys": ["*"]}, "asked"),
        ],
    )
    async def test_is_taken_back_at_once_with_all_that_is_cached(
        self, url: str, redis: Redis, feed: Feed, what: dict[str, Any], why: str
    ) -> None:
        async with running(url, redis) as instance:
            before = await certified(feed, redis)
            await put(redis, before, KEY)
            await feed.event(**what)
            await eventually(lambda: as_it_is(instance.why == ["start", why]))
            assert await held(redis) is None
            assert instance.invalidator.certificate() is None

            after = await certified(feed, redis)

            assert after.epoch > before.epoch
            assert await is_gone(redis, after)
            await eventually(lambda: as_it_is(instance.why == ["start", why]))

    async def test_begins_a_new_epoch_for_an_event_of_another_schema(
        self, url: str, redis: Redis, feed: Feed
    ) -> None:
        async with running(url, redis) as instance:
            await certified(feed, redis)
            body = {"sequence": 1, "occurred_at": "2026-01-01T00:00:00Z", "stale_keys": []}
            await feed.publish(EVENTS.name, KIND, json.dumps(body).encode(), schema_version=2)

            await eventually(lambda: as_it_is(instance.why == ["start", "unreadable"]))

    async def test_begins_a_new_epoch_when_a_beat_tells_of_an_event_that_never_came(
        self, url: str, redis: Redis, feed: Feed
    ) -> None:
        async with running(url, redis) as instance:
            before = await certified(feed, redis)
            await feed.event(KEY)
            async with await aio_pika.connect(url) as connection:
                # What waits is purged; whether something waits is chance, so the next beat tells of one more.
                await (await (await connection.channel()).get_queue("web.cache", ensure=False)).purge()
            feed.sequence += 1

            after = await certified(feed, redis, after=before)

            assert after.epoch > before.epoch
            await eventually(lambda: as_it_is(instance.why == ["start", "gap"]))
            assert (await certified(feed, redis, after=after)).epoch == after.epoch

    async def test_begins_a_new_epoch_with_another_history_of_the_database(
        self, url: str, redis: Redis, feed: Feed
    ) -> None:
        async with running(url, redis) as instance:
            before = await certified(feed, redis)
            await feed.beat(timeline="2", sequence=0)
            after = await eventually(lambda: newer(redis, before), pause=0.01)

            assert after.epoch > before.epoch
            await eventually(lambda: as_it_is(instance.why == ["start", "timeline"]))

    async def test_does_not_listen_to_a_relay_that_was_relieved(self, url: str, redis: Redis, feed: Feed) -> None:
        async with running(url, redis) as instance:
            await feed.beat(term=2)
            before = await eventually(lambda: newer(redis, None), pause=0.01)
            await feed.beat(term=1)
            await feed.event(KEY)
            await eventually(lambda: as_it_is(instance.lags))

            assert await held(redis) == before


class TestEvents:
    async def test_may_come_twice_and_late(self, url: str, redis: Redis, feed: Feed) -> None:
        async with running(url, redis) as instance:
            before = await certified(feed, redis)
            for sequence in (1, 2, 2, 1, 3):
                await put(redis, before, KEY)
                await feed.event(KEY, sequence=sequence)
                await eventually(lambda: is_gone(redis, before), pause=0.005)

            assert (await certified(feed, redis, after=before)).epoch == before.epoch
            await eventually(lambda: as_it_is(instance.why == ["start"]))

    async def test_are_told_after_their_keys_are_gone(self, url: str, redis: Redis, feed: Feed) -> None:
        gone: list[bool] = []
        certificates: list[Certificate] = []

        async def note(_: Any) -> None:
            gone.append(await is_gone(redis, certificates[0]))

        async with running(url, redis, on_event=note):
            certificates.append(await certified(feed, redis))
            await put(redis, certificates[0], KEY)
            await feed.event(KEY)
            await eventually(lambda: as_it_is(gone))

        assert gone == [True]

    async def test_reach_readers_that_ask_for_no_certificate(self, url: str, redis: Redis, feed: Feed) -> None:
        cache = LeasedCache(redis, namespace="web")
        async with running(url, redis):
            await cache.get(KEY, value)
            await feed.event(KEY)
            await eventually(lambda: is_uncached(redis, KEY))
            await cache.get(KEY, value)
            await feed.event("*")
            await eventually(lambda: is_uncached(redis, KEY))

    async def test_remove_for_some_time_what_stragglers_still_read(self, url: str, redis: Redis, feed: Feed) -> None:
        """Readers that have not seen the new epoch yet are not left with what is stale."""
        async with running(url, redis):
            before = await certified(feed, redis)
            await feed.event("*")
            await put(redis, before, KEY)
            await feed.event(KEY)

            await eventually(lambda: is_gone(redis, before))


class TestInstances:
    async def test_go_on_where_another_one_stopped(self, url: str, redis: Redis, feed: Feed) -> None:
        async with running(url, redis):
            await feed.event(KEY)
            before = await certified(feed, redis)
        await put(redis, before, KEY)
        await feed.event(KEY)

        async with running(url, redis) as instance:
            after = await certified(feed, redis, after=before)
            assert after.epoch == before.epoch
            assert await is_gone(redis, before)
            await eventually(lambda: as_it_is(instance.why == []))

    async def test_are_served_one_at_a_time(self, url: str, redis: Redis, feed: Feed) -> None:
        async with running(url, redis) as first, running(url, redis) as second:
            certificate = await certified(feed, redis)
            for _ in range(20):
                await feed.event(KEY)
            await eventually(lambda: as_it_is(len(first.lags) == 20))
            assert (second.lags, second.why) == ([], [])
            # Both readers go by the certificate that one of them wrote.
            certificate = await certified(feed, redis, after=certificate)
            await eventually(lambda: as_it_is(second.invalidator.certificate() == certificate))

            await first.invalidator.close()
            first.invalidator._task.cancel()  # type: ignore[union-attr]
            await feed.event(KEY)
            await eventually(lambda: as_it_is(second.lags))

            assert (await certified(feed, redis, after=certificate)).epoch == certificate.epoch
            assert second.why == []

    async def test_that_were_relieved_write_nothing_more(self, url: str, redis: Redis, feed: Feed) -> None:
        """It may not know yet: what it was given before, it still has in hand."""
        async with running(url, redis) as first:
            before = await certified(feed, redis)
            await redis.hset("c:{web}:progress", "holder", "another one")

            await feed.beat()

            # It subscribes anew, and takes over again.
            await eventually(lambda: newer(redis, before), pause=0.01)
            await eventually(lambda: as_it_is(first.why == ["start"]))

    async def test_replace_the_queue_of_an_earlier_version(self, url: str, redis: Redis, feed: Feed) -> None:
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            await channel.declare_queue("web.cache", durable=True, arguments={"x-queue-type": "quorum"})

        async with running(url, redis):
            assert await certified(feed, redis)

    async def test_leave_the_queue_of_an_earlier_version_that_is_at_work(self, url: str, redis: Redis) -> None:
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            queue = await channel.declare_queue("web.cache", durable=True, arguments={"x-queue-type": "quorum"})
            await queue.consume(asyncio.Queue[Any]().put)

            with pytest.raises(BROKEN_LINK, match="in use"):
                async with running(url, redis):
                    pass


@pytest.fixture
def of_one_s_own() -> Iterator[KeySpec]:
    spec = KeySpec("tested:own:{symbol_id}", (On(KIND),))
    yield spec
    del SPECS[spec.pattern]


@pytest.fixture
def misspelt() -> Iterator[KeySpec]:
    spec = KeySpec("tested:misspelt:{symbol_id}", (On("symbol.udpated"),))
    yield spec
    del SPECS[spec.pattern]


class TestKindsOfKeys:
    async def test_are_cached_only_if_all_their_events_come(
        self, url: str, redis: Redis, feed: Feed, misspelt: KeySpec, caplog: pytest.LogCaptureFixture
    ) -> None:
        loads: list[str] = []

        def load(key: str) -> Load:
            async def loaded() -> bytes:
                loads.append(key)
                return key.encode()

            return loaded

        async with running(url, redis) as instance:
            await certified(feed, redis)
            await eventually(lambda: as_it_is(instance.invalidator.certificate() is not None))
            cache = LeasedCache(redis, namespace="web", timeout=5, certificate=instance.invalidator.certificate)
            for _ in range(2):
                for key in (KEY, cache_keys.user(1), misspelt(1), "nokind:1"):
                    assert await cache.get(key, load(key)) == key.encode()

        assert loads == [KEY, *2 * ["user:1", misspelt(1), "nokind:1"]]
        [about_users, about_misspelt, about_nothing] = [line for line in caplog.messages if "is not cached" in line]
        assert all(event in about_users for event in cache_keys.user.events)
        assert "symbol.udpated" in about_misspelt
        assert "nokind:1" in about_nothing
        assert "no KeySpec declares such keys" in about_nothing

    async def test_of_one_s_own_are_removed_by_what_the_images_tell(
        self, url: str, redis: Redis, feed: Feed, of_one_s_own: KeySpec
    ) -> None:
        rules = dict.fromkeys(("ticker", "base", "quote", "tick_size", "step_size", "min_size", "max_size"))
        flags = dict.fromkeys(("backtest", "futures", "only_ticker"), False)
        words = {"symbol": "BTC/USDT", "status": "active", "updateframe": "1h"}
        image = {"symbol_id": 5, "cat_ex_id": 1, "decimals": 8, "row_version": 1, **rules, **flags, **words}
        change = {"key": {"symbol_id": 5}, "version": 2, "before": image, "after": image}
        async with running(url, redis) as instance:
            certificate = await certified(feed, redis)
            await put(redis, certificate, of_one_s_own(5), of_one_s_own(6))

            await feed.event(KEY, changes=[change])

            await eventually(lambda: is_gone(redis, certificate, of_one_s_own(5)))
            assert not await is_gone(redis, certificate, of_one_s_own(6))
            await feed.event(KEY, changes=["nothing that can be read"])
            await eventually(lambda: as_it_is(instance.why == ["start", "unreadable"]))

    async def test_begin_a_new_epoch_with_an_instance_that_looks_after_more_of_them(
        self, url: str, redis: Redis, feed: Feed
    ) -> None:
        both = ["symbol.#", "symbols.#", *cache_keys.user.events]
        key = cache_keys.user(1)
        async with running(url, redis, bindings=both):
            first = await certified(feed, redis)
        async with running(url, redis):
            second = await certified(feed, redis, after=first)
        async with running(url, redis, bindings=both) as instance:
            third = await certified(feed, redis, after=second)
            await eventually(lambda: as_it_is(instance.why == []))

        assert [each.is_for(key) for each in (first, second, third)] == [True, False, True]
        assert all(each.is_for(KEY) for each in (first, second, third))
        assert name_of("web", key, third) != name_of("web", key, first)
        assert len({name_of("web", KEY, each) for each in (first, second, third)}) == 1


class TestADefect:
    """Whatever befalls an instance, it begins anew, and another one is served meanwhile."""

    async def test_is_logged_and_the_events_are_applied_all_the_same(
        self, url: str, redis: Redis, feed: Feed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with running(url, redis) as instance:
            before = await certified(feed, redis)
            await put(redis, before, KEY)
            once(monkeypatch, instance.invalidator, "_remove")
            await feed.event(KEY)

            await eventually(lambda: is_gone(redis, before))
            assert (await certified(feed, redis, after=before)).epoch == before.epoch
            assert instance.why == ["start"]
        assert "the invalidator of the queue web.cache failed" in caplog.text
        assert "planted" in caplog.text

    async def test_of_what_is_done_with_events_brings_them_again(self, url: str, redis: Redis, feed: Feed) -> None:
        told: list[Any] = []

        async def note(event: Any) -> None:
            told.append(event.sequence)
            if len(told) == 1:
                raise RuntimeError("planted")

        async with running(url, redis, on_event=note):
            await feed.event(KEY)
            await eventually(lambda: as_it_is(told == [1, 1]))

    async def test_that_stays_has_another_instance_served(
        self, url: str, redis: Redis, feed: Feed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with running(url, redis) as broken, running(url, redis) as healthy:

            async def fail(*_: Any) -> bool:
                raise RuntimeError("planted")

            monkeypatch.setattr(broken.invalidator, "_apply", fail)
            await feed.event(KEY)
            await eventually(lambda: as_it_is(healthy.lags))

            certificate = await certified(feed, redis)

            await eventually(lambda: as_it_is(healthy.invalidator.certificate() == certificate))
            await eventually(lambda: as_it_is(broken.invalidator.certificate() == certificate))

    async def test_of_the_watch_heals(
        self, url: str, redis: Redis, feed: Feed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        instance = Instance(url, redis)
        once(monkeypatch, instance.invalidator._watch, "look")
        async with instance.invalidator:
            certificate = await certified(feed, redis)

            await eventually(lambda: as_it_is(instance.invalidator.certificate() == certificate))
        assert "planted" in caplog.text

    async def test_that_ends_it_is_raised_where_it_is_left(
        self, url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        invalidator = Instance(url, redis).invalidator

        async def fail(*_: Any) -> None:
            raise RuntimeError("planted")

        monkeypatch.setattr(invalidator, "_again_and_again", fail)
        with pytest.raises(RuntimeError, match="planted"):
            async with invalidator:
                await asyncio.sleep(0.05)


def once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Have the first call fail with what nobody expects."""
    original = getattr(owner, name)

    async def fail(*_: Any) -> None:
        monkeypatch.setattr(owner, name, original)
        raise AttributeError("planted")

    monkeypatch.setattr(owner, name, fail)


async def value() -> bytes:
    return b"true"


async def is_uncached(redis: Redis, key: str) -> bool:
    return not await redis.exists(name_of("web", key))


async def as_it_is(value: Any) -> Any:
    return value
