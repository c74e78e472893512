"""``make soak``: one kind of fault again and again, under load, and a figure for each.

Every part has its own database and virtual host, a service with the settings it comes with, and bots that record
trades as fast as they are confirmed. At its end everything that was confirmed is compared with rows and events.
"""

import argparse
import asyncio
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import aio_pika
import asyncpg
from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from contracts.client import PersistenceClient
from service import schema
from service.config import Settings
from tests.builders import a_desk
from tests.e2e.wire import eventually, management
from tests.faults.links import Link
from tests.faults.machines import Machines, private_servers
from tests.faults.running import Running, by_forking
from tests.faults.traffic import AWAY, Account, Audience, Books, Traffic
from tests.fresh import fresh_database, fresh_vhost
from tests.nursery import Nursery

say = partial(Console(highlight=False, soft_wrap=True).print, markup=False)

_DESKS: Final = 5
_PATIENCE_SECONDS: Final = 60.0
_STANDSTILL_SECONDS: Final = 2.0
_AGAIN: Final = 10
"""How many commands may be sent again after a SIGTERM."""


@dataclass
class Figure:
    """Something measured, with what it has to be."""

    part: str
    what: str
    trials: int
    value: float
    limit: float
    unit: str = ""
    detail: str = ""

    @property
    def holds(self) -> bool:
        return self.value <= self.limit


