"""Private servers with wires in front of them, a service that is started again when it ends, and its customers."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Self

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from contracts.client import PersistenceClient
from deploy.servers import URL_VARIABLES, Servers, running
from service import schema
from service.config import Settings
from tests.builders import a_desk
from tests.e2e.wire import eventually, management
from tests.faults.customers import Desk, Plan
from tests.faults.links import Link
from tests.faults.planted import BUGS
from tests.faults.points import REPOSITORY
from tests.fresh import execute, fresh_database, fresh_vhost

_BOTS = 5


@asynccontextmanager
async def private_servers() -> AsyncIterator[Servers]:
    """Servers that may be killed: whoever started them starts a dead one again."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True)))
        saved = {name: os.environ.pop(name) for name in URL_VARIABLES if name in os.environ}
        try:
            servers = stack.enter_context(running(folder, docker=False, report=lambda _: None))
        finally:
            os.environ.update(saved)
        yield servers


class Running:
    """A process that is started again whenever it ends, for as long as it is kept up."""

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self._command = command
        self._environment = {**os.environ, **environment}
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.exit_codes: list[int] = []
        self.is_kept_up = False

    async def start(self) -> None:
        """Start it, and again whenever it ends."""
        self.is_kept_up = True
        self._keeper = asyncio.create_task(self._keep_up())
        while self._process is None:
            await asyncio.sleep(0.01)

    async def _keep_up(self) -> None:
        while self.is_kept_up:
            with self._log.open("ab") as output:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    cwd=REPOSITORY,
                    env=self._environment,
                    stdout=output,
                    stderr=asyncio.subprocess.STDOUT,
                )
            self.exit_codes.append(await self._process.wait())
            await asyncio.sleep(0.05)

    def send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def stop(self, number: signal.Signals = signal.SIGTERM, *, seconds: float = 30) -> int:
        """End it for good; gives its exit code."""
        self.is_kept_up = False
        self.send(number)
        assert self._keeper is not None
        try:
            await asyncio.wait_for(asyncio.shield(self._keeper), seconds)
        except TimeoutError:
            self.send(signal.SIGKILL)
            await self._keeper
        return self.exit_codes[-1]


