"""Servers that die or fall silent in the middle: the service waits, comes back by itself, and nothing is lost."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from contracts import AddSymbol, GetSymbol, GetSymbolsByExchange, Refusal, SaveBotLog, SymbolUpdates, UpdateSymbol
from contracts.client import PersistenceClient
from contracts.errors import ErrorCode
from contracts.topology import Lane
from deploy.servers import URL_VARIABLES, Servers, running
from service import schema
from service.config import Settings
from tests.builders import Desk, a_desk
from tests.conftest import RunningService, StartService, _settings
from tests.e2e.proxy import Proxy
from tests.e2e.run import Load, Run, holds, stored, stored_are
from tests.e2e.wire import certified, eventually, http, management, ready, value
from tests.fresh import execute, with_path

READY = (200, {"status": "ready", "service": "ok", "database": "ok", "consumers": "ok", "relay": "ok"})


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Servers of this module's own, to be killed; whoever started them starts a dead one again on its port."""
    with pytest.MonkeyPatch.context() as patch:
        for name in URL_VARIABLES:
            patch.delenv(name, raising=False)
        with running(tmp_path_factory.mktemp("mortal"), docker=False, report=lambda _: None) as mortal:
            yield mortal


@pytest.fixture(scope="module")
def migrated_template(servers: Servers) -> str:
    """The name of a database with all tables, on those servers."""

    async def make() -> None:
        await execute(servers.database_url, "CREATE DATABASE migrated")
        await schema.migrate(_settings(servers, database_url=with_path(servers.database_url, "migrated")))

    asyncio.run(make())
    return "migrated"


async def kill_broker(servers: Servers) -> None:
    url = servers.rabbitmq_management_url
    assert url is not None

    async def process() -> int:
        [node] = await management(url, "nodes")
        return int(node.get("os_pid", 0))

    # The broker collects what it says of itself every few seconds.
    os.kill(await eventually(process), signal.SIGKILL)


async def kill_database(servers: Servers) -> None:
    """End it as a crash does: at once, and every connection with it; the next start recovers from its log."""
    connection = await asyncpg.connect(servers.database_url)
    try:
        postmaster = str(await connection.fetchval("SELECT pg_read_file('postmaster.pid')"))
    finally:
        await connection.close()
    os.kill(int(postmaster.split(maxsplit=1)[0]), signal.SIGQUIT)


class TestARestart:
    """Of a server that was killed without a warning, under load."""

    @pytest.mark.parametrize("kill", [kill_broker, kill_database])
    async def test_loses_nothing_and_doubles_nothing(
        self, servers: Servers, start_service: StartService, kill: Callable[[Servers], Awaitable[None]]
    ) -> None:
        service = await start_service()
        async with Run.of(service) as run:
            async with Load(run, bots=8, pause=0.005) as load:
                await eventually(lambda: stored_are(service.database_url, 300))
                await kill(servers)
                before = len(load.confirmed)
                await eventually(lambda: confirmed(load, before + 300), seconds=60)

            await becomes_ready(service)
            await run.has_exactly(load.confirmed, service=service, seconds=30)

    async def test_of_the_cache_is_hardly_noticed(
        self, servers: Servers, service: RunningService, client: PersistenceClient
    ) -> None:
        desk = await a_desk(client)
        await certified(service.redis_url)
        await client.lookup(question(desk))
        async with Redis.from_url(servers.redis_url) as redis:
            os.kill((await redis.info("server"))["process_id"], signal.SIGKILL)

        for _ in range(20):
            assert await quickly(client.lookup(question(desk))) == desk.symbol

        await eventually(lambda: gains_a_hit(service, client, desk))
        assert await ready(service.http) == READY


