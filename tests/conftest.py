"""Real servers for every test: a database and a virtual host of its own, gone when it ends."""

import asyncio
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import aio_pika
import asyncpg
import hypothesis
import pytest
import structlog
from aio_pika.abc import AbstractQueue
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts.amqp import Link
from contracts.client import PersistenceClient
from contracts.leased_cache import connect
from contracts.topology import EVENTS
from deploy.servers import Servers
from service import schema, topology
from service.config import Settings
from service.database import SessionMaker, build_session_maker
from service.engine import build_engine
from service.executor import Executor
from service.publisher import Publisher
from tests.builders import Desk, Direct, a_desk
from tests.fresh import environment, execute, fresh_database, fresh_vhost, with_path
from tests.nursery import Child, Nursery
from tests.servers import running_for_tests

# A traceback with the values of variables takes seconds to draw.
_in_short = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[*structlog.get_config()["processors"][:-1], _in_short])

# How long tests of properties look for a counterexample. With `pytest --hypothesis-profile=long` they try far more,
# and make what they find smaller, which takes minutes where each try asks a database.
hypothesis.settings.register_profile(
    "short",
    deadline=None,
    max_examples=100,
    database=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "long", hypothesis.settings.get_profile("short"), max_examples=4_000, phases=tuple(hypothesis.Phase)
)
hypothesis.settings.load_profile("short")


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """PostgreSQL, RabbitMQ and Redis, shared by the tests of one process."""
    with running_for_tests() as running:
        sys.stderr.write(f"\ntests use {running.way}\n")
        # Servers named by the environment serve all processes of a run: each has a database of its own in Redis.
        process = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
        yield replace(running, redis_url=with_path(running.redis_url, process))


@pytest.fixture(scope="session")
def migrated_template(servers: Servers) -> Iterator[str]:
    """The name of a database with all tables, to be copied."""
    name = f"template_{secrets.token_hex(4)}"

    async def make() -> None:
        await execute(servers.database_url, f'CREATE DATABASE "{name}"')
        await schema.migrate(_settings(servers, database_url=with_path(servers.database_url, name)))

    asyncio.run(make())
    yield name
    asyncio.run(execute(servers.database_url, f'DROP DATABASE "{name}" WITH (FORCE)'))


@pytest.fixture
async def empty_database(servers: Servers) -> AsyncIterator[str]:
    """The URL of a database without any table."""
    async with fresh_database(servers) as url:
        yield url


@pytest.fixture
async def database_url(servers: Servers, migrated_template: str) -> AsyncIterator[str]:
    """The URL of a database with all tables and no rows."""
    async with fresh_database(servers, template=migrated_template) as url:
        yield url


@pytest.fixture
async def rabbitmq_url(servers: Servers) -> AsyncIterator[str]:
    """The URL of a virtual host with nothing in it."""
    async with fresh_vhost(servers) as url:
        yield url


@pytest.fixture
async def redis_url(servers: Servers) -> str:
    """The URL of an empty Redis; tests of one process take turns."""
    async with Redis.from_url(servers.redis_url) as redis:
        await redis.flushdb()
    return servers.redis_url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of an empty Redis, as a cache has it."""
    redis = connect(redis_url, timeout=2)
    yield redis
    await redis.aclose()


@pytest.fixture
def settings(database_url: str, rabbitmq_url: str, redis_url: str) -> Settings:
    """Settings for a service on this test's servers."""
    return Settings.model_validate(
        {"database_url": database_url, "rabbitmq_url": rabbitmq_url, "redis_url": redis_url, "http_port": 0}
    )


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on this test's database."""
    engine = build_engine(
        Settings.model_validate(
            {"database_url": database_url, "rabbitmq_url": "amqp://unused", "redis_url": "redis://unused"}
        )
    )
    yield engine
    await engine.dispose()


@pytest.fixture
def sessions(engine: AsyncEngine) -> SessionMaker:
    """Sessions on this test's database."""
    return build_session_maker(engine)


