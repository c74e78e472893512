"""How a reader knows that the cache may be read (extra ``cache``)."""

import asyncio
import re
import time
from datetime import UTC, datetime
from typing import Any, Final
from weakref import WeakKeyDictionary

from pydantic import ValidationError
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from contracts.cache_store import REDIS_AWAY
from contracts.cancellation import heed_cancellation
from contracts.certificate import UNCERTIFIED, Certificate, name_of_certificate

_LOOK_SECONDS: Final = 0.5
_RUN_ID: Final = re.compile(r"run_id:(\w+)")


class UncertifiedError(RedisError):
    """Redis is there, and holds no valid certificate for the cache."""


class CertificateWatch:
    """Looks for the certificate of a cache, and knows at any moment whether there is a valid one.

        watch = CertificateWatch(redis, namespace="web")
        cache = LeasedCache(redis, namespace="web", certificate=watch.current)

    Someone has to `run` it, or to call `look_if_due` before each read. A certificate is valid as long as Redis would
    have kept it, by this process's own clock, and for the run of the server that it names: every new connection of
    ``redis`` is asked which run it is to, and refused if it is another one. A server that came back with what it had
    on its disk, or another one that took its place, may hold what had been removed.

    After a connection was lost only a later certificate counts: meanwhile readers have seen the source, and what they
    saw there may be newer than what Redis holds until the events of that time are applied.
    """

    def __init__(self, redis: Redis | RedisCluster, *, namespace: str) -> None:
        self._redis: Any = redis
        self._namespace = namespace
        self._name = name_of_certificate(namespace)
        self._certificate: Certificate | None = None
        self._valid_until = 0.0
        self._look_at = 0.0
        self._connections: WeakKeyDictionary[Any, tuple[float, str | None]] = WeakKeyDictionary()
        """When each was made, and to which run of the server; None while it is opened again."""
        self._lost = 0.0
        self._not_before = UNCERTIFIED.as_of
        self._ask_new_connections()

    def current(self) -> Certificate | None:
        """The certificate that is valid at this moment; None if there is none."""
        certificate = self._certificate
        if certificate is None or time.monotonic() >= self._valid_until or certificate.as_of < self._not_before:
            return None
        return certificate

    async def run(self) -> None:
        """Look twice a second until cancelled. With Redis away, what was seen last holds until it runs out."""
        while True:
            await self.look()
            heed_cancellation()
            await asyncio.sleep(_LOOK_SECONDS)

    async def wait(self, seconds: float) -> Certificate:
        """The certificate, as soon as there is one.

        Raises `UncertifiedError` if so many seconds bring none, and another RedisError if Redis does not answer.
        """
        until = time.monotonic() + seconds
        while True:
            await self.look_if_due()
            heed_cancellation()
            if (certificate := self.current()) is not None:
                return certificate
            if time.monotonic() >= until:
                break
            await asyncio.sleep(0.05)
        # A server that cannot be reached is another matter than one without a certificate.
        await self._redis.ping()
        raise UncertifiedError(f"nobody certifies the cache {self._namespace}, so it is neither read nor filled")

    async def look_if_due(self) -> None:
        """Look, unless somebody did within the last half second."""
        if time.monotonic() >= self._look_at:
            await self.look()

    async def look(self) -> None:
        """See what Redis holds now."""
        # Its time to live counts from before the question: by the answer some of it has passed.
        asked = time.monotonic()
        self._look_at = asked + _LOOK_SECONDS
        try:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.get(self._name)
                pipe.pttl(self._name)
                held, milliseconds = await pipe.execute()
            # Asked afterwards, so that what was read is of this run, or of one before it, which it names then.
            run_id = await run_id_of(self._redis)
        except REDIS_AWAY:
            return
        certificate = _read(held)
        if certificate is None or certificate.run_id != run_id:
            self._certificate = None
            return
        for connection, (_, of_run) in list(self._connections.items()):
            if of_run is not None and of_run not in certificate.run_id:
                _hang_up(connection)
        self._certificate, self._valid_until = certificate, asked + milliseconds / 1_000

    def _ask_new_connections(self) -> None:
        arguments = _arguments_of_connections(self._redis)
        first = arguments[0].get("redis_connect_func")

        async def connect(connection: Any) -> None:
            before, _ = self._connections.get(connection, (0.0, None))
            self._connections[connection] = before, None
            try:
                await (connection.on_connect() if first is None else first(connection))
                await connection.send_command("INFO", "server")
                run_id = _run_id(await connection.read_response())
            except AttributeError as error:
                # What redis-py makes of a connection that somebody else closes while it is opened.
                raise RedisConnectionError("the connection was closed while it was opened") from error
            certificate = self.current()
            now = time.monotonic()
            self._connections[connection] = now, run_id
            if before > self._lost:
                # Those that were made before it are taken to have been lost together.
                self._lost, self._not_before = now, datetime.now(UTC)
            if certificate is None:
                return
            if run_id not in certificate.run_id:
                self._certificate = None
                raise RedisConnectionError("this is another run of the server than the one the certificate is for")
            if self.current() is None:
                raise RedisConnectionError("the connection was lost; the cache is read again when certified anew")

        for each in arguments:
            each["redis_connect_func"] = connect


async def run_id_of(redis: Redis | RedisCluster) -> str:
    """Which run of the server this is, or which runs of all primaries of a cluster."""
    if not isinstance(redis, RedisCluster):
        return str((await redis.info("server"))["run_id"])
    await redis.initialize()
    told = await asyncio.gather(*(redis.info("server", target_nodes=node) for node in redis.get_primaries()))
    return "+".join(sorted(server["run_id"] for server in told))


def _arguments_of_connections(redis: Redis | RedisCluster) -> list[dict[str, Any]]:
    """Of those to come: a cluster has some for each server that it knows, and some for others."""
    if not isinstance(redis, RedisCluster):
        return [redis.connection_pool.connection_kwargs]
    nodes = redis.nodes_manager
    known = (*nodes.startup_nodes.values(), *nodes.nodes_cache.values())
    return [nodes.connection_kwargs, *(node.connection_kwargs for node in known)]


def _hang_up(connection: Any) -> None:
    """Close a connection that somebody may be using at this moment, to whom it shall look like a lost one.

    To `disconnect` it would take the stream away from under them.
    """
    if (writer := connection._writer) is not None:  # noqa: SLF001 - tested in test_certificate_watch
        writer.close()


def _read(held: bytes | str | None) -> Certificate | None:
    try:
        return None if held is None else Certificate.model_validate_json(held)
    except ValidationError:
        return None


def _run_id(info: bytes | str) -> str:
    found = _RUN_ID.search(info if isinstance(info, str) else info.decode())
    return found[1] if found else ""