class TestAnAbsentDatabase:
    async def test_makes_commands_wait_and_lookups_say_so(
        self, start_service: StartService, settings: Settings
    ) -> None:
        async with Proxy(settings.database_url.get_secret_value()) as link:
            service = await start_service(DATABASE_URL=link.url)
            service.database_url = settings.database_url.get_secret_value()
            async with PersistenceClient(service.rabbitmq_url, answer_timeout=15) as client:
                desk = await a_desk(client)
                await link.shut()
                waiting = asyncio.create_task(client.call(desk.trade()))
                logged = [await client.publish(SaveBotLog(bot_id=desk.bot.bot_id, message=str(n))) for n in range(50)]
                with pytest.raises(Refusal) as refusal:
                    await client.lookup(GetSymbolsByExchange(cat_ex_id=desk.catalog.cat_ex_id))
                status, said = await eventually(lambda: not_ready(service))
                await asyncio.sleep(1)
                assert not waiting.done()
                await link.open()

                assert (await waiting).bot_id == desk.bot.bot_id
                await becomes_ready(service)
                count = "SELECT count(*) = $1 FROM bot_logs"
                await eventually(lambda: value(service.database_url, count, len(logged)))

        assert (refusal.value.code, refusal.value.retryable) == (ErrorCode.UNAVAILABLE, True)
        assert (status, said["database"]) == (503, "does not commit for persistence.trading, persistence.bot_logs")
        assert await value(service.database_url, "SELECT count(*) FROM dead_letters") == 0

    async def test_for_long_gives_the_commands_back_to_the_broker_until_it_stores_again(
        self, start_service: StartService, settings: Settings
    ) -> None:
        async with Proxy(settings.database_url.get_secret_value()) as link:
            service = await start_service(DATABASE_URL=link.url, OUTAGE_HOLD="1", RABBITMQ_PREFETCH="100")
            service.database_url = settings.database_url.get_secret_value()
            async with Run.of(service) as run:
                before = [run.desk.trade() for _ in range(10)]
                for trade in before:
                    await run.client.publish(trade)
                await eventually(lambda: stored_are(service.database_url, len(before)))
                await link.shut()
                trades = [run.desk.trade() for _ in range(50)]
                for trade in trades:
                    await run.client.publish(trade)
                # In nobody's hands: the broker has no delivery to lose patience with.
                await eventually(lambda: holds(service.rabbitmq_url, Lane.TRADING.queue, 50), seconds=20)
                assert (await ready(service.http))[0] == 503
                await asyncio.sleep(7)  # longer than a lost subscription is put up with
                assert service.process.returncode is None
                trades += [run.desk.trade() for _ in range(50)]
                for trade in trades[50:]:
                    await run.client.publish(trade)
                assert await holds(service.rabbitmq_url, Lane.TRADING.queue, 100)
                await link.open()

                await becomes_ready(service)
                await run.has_exactly([*before, *trades], service=service, repeated=0)
                stored_order = [row.ex_trade_id for row in await stored(service.database_url, run.desk)]
                assert stored_order == [trade.ex_trade_id for trade in (*before, *trades)]

    async def test_that_ends_before_one_of_the_broker_leaves_a_lane_one_channel(
        self, start_service: StartService, settings: Settings
    ) -> None:
        database = Proxy(settings.database_url.get_secret_value())
        broker = Proxy(settings.rabbitmq_url.get_secret_value())
        async with database, broker:
            urls = {"DATABASE_URL": database.url, "RABBITMQ_URL": broker.url}
            service = await start_service(**urls, OUTAGE_HOLD="1", RABBITMQ_PREFETCH="100")
            service.database_url = settings.database_url.get_secret_value()
            async with Run.of(service) as run:
                trades = []

                async def send_ten_into_an_outage() -> None:
                    await database.shut()
                    for _ in range(10):
                        trades.append(run.desk.trade())
                        await run.client.publish(trades[-1])
                    await eventually(lambda: holds(service.rabbitmq_url, Lane.TRADING.queue, 10), seconds=20)

                await send_ten_into_an_outage()
                await broker.shut()
                await database.open()
                await eventually(lambda: has_said(service, "intake_not_resumed"), seconds=20)
                await broker.open()
                await becomes_ready(service)
                await eventually(lambda: stored_are(service.database_url, 10))

                # What a second channel had delivered would be nobody's now, and settled by what comes later.
                await send_ten_into_an_outage()
                await database.open()
                await becomes_ready(service)
                await run.has_exactly(trades, service=service, repeated=0)


