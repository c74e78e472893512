"""The composition root: settings in, a running service out. It builds everything and decides nothing."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from threading import Timer
from typing import Any, Final

import structlog
import uvloop
from redis.exceptions import AuthenticationError

from contracts import cache_keys
from contracts.amqp import BROKEN_LINK, Link
from contracts.cancellation import end
from contracts.certificate import Certificate
from contracts.invalidator import CacheInvalidator
from contracts.leased_cache import LeasedCache, connect
from contracts.topology import LOOKUP_QUEUE, UNROUTED_QUEUE, Lane
from service import connections, jobs, producers, schema, topology
from service.cache_audit import CacheAudit, CacheAuditor
from service.config import Settings
from service.consumers import Consumers
from service.consumers import Lane as LaneConsumer
from service.database import AutocommitSessions, build_session_maker
from service.engine import build_engine, encoding_of, what_a_power_cut_would_take
from service.errors import advice, reason
from service.executor import Executor
from service.health import Health
from service.http import HttpServer
from service.lookup_server import LookupServer
from service.observability import (
    CACHE_APPLY_LAG,
    CACHE_CERTIFICATE_AGE,
    CACHE_EPOCHS,
    configure_logging,
    count_cache_request,
    end_logging,
    watch_loop,
)
from service.publisher import Publisher
from service.relay import Relay
from service.removal import remover
from service.senders import Senders
from service.vault import Vault

log = structlog.get_logger()

_LOOKUP_PREFETCH = 500
_SECONDS_TO_SUBSCRIBE: Final = 15.0
_SECONDS_TO_CLOSE: Final = 10.0


class StartError(Exception):
    """A server cannot be reached or used; the message names the setting and what to do."""


class Service:
    """One instance of the service. `run` is its whole life."""

    def __init__(self, settings: Settings, *, ending: Callable[[], None] = lambda: None) -> None:
        """``ending`` is called as soon as `run` is about to end, for whatever reason."""
        self._settings = settings
        self._ending = ending
        self._stopping = asyncio.Event()
        self._engine = build_engine(settings)
        url = settings.rabbitmq_url.get_secret_value()
        self._redis = connect(settings.redis_url.get_secret_value(), timeout=settings.cache_timeout)
        self._sessions = sessions = build_session_maker(self._engine, Vault.of(settings), self._redis)
        # The service is a reader like any other: its own change events keep its cache fresh.
        self._invalidator = CacheInvalidator(
            url,
            self._redis,
            queue=f"{settings.cache_namespace}.cache",
            namespace=settings.cache_namespace,
            bindings=sorted(cache_keys.events()),
            on_applied=self._applied,
            on_new_epoch=lambda why: CACHE_EPOCHS.labels(why=why).inc(),
        )
        cache = LeasedCache(
            self._redis,
            namespace=settings.cache_namespace,
            certificate=self._invalidator.certificate,
            ttl=settings.cache_ttl,
            timeout=settings.cache_timeout,
            count=count_cache_request,
        )
        self._publisher = Publisher(settings)
        self._autocommit = AutocommitSessions(sessions, kept_for=connections.REST_SECONDS)
        self._relay = Relay(sessions, self._publisher, settings, autocommit=self._autocommit)
        self._consumers = Consumers(settings)
        senders = Senders.of(settings)
        executor = Executor(
            sessions,
            require_user=settings.require_authenticated_sender,
            senders=senders,
            remove=remover(cache),
            autocommit=self._autocommit,
        )
        self._lanes = [
            LaneConsumer(
                queue,
                executor,
                self._publisher,
                batch_size=settings.batch_size,
                prefetch=settings.rabbitmq_prefetch,
                intake=self._consumers,
                committed=self._relay.wake,
                hold_seconds=settings.outage_hold,
            )
            for queue in (*(lane.queue for lane in Lane), UNROUTED_QUEUE)
        ]
        audit = CacheAudit(
            self._redis,
            namespace=settings.cache_namespace,
            certificate=self._invalidator.certificate,
            ask=lambda question: self._lookups.answer(question, fresh=True),
        )
        self._auditor = CacheAuditor(audit, events=settings.cache_audit_events, hits=settings.cache_audit_hits)
        self._lookups = LookupServer(
            sessions,
            cache,
            self._publisher,
            require_user=settings.require_authenticated_sender,
            senders=senders,
            on_hit=self._auditor.after_hit,
        )
        CACHE_CERTIFICATE_AGE.set_function(lambda: _age(self._invalidator.certificate()))
        for lane in self._lanes:
            self._consumers.subscribe(lane.queue, lane.take, prefetch=settings.rabbitmq_prefetch)
        self._consumers.subscribe(LOOKUP_QUEUE, self._lookups.take, prefetch=_LOOKUP_PREFETCH)
        # Who looks at the broker must not change it: a queue declared anew would hide that it was deleted.
        self._lookout = Link(url, name="persistence-lookout")
        self._health = Health(sessions, self._consumers, self._lanes, self._relay, self._lookout)
        self._http = HttpServer(settings, self._health)

    def _applied(self, seconds: float, keys: Sequence[str]) -> None:
        CACHE_APPLY_LAG.observe(seconds)
        self._auditor.after_event(keys)

    def stop(self) -> None:
        """Ask `run` to finish what was taken in and return."""
        self._stopping.set()

    async def run(self) -> int:
        """Serve until stopped; gives the exit code: 0 after a stop, 1 if a part failed that cannot be healed."""
        await self._reach_servers()
        tasks: list[asyncio.Task[None]] = []

        def start(name: str, work: Coroutine[Any, Any, None]) -> None:
            tasks.append(asyncio.create_task(work, name=name))

        try:
            for lane in self._lanes:
                start(lane.queue, lane.run())
            start("loop", watch_loop())
            start("relay", self._relay.run())
            start("invalidator", self._invalidator.run())
            start("cache auditor", self._auditor.run())
            start("producers", producers.watch(self._sessions))
            await self._subscribe()
            start("subscriptions", self._consumers.watch(self._lookout))
            if self._settings.jobs_enabled:
                start("jobs", jobs.run(self._settings))
            self._http.start()
            _leave_alone_what_stays()
            log.info("serving", http=self._http.address, lanes=[lane.queue for lane in self._lanes])
            failed = await self._until_stopped_or_failed(tasks)
            self._ending()
            self._health.is_stopping = True
            if not failed:
                await self._finish()
        finally:
            self._ending()
            await end(*tasks)
            await self._close()
        log.info("stopped", failed=failed)
        return 1 if failed else 0

    async def _reach_servers(self) -> None:
        """Fail early and in words: later the same outages are waited out."""
        try:
            self._http.listen()
        except OSError as error:
            where = f"{self._settings.http_host}:{self._settings.http_port}"
            raise StartError(
                f"HTTP_PORT: {where} cannot be listened on ({error.strerror}); 0 takes a free port"
            ) from error
        try:
            revision = await schema.current(self._engine)
            volatile = await what_a_power_cut_would_take(self._engine)
            encoding = await encoding_of(self._engine)
        except Exception as error:
            raise StartError(f"DATABASE_URL: {reason(error)}; {advice(error, 'PostgreSQL')}") from error
        if encoding != "UTF8":
            raise StartError(
                f"DATABASE_URL: the database stores text as {encoding}, not as UTF8; make one with ENCODING 'UTF8'"
            )
        if revision != schema.head():
            raise StartError(
                f"DATABASE_URL: the schema is at {revision or 'nothing'}, this version needs {schema.head()}; "
                "run `persistence migrate`"
            )
        if volatile:
            raise StartError(
                f"DATABASE_URL: the server may forget with the power what it has confirmed ({', '.join(volatile)}); "
                "set it to on"
            )
        try:
            link = Link(self._settings.rabbitmq_url.get_secret_value(), name="persistence-topology")
            await topology.declare(await link.channel())
            await link.close()
            await self._publisher.open()
        except BROKEN_LINK as error:
            raise StartError(f"RABBITMQ_URL: {reason(error)}; {advice(error, 'RabbitMQ')}") from error
        try:
            await self._redis.ping()
        except AuthenticationError as error:
            raise StartError(f"REDIS_URL: {reason(error)}; {advice(error, 'Redis')}") from error
        except Exception as error:  # noqa: BLE001 - trades are stored and lookups answered without a cache
            log.warning("cache_unreachable", setting="REDIS_URL", error=reason(error), advice=advice(error, "Redis"))

    async def _subscribe(self) -> None:
        """A broker that dies in the middle of this leaves the client library waiting for ever."""
        try:
            async with asyncio.timeout(_SECONDS_TO_SUBSCRIBE):
                await self._consumers.start()
        except BROKEN_LINK as error:
            raise StartError(f"RABBITMQ_URL: {reason(error)}; {advice(error, 'RabbitMQ')}") from error

    async def _until_stopped_or_failed(self, tasks: list[asyncio.Task[None]]) -> bool:
        stopping = asyncio.create_task(self._stopping.wait(), name="stop")
        done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        failures = [task for task in done if task is not stopping]
        for task in failures:
            # A part that ended by itself cannot be trusted to come back: end, and be started again clean.
            log.critical("part_failed", part=task.get_name(), exc_info=None if task.cancelled() else task.exception())
        return bool(failures)

    async def _finish(self) -> None:
        """Settle what was sent, and take no more: commit, answer, acknowledge, publish."""
        log.info("stopping")
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.shutdown_timeout):
                await asyncio.gather(*(lane.finish() for lane in self._lanes), self._lookups.finish())
                while await self._relay.publish_once():
                    pass
                await self._relay.release()

    async def _close(self) -> None:
        await self._http.stop()
        await self._consumers.stop()
        await self._invalidator.close()
        await self._publisher.close()
        await self._lookout.close()
        with suppress(Exception):
            async with asyncio.timeout(1):
                await self._redis.aclose()
        with suppress(Exception):
            async with asyncio.timeout(2):
                await self._autocommit.close()
                await self._engine.dispose()


def _age(certificate: Certificate | None) -> float:
    return -1.0 if certificate is None else (datetime.now(UTC) - certificate.as_of).total_seconds()


def _leave_alone_what_stays() -> None:
    """Have the garbage collector look at what is new only: what was loaded so far stays as long as the process.

    Looking at all of it, some hundred thousand objects, holds up every message for a tenth of a second. Messages die
    without the collector, so it need not look often.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def serve(settings: Settings, *, run: Callable[[Coroutine[Any, Any, int]], int] = uvloop.run) -> int:
    """Run the service until SIGTERM or SIGINT; gives the exit code."""
    return run(_serve(settings))


async def _serve(settings: Settings) -> int:
    configure_logging(settings.log_level, settings.log_format)
    service = Service(settings, ending=partial(_end_within, settings.shutdown_timeout + _SECONDS_TO_CLOSE))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stop)
    try:
        return await service.run()
    except StartError as error:
        sys.stderr.write(f"persistence: {error}\n")
        return 2
    finally:
        end_logging()


def _end_within(seconds: float) -> None:
    """End this process then if it lives: something that takes its cancellation for something else may keep it."""
    end = Timer(seconds, os._exit, [1])
    end.daemon = True
    end.start()