@pytest.fixture
async def sql(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection past the service."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
def executor(sessions: SessionMaker) -> Executor:
    """Carries out what is given to it, without a broker."""
    return Executor(sessions)


@pytest.fixture
def direct(executor: Executor) -> Direct:
    """Has commands carried out, and gives their answers."""
    return Direct(executor)


@pytest.fixture
async def desk(direct: Direct) -> Desk:
    """A market that was set up by messages."""
    return await a_desk(direct)


@pytest.fixture
async def publisher(settings: Settings) -> AsyncIterator[Publisher]:
    """Publishes to the service's exchanges, which are there."""
    link = Link(settings.rabbitmq_url.get_secret_value(), name="test", setup=topology.declare)
    await link.channel()
    await link.close()
    publisher = Publisher(settings)
    yield publisher
    await publisher.close()


@pytest.fixture
async def subscriber(settings: Settings, publisher: Publisher) -> AsyncIterator[AbstractQueue]:
    """A queue that gets every event."""
    connection = await aio_pika.connect(settings.rabbitmq_url.get_secret_value())
    channel = await connection.channel()
    queue = await channel.declare_queue("test.events", durable=True)
    await queue.bind(EVENTS.name, "#")
    yield queue
    await connection.close()


@dataclass
class RunningService:
    """A service process and where its servers are."""

    http: str
    rabbitmq_url: str
    database_url: str
    redis_url: str
    process: Child
    log: Path

    async def kill(self) -> None:
        """End it without a goodbye."""
        self.process.kill()
        await self.process.wait()

    async def terminate(self) -> int:
        """Ask it to end; gives its exit code."""
        self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), 15)


StartService = Callable[..., Awaitable[RunningService]]


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where processes of ``persistence`` come from."""
    with Nursery.running() as running:
        yield running


@pytest.fixture
async def start_service(settings: Settings, tmp_path: Path, nursery: Nursery) -> AsyncIterator[StartService]:
    """Start the service as a process of its own, as often as a test likes; extra settings as keywords.

    ``program`` is a module that is ``persistence`` with something put wrong.
    """
    started: list[RunningService] = []

    async def start(*, program: str = "service.cli", **extra: str) -> RunningService:
        log = tmp_path / f"service-{len(started)}.log"
        log.touch()
        whole = {**os.environ, **environment(settings), **extra}
        process = nursery.fork("serve", environment=whole, output=log, program=program)
        service = RunningService(
            http="",
            rabbitmq_url=settings.rabbitmq_url.get_secret_value(),
            database_url=settings.database_url.get_secret_value(),
            redis_url=settings.redis_url.get_secret_value(),
            process=process,
            log=log,
        )
        started.append(service)
        service.http = await _address(service)
        return service

    yield start
    for service in started:
        service.process.terminate()
    for service in started:
        try:
            await asyncio.wait_for(service.process.wait(), 15)
        except TimeoutError:
            await service.kill()


@pytest.fixture
async def service(start_service: StartService) -> RunningService:
    """A running service with a fresh database and virtual host."""
    return await start_service()


@pytest.fixture
async def client(service: RunningService) -> AsyncIterator[PersistenceClient]:
    """A client of that service."""
    async with PersistenceClient(service.rabbitmq_url, app_id="test", answer_timeout=10) as client:
        yield client


async def _address(service: RunningService) -> str:
    """Where the service's side port is, once it says that it serves."""
    async with asyncio.timeout(30):
        while True:
            for line in service.log.read_text().splitlines():
                if '"serving"' in line:
                    address: str = json.loads(line)["http"]
                    return address
            if service.process.returncode is not None:
                raise AssertionError(
                    f"the service ended with {service.process.returncode}:\n{service.log.read_text()}"
                )
            await asyncio.sleep(0.02)


def _settings(servers: Servers, *, database_url: str) -> Settings:
    return Settings.model_validate(
        {"database_url": database_url, "rabbitmq_url": servers.rabbitmq_url, "redis_url": servers.redis_url}
    )