class TestAnAbsentCache:
    async def test_does_not_delay_lookups_or_commands(self, start_service: StartService, settings: Settings) -> None:
        async with Proxy(settings.redis_url.get_secret_value()) as link:
            service = await start_service(REDIS_URL=link.url)
            async with PersistenceClient(service.rabbitmq_url, answer_timeout=10) as client:
                desk = await a_desk(client)
                assert await client.lookup(question(desk)) == desk.symbol
                await link.shut()

                for _ in range(10):
                    assert await quickly(client.lookup(question(desk))) == desk.symbol
                    assert (await quickly(client.call(desk.trade()))).bot_id == desk.bot.bot_id
                assert await ready(service.http) == READY

    async def test_that_falls_silent_does_not_delay_them_either(
        self, servers: Servers, service: RunningService, client: PersistenceClient
    ) -> None:
        desk = await a_desk(client)
        assert await client.lookup(question(desk)) == desk.symbol
        async with Redis.from_url(servers.redis_url) as redis:
            process = (await redis.info("server"))["process_id"]
        os.kill(process, signal.SIGSTOP)
        try:
            for _ in range(5):
                assert await quickly(client.lookup(question(desk))) == desk.symbol
                assert (await quickly(client.call(desk.trade()))).bot_id == desk.bot.bot_id
            many = [quickly(client.lookup(question(desk))) for _ in range(20)]
            assert await asyncio.gather(*many) == [desk.symbol] * 20
            assert await ready(service.http) == READY
        finally:
            os.kill(process, signal.SIGCONT)

    async def test_never_shows_what_was_changed_meanwhile_once_it_is_back(
        self, start_service: StartService, settings: Settings
    ) -> None:
        async with Proxy(settings.redis_url.get_secret_value()) as link:
            service = await start_service(REDIS_URL=link.url)
            async with PersistenceClient(service.rabbitmq_url, answer_timeout=10) as client:
                desk = await a_desk(client)
                absent = GetSymbol(symbol="ADA/ETH", cat_ex_id=desk.catalog.cat_ex_id)
                everything = GetSymbolsByExchange(cat_ex_id=desk.catalog.cat_ex_id)
                assert await client.lookup(question(desk)) == desk.symbol
                assert await client.lookup(absent) is None
                assert await client.lookup(everything) == [desk.symbol]
                await link.shut()
                changed, meta = await client.call_with_meta(
                    UpdateSymbol(symbol_id=desk.symbol.symbol_id, updates=SymbolUpdates(decimals=3))
                )
                assert meta.cache == "pending"
                added = await client.call(AddSymbol(symbol=absent.symbol, cat_ex_id=absent.cat_ex_id))
                assert await client.lookup(question(desk)) == changed
                assert await client.lookup(absent) == added
                await asyncio.sleep(1)
                await link.open()

                until = time.monotonic() + 3
                while time.monotonic() < until:
                    assert await client.lookup(question(desk)) == changed
                    assert await client.lookup(absent) == added
                    assert await client.lookup(everything) == [added, changed]
                await eventually(lambda: gains_a_hit(service, client, desk))


def question(desk: Desk) -> GetSymbol:
    return GetSymbol(symbol=desk.symbol.symbol, cat_ex_id=desk.catalog.cat_ex_id)


async def quickly(answer: Awaitable[Any]) -> Any:
    """The answer, which took less than a second."""
    started = time.monotonic()
    found = await answer
    assert time.monotonic() - started < 1
    return found


async def confirmed(load: Load, count: int) -> bool:
    return len(load.confirmed) >= count


async def becomes_ready(service: RunningService) -> None:
    """The same process says that it is ready again."""
    await eventually(lambda: is_ready(service), seconds=30)
    assert service.process.returncode is None


async def has_said(service: RunningService, event: str) -> bool:
    return f'"{event}"' in service.log.read_text()


async def is_ready(service: RunningService) -> bool:
    return await ready(service.http) == READY


async def not_ready(service: RunningService) -> tuple[int, dict[str, Any]] | None:
    """What the service says once both lanes are held."""
    status, said = await ready(service.http)
    return (status, said) if status == 503 and "bot_logs" in said["database"] else None


async def gains_a_hit(service: RunningService, client: PersistenceClient, desk: Desk) -> bool:
    before = await hits(service)
    await client.lookup(question(desk))
    return await hits(service) > before


async def hits(service: RunningService) -> float:
    _, metrics = await http(f"{service.http}/metrics")
    found = re.findall(r'cache_requests_total{.*result="hit"} (.+)', metrics)
    return sum(map(float, found))