@dataclass
class Ground:
    """A service, or two, with bots and an audience."""

    machines: Machines
    folder: Path
    database_url: str
    rabbitmq_url: str
    to_broker: Link
    to_database: Link
    services: list[Running]
    traffic: Traffic
    audience: Audience
    books: Books
    figures: list[Figure] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def open(cls, machines: Machines, folder: Path, *, services: int = 1) -> AsyncIterator[Self]:
        """With traffic that flows already."""
        folder.mkdir(parents=True)  # noqa: ASYNC240 - nobody waits for it
        servers = machines.servers
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            database_url = await enter(fresh_database(servers))
            rabbitmq_url = await enter(fresh_vhost(servers))
            to_broker, to_database = await enter(Link(rabbitmq_url)), await enter(Link(database_url))
            urls = {"database_url": database_url, "rabbitmq_url": rabbitmq_url, "redis_url": servers.redis_url}
            await schema.migrate(Settings.model_validate(urls))
            async with Redis.from_url(servers.redis_url) as redis:
                await redis.flushdb()
            environment = {
                "DATABASE_URL": to_database.url,
                "RABBITMQ_URL": to_broker.url,
                "REDIS_URL": servers.redis_url,
                "HTTP_PORT": "0",
                "LOG_FORMAT": "json",
            }
            nursery = stack.enter_context(Nursery.running())
            running = []
            for number in range(services):
                log = folder / f"service-{number}.log"
                running.append(Running(by_forking(nursery, environment, log)))
                stack.push_async_callback(_end, running[-1])
                await running[-1].start()
                await eventually(partial(_says, log, '"serving"'), seconds=_PATIENCE_SECONDS)
            async with PersistenceClient(rabbitmq_url, answer_timeout=30) as client:
                desks = [await a_desk(client, symbol=f"S{number}/ETH") for number in range(_DESKS)]
            audience = await enter(Audience.on(rabbitmq_url))
            traffic = await enter(Traffic.on(rabbitmq_url, desks))
            books = Books(database_url)
            stack.push_async_callback(books.close)
            ground = cls(
                machines,
                folder,
                database_url,
                rabbitmq_url,
                to_broker,
                to_database,
                running,
                traffic,
                audience,
                books,
            )
            pacing = asyncio.create_task(ground._pace())
            stack.callback(pacing.cancel)
            await ground.more_than(200)
            yield ground

    async def _pace(self) -> None:
        books = Books(self.database_url)
        try:
            while True:
                stored = await books.stored()
                self.traffic.keep_near(self.traffic.confirmed if stored is None else stored)
                await asyncio.sleep(0.3)
        finally:
            await books.close()

    @property
    def service(self) -> Running:
        return self.services[0]

    async def more_than(self, trades: int) -> None:
        """Return when so many are stored."""

        async def holds() -> bool:
            return (await self.books.stored() or 0) > trades

        await eventually(holds, seconds=600, pause=0.1)

    async def newest(self) -> int:
        """The newest trade's id, from a database that is up."""
        newest = await eventually(self._newest, seconds=_PATIENCE_SECONDS, pause=0.005)
        return int(newest) - 1

    async def _newest(self) -> int:
        """One more, so that 0 is an answer."""
        newest = await self.books.newest()
        return 0 if newest is None else newest + 1

    async def until_newer(self, than: int) -> float:
        """The instant at which a trade with a higher id was seen; infinity if there was none for long."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            newest = await self.books.newest()
            if newest is not None and newest > than:
                return time.monotonic()
            await asyncio.sleep(0.005)
        return float("inf")

    async def after_standstill(self) -> float:
        """The instant at which something is stored again after nothing was for two seconds.

        What was in hand at the moment of a fault is still stored, so the first new row says nothing.
        """
        before, since = await self.newest(), time.monotonic()
        deadline = since + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            newest, now = await self.books.newest(), time.monotonic()
            if newest is not None and newest > before:
                if now - since > _STANDSTILL_SECONDS:
                    return now
                before, since = newest, now
            await asyncio.sleep(0.01)
        return float("inf")

    async def account(self, part: str, trials: int) -> list[Figure]:
        """Let everybody finish; what was lost, doubled, out of order and not announced."""
        await asyncio.wait_for(self.traffic.finish(), 120)
        found = await Account(self.traffic, self.audience, self.books, self.rabbitmq_url).settle()
        trades = found.pop("trades")
        return [Figure(part, what, trials, number, 0, detail=f"of {trades:,}") for what, number in found.items()]


Part = Callable[[Machines, Path, argparse.Namespace], Awaitable[list[Figure]]]


async def kills(machines: Machines, folder: Path, options: argparse.Namespace) -> list[Figure]:
    """The service is killed, each time with commands in its hands."""
    part, times, trades = "service killed", options.kills, options.trades
    async with Ground.open(machines, folder) as ground:
        busy = 0
        for number in range(1, times + 1):
            await ground.more_than(round(trades * (number - random.uniform(0, 0.5)) / times))
            busy += ground.traffic.confirmed > (await ground.books.stored() or 0)
            ground.service.send(signal.SIGKILL)
            _tell(part, number, times, f"{ground.traffic.confirmed:,} confirmed")
        await ground.more_than(trades)
        figures = await ground.account(part, times)
        met = Figure(part, "deaths with nothing under way", times, times - busy, 0)
        return [*figures, met]


async def broker(machines: Machines, folder: Path, options: argparse.Namespace) -> list[Figure]:
    """The broker is killed; it answers again before the service can go on."""

    async def kill(ground: Ground) -> float:
        os.kill(await ground.machines.broker_pid(), signal.SIGKILL)
        await asyncio.sleep(0.5)
        return await _first(partial(_broker_answers, ground.rabbitmq_url))

    return await _killed("broker killed", options.broker, kill, Ground.open(machines, folder), within=3.0)


async def database(machines: Machines, folder: Path, options: argparse.Namespace) -> list[Figure]:
    """All processes of the database are killed."""

    async def kill(ground: Ground) -> float:
        for pid in await ground.machines.database_pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.1)
        return await _first(partial(_database_answers, ground.database_url))

    return await _killed("database killed", options.database, kill, Ground.open(machines, folder), within=2.0)


async def _killed(
    part: str,
    times: int,
    kill: Callable[[Ground], Awaitable[float]],
    opening: AbstractAsyncContextManager[Ground],
    *,
    within: float,
) -> list[Figure]:
    """A server is killed again and again. ``kill`` gives when it answered; work is to go on so many seconds after."""
    delays = []
    async with opening as ground:
        # RabbitMQ 3.10.8 breaks a quorum queue that was declared within about a second before a kill -9.
        await asyncio.sleep(2)
        for number in range(1, times + 1):
            answered = await kill(ground)
            before = await ground.newest()
            delays.append(await ground.until_newer(before) - answered)
            _tell(part, number, times, f"work {delays[-1]:.2f} s after its answer")
            await asyncio.sleep(random.uniform(0.5, 2))
        figures = await ground.account(part, times)
        return [*figures, _slowest(part, "work resumed after its answer", delays, within)]


async def half_open(machines: Machines, folder: Path, options: argparse.Namespace) -> list[Figure]:
    """Every connection that is open dies without a word; new ones work. Over when work goes on after a stop."""
    figures = []
    for part, wire, limit in (
        ("half-open links to the broker", "to_broker", 20.0),
        ("half-open links to the database", "to_database", 10.0),
    ):
        delays = []
        async with Ground.open(machines, folder / wire) as ground:
            for number in range(1, options.half_open + 1):
                began = time.monotonic()
                getattr(ground, wire).forget()
                delays.append(await ground.after_standstill() - began)
                _tell(part, number, options.half_open, f"noticed and at work after {delays[-1]:.2f} s")
                await asyncio.sleep(random.uniform(1, 3))
            figures += await ground.account(part, options.half_open)
        figures.append(_slowest(part, "noticed, and work resumed", delays, limit))
    return figures


async def relay(machines: Machines, folder: Path, options: argparse.Namespace) -> list[Figure]:
    """Of two services the one that publishes is killed; what is stored from then on is announced by the other."""
    part, times = "publishing service killed", options.relay
    delays = []
    async with Ground.open(machines, folder, services=2) as ground:
        for number in range(1, times + 1):
            leader = await eventually(partial(_leader, ground), seconds=_PATIENCE_SECONDS)
            before = await ground.newest()
            began = time.monotonic()
            ground.services[leader - 1].send(signal.SIGKILL)
            delays.append(await _announced(ground, before) - began)
            _tell(part, number, times, f"the other publishes after {delays[-1]:.2f} s")
            await asyncio.sleep(random.uniform(3, 5))
        figures = await ground.account(part, times)
        return [*figures, _slowest(part, "the other publishes", delays, 2.0)]


async def sigterm(machines: Machines, folder: Path, options: argparse.Namespace) -> list[Figure]:
    """The service is asked to end, under load."""
    part, times = "SIGTERM under load", options.sigterm
    delays, wrong = [], 0
    async with Ground.open(machines, folder) as ground:
        handled = 0
        for number in range(1, times + 1):
            stored = await ground.books.stored() or 0
            began = time.monotonic()
            ground.service.send(signal.SIGTERM)
            code = await ground.service.next_end(seconds=_PATIENCE_SECONDS)
            delays.append(time.monotonic() - began)
            wrong += code != 0
            handled = await ground.books.stored() or 0
            _tell(
                part, number, times, f"exit {code} after {delays[-1]:.2f} s, {handled - stored:,} stored on the way"
            )
            await ground.more_than(handled + random.randint(100, 500))
        figures = await ground.account(part, times)
        redelivered = await _redelivered(ground)
        return [
            *figures,
            Figure(part, "exit codes other than 0", times, wrong, 0),
            _slowest(part, "ended", delays, 10.0),
            Figure(part, "commands sent again", times, redelivered, times * _AGAIN),
        ]


PARTS: Final[Mapping[str, Part]] = {
    "kills": kills,
    "broker": broker,
    "database": database,
    "half-open": half_open,
    "relay": relay,
    "sigterm": sigterm,
}


def _slowest(part: str, what: str, delays: list[float], limit: float) -> Figure:
    ordered = sorted(delays)
    median = ordered[len(ordered) // 2]
    return Figure(part, what, len(delays), round(ordered[-1], 2), limit, "s", f"median {median:.2f} s")


def _tell(part: str, number: int, times: int, what: str) -> None:
    say(f"{time.strftime('%H:%M:%S')}  {part} {number}/{times}: {what}")


async def _end(running: Running) -> None:
    if running.is_kept_up:
        await running.stop(signal.SIGKILL)


async def _says(log: Path, word: str) -> bool:
    return log.exists() and word in log.read_text()  # noqa: ASYNC240 - short, and nobody waits for it


async def _first(answers: Callable[[], Awaitable[bool]]) -> float:
    """The instant of the first answer."""
    await eventually(answers, seconds=_PATIENCE_SECONDS, pause=0.02)
    return time.monotonic()


async def _broker_answers(url: str) -> bool:
    try:
        async with await aio_pika.connect(url, timeout=2):
            return True
    except (aio_pika.exceptions.AMQPError, OSError, TimeoutError, StopAsyncIteration):
        return False


async def _database_answers(url: str) -> bool:
    try:
        connection = await asyncpg.connect(url, timeout=2)
    except AWAY:
        return False
    await connection.close()
    return True


async def _announced(ground: Ground, after: int) -> float:
    """The instant at which an event of a later trade was heard, that nobody can have published before."""

    async def holds() -> bool:
        return any(trade > after for trade in reversed(ground.audience.announced))

    with suppress(AssertionError):
        await eventually(holds, seconds=_PATIENCE_SECONDS, pause=0.01)
        return time.monotonic()
    return float("inf")


async def _leader(ground: Ground) -> int:
    """Which of the services publishes, counted from 1; 0 if none does."""
    for number in range(len(ground.services)):
        lines = (ground.folder / f"service-{number}.log").read_text().splitlines()
        served = [line for line in lines if '"serving"' in line]
        address = json.loads(served[-1])["http"]
        with suppress(OSError, urllib.error.URLError):
            text = await asyncio.to_thread(_page, f"{address}/metrics")
            if "persistence_relay_leader 1.0" in text:
                return number + 1
    return 0


def _page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - http, of the service's own address
        text: str = answer.read().decode()
        return text


async def _redelivered(ground: Ground) -> int:
    """How many commands the broker gave out more than once."""
    url = ground.machines.servers.rabbitmq_management_url
    assert url is not None
    await asyncio.sleep(6)  # it counts every five seconds
    vhost = ground.rabbitmq_url.rsplit("/", 1)[1]
    queue = await management(url, f"queues/{vhost}/persistence.trading")
    return int(queue.get("message_stats", {}).get("redeliver", 0))


def show(figures: list[Figure]) -> None:
    """A table for eyes."""
    table = Table("part", "what", "trials", "value", "at most", "")
    for figure in figures:
        value = f"{figure.value:,.10g}{' ' + figure.unit if figure.unit else ''}"
        verdict = "holds" if figure.holds else "MISSED"
        limit = f"{figure.limit:g}{' ' + figure.unit if figure.unit else ''}"
        about = f"{figure.what} ({figure.detail})" if figure.detail else figure.what
        table.add_row(figure.part, about, f"{figure.trials:,}", value, limit, verdict)
    Console(width=140).print(table)
    for part in dict.fromkeys(figure.part for figure in figures):
        of_part = [figure for figure in figures if figure.part == part]
        if all(figure.holds for figure in of_part):
            rate = 3 / of_part[0].trials
            say(f"{part}: no failure in {of_part[0].trials:,} trials, a rate below {rate:.2g} with 95 % confidence")


async def soak(names: list[str], options: argparse.Namespace, folder: Path) -> list[Figure]:
    figures: list[Figure] = []
    async with private_servers() as machines:
        say(machines.servers.way)
        for name in names:
            figures += await PARTS[name](machines, folder / name, options)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--kills", type=int, default=200, help="of the service")
    parser.add_argument("--trades", type=int, help="stored between the first kill and the last; 1,000 a kill")
    parser.add_argument("--broker", type=int, default=30, help="kills of the broker")
    parser.add_argument("--database", type=int, default=30, help="kills of the database")
    parser.add_argument("--half-open", type=int, default=10, help="silences of each link")
    parser.add_argument("--relay", type=int, default=10, help="kills of the service that publishes")
    parser.add_argument("--sigterm", type=int, default=50, help="SIGTERMs")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    options.trades = options.trades or 1_000 * options.kills
    logging.basicConfig(handlers=[logging.NullHandler()])
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    figures = asyncio.run(soak([options.only] if options.only else list(PARTS), options, folder))
    show(figures)
    if options.json:
        rows: list[dict[str, Any]] = [{**asdict(figure), "holds": figure.holds} for figure in figures]
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    missed = [figure for figure in figures if not figure.holds]
    say("every figure holds" if not missed else f"{len(missed)} figures missed; see {folder}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