class World:
    """One database, one virtual host, one service, and customers, all reached through wires."""

    servers: Servers
    folder: Path
    database_url: str
    rabbitmq_url: str
    to_broker: Link
    to_database: Link
    to_cache: Link
    from_bots: Link
    service: Running
    customers: Running
    desks: list[Desk]
    plan: Plan

    @classmethod
    @asynccontextmanager
    async def open(cls, servers: Servers, folder: Path, *, seed: int, bug: str | None = None) -> AsyncIterator[Self]:
        """A world whose service runs and whose customers have not begun."""
        world = cls()
        world.servers, world.folder = servers, folder
        folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nobody waits for it
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            world.database_url = await enter(fresh_database(servers))
            world.rabbitmq_url = await enter(fresh_vhost(servers))
            await schema.migrate(world._settings())
            async with Redis.from_url(servers.redis_url) as redis:
                await redis.flushdb()
            world.to_broker = await enter(Link(world.rabbitmq_url))
            world.from_bots = await enter(Link(world.rabbitmq_url))
            world.to_database = await enter(Link(world.database_url))
            world.to_cache = await enter(Link(servers.redis_url))
            planted = BUGS[bug] if bug is not None else None
            if planted is not None and planted.statement:
                await execute(world.database_url, planted.statement)
            of_service = bug if planted is not None and planted.side == "service" else None
            start = ["-m", "tests.faults.planted", of_service] if of_service else ["-m", "service"]
            world.service = Running([sys.executable, *start, "serve"], world._environment(), folder / "service.log")
            stack.push_async_callback(world._end)
            await world.service.start()
            async with PersistenceClient(world.rabbitmq_url, answer_timeout=20) as client:
                await eventually(world.is_serving, seconds=30)
                world.desks = [await world._desk(client, number) for number in range(_BOTS)]
            world.plan = Plan(
                url=world.from_bots.url,
                readers_url=world.from_bots.url,
                redis_url=world.to_cache.url,
                ledger=folder / "ledger",
                desks=world.desks,
                seed=seed,
                pause=0.01,
                bug=bug if planted is not None and planted.side == "customers" else None,
            )
            yield world

    async def _desk(self, client: PersistenceClient, number: int) -> Desk:
        desk = await a_desk(client, symbol=f"S{number}/ETH")
        return Desk(
            uid=desk.user.uid,
            bot_id=desk.bot.bot_id,
            ex_id=desk.account.ex_id,
            cat_ex_id=desk.catalog.cat_ex_id,
            symbol_id=desk.symbol.symbol_id,
            symbol=desk.symbol.symbol,
        )

    async def _end(self) -> None:
        for running_ in (getattr(self, "customers", None), self.service):
            if running_ is not None and running_.is_kept_up:
                running_.send(signal.SIGCONT)
                await running_.stop(signal.SIGKILL)

    def _settings(self) -> Settings:
        return Settings.model_validate(
            {
                "database_url": self.database_url,
                "rabbitmq_url": self.rabbitmq_url,
                "redis_url": self.servers.redis_url,
            }
        )

    def _environment(self) -> dict[str, str]:
        return {
            "DATABASE_URL": self.to_database.url,
            "RABBITMQ_URL": self.to_broker.url,
            "REDIS_URL": self.to_cache.url,
            "HTTP_PORT": "0",
            "LOG_FORMAT": "json",
            "RABBITMQ_HEARTBEAT": "1",
            "PUBLISH_TIMEOUT": "12",
            "RELAY_LEASE": "0.5",
            "BATCH_SIZE": "20",
            "SHUTDOWN_TIMEOUT": "5",
        }

    async def begin(self, *, with_slow_commits: bool = False) -> None:
        """Have the customers begin."""
        self.plan = self.plan.model_copy(update={"with_slow_commits": with_slow_commits})
        command = [sys.executable, "-m", "tests.faults.customers", self.plan.model_dump_json()]
        self.customers = Running(command, {}, self.folder / "customers.log")
        await self.customers.start()

    async def is_serving(self) -> bool:
        log = self.folder / "service.log"
        return log.exists() and '"serving"' in log.read_text()

    async def rows(self, table: str = "trades") -> int:
        connection = await asyncpg.connect(self.database_url, timeout=5)
        try:
            return int(await connection.fetchval(f"SELECT count(*) FROM {table}"))  # noqa: S608 - names from here
        finally:
            await connection.close()

    # The processes of the servers.

    async def broker_pid(self) -> int:
        assert self.servers.rabbitmq_management_url is not None
        url = self.servers.rabbitmq_management_url

        async def process() -> int:
            try:
                [node] = await management(url, "nodes")
            except OSError:
                return 0  # it is being started again
            return int(node.get("os_pid", 0))

        pid: int = await eventually(process, seconds=60)
        return pid

    async def database_pids(self) -> list[int]:
        """The postmaster and all that it started."""

        async def process() -> int:
            try:
                connection = await asyncpg.connect(self.servers.database_url)
            except (OSError, asyncpg.PostgresError):
                return 0  # it is being started again
            try:
                text = str(await connection.fetchval("SELECT pg_read_file('postmaster.pid')"))
            finally:
                await connection.close()
            return int(text.split(maxsplit=1)[0])

        postmaster = await eventually(process, seconds=60)
        return [postmaster, *_children_of(postmaster)]

    async def cache_pid(self) -> int:

        async def process() -> int:
            try:
                async with Redis.from_url(self.servers.redis_url) as redis:
                    return int((await redis.info("server"))["process_id"])
            except RedisError:
                return 0  # it is being started again

        pid: int = await eventually(process, seconds=60)
        return pid

    async def rabbitmqctl(self, *arguments: str) -> None:
        """Have the broker's own command line tell it something."""
        environment = _environment_of(await self.broker_pid())
        # Erlang puts a folder in front whose commands do not work from where they were unpacked.
        path = ":".join(folder for folder in environment["PATH"].split(":") if "/erts-" not in folder)
        process = await asyncio.create_subprocess_exec(
            _scripts(environment) / "rabbitmqctl",
            "--node",
            environment["RABBITMQ_NODENAME"],
            *arguments,
            env={**environment, "PATH": path, "RABBITMQ_CONF_ENV_FILE": "/dev/null"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"rabbitmqctl {arguments}: {output.decode(errors='replace')}")


def _children_of(parent: int) -> list[int]:
    children = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                children.append(int(folder.name))
    return children


def _environment_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _scripts(environment: Mapping[str, str]) -> Path:
    """The folder of the broker's commands."""
    libraries = (Path(folder) for folder in environment["ERL_LIBS"].split(":"))
    return next(
        found for folder in libraries for found in (folder / "sbin", folder.parent / "sbin") if found.is_dir()
    )
