"""Private servers with wires in front of them, a service that is started again when it ends, and its customers."""

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

import asyncpg
from redis.asyncio import Redis

from contracts.client import PersistenceClient
from deploy.servers import Servers
from service import schema
from service.config import Settings
from tests.builders import a_desk
from tests.e2e.wire import eventually
from tests.faults.customers import Desk, Plan
from tests.faults.links import Link
from tests.faults.machines import Machines
from tests.faults.planted import BUGS
from tests.faults.running import Running, by_command, by_forking
from tests.fresh import execute, fresh_database, fresh_vhost
from tests.nursery import Nursery

_BOTS = 5


class World:
    """One database, one virtual host, one service, and customers, all reached through wires."""

    servers: Servers
    machines: Machines
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
    async def open(
        cls, machines: Machines, folder: Path, *, seed: int, bug: str | None = None
    ) -> AsyncIterator[Self]:
        """A world whose service runs and whose customers have not begun."""
        world = cls()
        world.machines, world.folder = machines, folder
        world.servers = servers = machines.servers
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
            log, environment = folder / "service.log", world._environment()
            if of_service:
                command = [sys.executable, "-m", "tests.faults.planted", of_service, "serve"]
                world.service = Running(by_command(command, environment, log))
            else:
                world.service = Running(by_forking(stack.enter_context(Nursery.running()), environment, log))
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
            # Shorter than some faults, so that lanes give back what they hold, and take it again.
            "OUTAGE_HOLD": "2",
        }

    async def begin(self, *, with_slow_commits: bool = False) -> None:
        """Have the customers begin."""
        self.plan = self.plan.model_copy(update={"with_slow_commits": with_slow_commits})
        command = [sys.executable, "-m", "tests.faults.customers", self.plan.model_dump_json()]
        self.customers = Running(by_command(command, {}, self.folder / "customers.log"))
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
