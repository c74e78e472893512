"""How the service starts, or says in one line why it does not, and how it tells of itself once it runs."""

import asyncio
import json
import os
import re
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aio_pika
import pytest

from contracts import GetSymbol, Refusal, SaveBotLog
from contracts.base import COMMAND_TYPES, EVENT_TYPES, LOOKUP_TYPES
from contracts.client import PersistenceClient
from contracts.topology import Lane
from service.config import Settings
from tests.builders import a_desk
from tests.conftest import RunningService, StartService
from tests.e2e.conftest import SharedService
from tests.e2e.proxy import Proxy
from tests.e2e.wire import certified, eventually, http, ready
from tests.fresh import execute, with_path

Change = Callable[[dict[str, str]], dict[str, str | None]]

READY = {"status": "ready", "service": "ok", "database": "ok", "consumers": "ok", "relay": "ok"}
CANARY = "hunter2-canary"


def put(**changes: str | None) -> Change:
    """These settings instead; None takes one away."""
    return lambda _: changes


def url(name: str, **parts: str) -> Change:
    """Another login, host or path in the URL that ``name`` holds."""

    def change(settings: dict[str, str]) -> dict[str, str | None]:
        split = urlsplit(settings[name])
        user, password = parts.get("user", split.username or ""), parts.get("password", split.password or "")
        address = parts.get("address", split.netloc.rpartition("@")[2])
        path = parts.get("path", split.path)
        return {name: urlunsplit(split._replace(netloc=f"{user}:{password}@{address}", path=path))}

    return change


class TestAStart:
    @pytest.mark.parametrize(
        ("change", "says"),
        [
            pytest.param(
                put(DATABASE_URL=None, REDIS_URL=""),
                "DATABASE_URL: is not set; REDIS_URL: is not set - set it in the environment",
                id="missing settings",
            ),
            pytest.param(
                put(HTTP_PORT="eighty", CACHE_TTL="-1", LOG_LEVEL="loud"),
                "CACHE_TTL: Input should be greater.*HTTP_PORT: Input should be a valid integer.*LOG_LEVEL: .*DEBUG",
                id="bad settings",
            ),
            pytest.param(
                put(DATABASE_URL=f"mysql://u:{CANARY}@h/d"), "DATABASE_URL: must look like postgresql://", id="MySQL"
            ),
            pytest.param(put(RABBITMQ_URL=f"amqp://u:{CANARY}@h:port/"), "RABBITMQ_URL: is not a URL", id="no URL"),
            pytest.param(
                url("DATABASE_URL", address="127.0.0.1:1"), "DATABASE_URL: .*is PostgreSQL running", id="no database"
            ),
            pytest.param(url("DATABASE_URL", path="/nowhere"), 'DATABASE_URL: .*"nowhere"', id="no such database"),
            pytest.param(url("DATABASE_URL", password=CANARY), "DATABASE_URL: .*password", id="a wrong password"),
            pytest.param(
                url("RABBITMQ_URL", address="127.0.0.1:1"), "RABBITMQ_URL: .*is RabbitMQ running", id="no broker"
            ),
            pytest.param(url("RABBITMQ_URL", password=CANARY), "RABBITMQ_URL: .*ACCESS_REFUSED", id="a wrong login"),
            pytest.param(url("RABBITMQ_URL", path="/nowhere"), "RABBITMQ_URL: .*nowhere", id="no such virtual host"),
            pytest.param(
                put(RABBITMQ_URL="amqps://h/?no_verify_ssl=1"),
                "RABBITMQ_URL: must not switch off the verification",
                id="certificates of anybody",
            ),
        ],
    )
    async def test_that_cannot_succeed_says_why_in_one_line(
        self, shared: SharedService, change: Change, says: str
    ) -> None:
        complaint = await refuses(shared, shared.environment | change(shared.environment), "serve")

        assert re.search(f"^persistence: {says}", complaint), complaint
        assert CANARY not in complaint

    async def test_on_an_empty_database_says_to_migrate_it(self, shared: SharedService, empty_database: str) -> None:
        complaint = await refuses(shared, {**shared.environment, "DATABASE_URL": empty_database}, "serve")

        assert re.search("^persistence: DATABASE_URL: .*run `persistence migrate`", complaint), complaint

    async def test_on_a_database_that_cannot_store_every_text_is_refused(
        self, shared: SharedService, database_url: str
    ) -> None:
        options = "ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0"
        await execute(database_url, f'CREATE DATABASE "in_ascii" {options}')
        ascii_url = with_path(database_url, "in_ascii")

        complaint = await refuses(shared, {**shared.environment, "DATABASE_URL": ascii_url}, "serve")

        await execute(database_url, 'DROP DATABASE "in_ascii"')
        assert re.search(r"^persistence: DATABASE_URL: .*SQL_ASCII.*ENCODING 'UTF8'", complaint), complaint

    async def test_on_a_database_that_forgets_with_the_power_is_refused(
        self, shared: SharedService, database_url: str
    ) -> None:
        name = urlsplit(database_url).path.removeprefix("/")
        await execute(database_url, f'ALTER DATABASE "{name}" SET synchronous_commit = off')

        complaint = await refuses(shared, {**shared.environment, "DATABASE_URL": database_url}, "serve")

        assert re.search(r"^persistence: DATABASE_URL: .*synchronous_commit = off.*set it to on", complaint), (
            complaint
        )

    async def test_on_a_taken_port_names_the_setting(self, shared: SharedService) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            complaint = await refuses(shared, {**shared.environment, "HTTP_PORT": port}, "serve")

        assert re.search(f"^persistence: HTTP_PORT: .*:{port} .*0 takes a free port", complaint), complaint

    async def test_without_redis_succeeds(self, start_service: StartService) -> None:
        service = await start_service(REDIS_URL="redis://127.0.0.1:1/0")

        assert await ready(service.http) == (200, READY)
        assert "REDIS_URL" in await asyncio.to_thread(service.log.read_text)


class TestAPartThatFails:
    @pytest.mark.parametrize(
        ("part", "name"),
        [
            ("service.consumers:Lane:_carry_out", Lane.BOT_LOGS.queue),
            ("service.relay:Relay:_read", "relay"),
            ("service.consumers:Consumers:watch", "subscriptions"),
        ],
    )
    async def test_ends_the_process_with_1_so_that_it_is_started_anew(
        self, start_service: StartService, part: str, name: str
    ) -> None:
        service = await start_service(program="tests.e2e.failing_part", FAILING_PART=part)
        async with PersistenceClient(service.rabbitmq_url) as client:
            await client.publish(SaveBotLog(bot_id=1, message="for a lane to carry out"))

        assert await asyncio.wait_for(service.process.wait(), 15) == 1
        [said] = [json.loads(line) for line in service.log.read_text().splitlines() if '"part_failed"' in line]
        assert said["part"] == name
        assert "ZeroDivisionError" in said["exception"]


class TestAnotherCommand:
    @pytest.mark.parametrize(
        ("arguments", "change", "says"),
        [
            pytest.param(["migrate"], put(DATABASE_URL=None), "DATABASE_URL", id="migrate without a setting"),
            pytest.param(
                ["migrate"], url("DATABASE_URL", address="127.0.0.1:1"), "DATABASE_URL", id="migrate, no database"
            ),
            pytest.param(["audit"], put(DATABASE_URL=None), "DATABASE_URL", id="audit without a setting"),
            pytest.param(
                ["audit"], url("DATABASE_URL", address="127.0.0.1:1"), "DATABASE_URL", id="audit, no database"
            ),
            pytest.param(["check"], put(RABBITMQ_URL=None), "RABBITMQ_URL", id="check without a setting"),
            pytest.param(
                ["dead-letters", "list"], put(DATABASE_URL=None), "DATABASE_URL", id="dead letters without a setting"
            ),
            pytest.param(
                ["dead-letters", "list"],
                url("DATABASE_URL", address="127.0.0.1:1"),
                "DATABASE_URL",
                id="dead letters, no database",
            ),
            pytest.param(
                ["dead-letters", "list"],
                url("DATABASE_URL", path="/nowhere"),
                "DATABASE_URL",
                id="dead letters, no such database",
            ),
        ],
    )
    async def test_that_cannot_succeed_says_why_in_one_line(
        self, shared: SharedService, arguments: list[str], change: Change, says: str
    ) -> None:
        complaint = await refuses(shared, shared.environment | change(shared.environment), *arguments)

        assert re.search(f"^persistence: {says}", complaint), complaint

    async def test_an_audit_without_the_broker_is_none_that_passed(self, shared: SharedService) -> None:
        changed = url("RABBITMQ_URL", address="127.0.0.1:1")(shared.environment)

        code, output, _ = await persistence(shared, shared.environment | changed, "audit")

        assert code == 2
        assert "the broker does not answer" in " ".join(output.split())

    async def test_on_an_empty_database_says_to_migrate_it(self, shared: SharedService, empty_database: str) -> None:
        changed = {**shared.environment, "DATABASE_URL": empty_database}

        complaint = await refuses(shared, changed, "dead-letters", "list")

        assert "persistence migrate" in complaint


class TestTheCheck:
    async def test_tells_programs_what_is_spoken_and_that_the_servers_are_there(self, shared: SharedService) -> None:
        code, output, _ = await persistence(shared, shared.environment, "check", "--json")

        report = json.loads(output)
        assert code == 0
        assert {name: server["ok"] for name, server in report["servers"].items()} == {
            "DATABASE_URL": True,
            "RABBITMQ_URL": True,
            "REDIS_URL": True,
        }
        assert report["counts"] == {
            "commands": len(COMMAND_TYPES),
            "lookups": len(LOOKUP_TYPES),
            "events": len(EVENT_TYPES),
        }
        assert report["commands"]["record_trade"] == {"lane": "trading"}
        assert report["lookups"]["get_symbol"] == {"cached": True}
        assert "trade.recorded" in report["events"]

    async def test_names_the_servers_that_are_not_there(self, shared: SharedService, empty_database: str) -> None:
        changed = {
            **shared.environment,
            "DATABASE_URL": empty_database,
            "RABBITMQ_URL": f"amqp://u:{CANARY}@127.0.0.1:1/",
            "REDIS_URL": f"redis://:{CANARY}@127.0.0.1:1/0",
        }
        code, output, complaint = await persistence(shared, changed, "check", "--json")

        servers = json.loads(output)["servers"]
        assert (code, complaint) == (1, "")
        assert [server["ok"] for server in servers.values()] == [False, False, False]
        assert "run `persistence migrate`" in servers["DATABASE_URL"]["state"]
        assert CANARY not in output


class TestHealth:
    async def test_says_alive_and_ready(self, service: RunningService) -> None:
        status, text = await http(f"{service.http}/health/live")
        assert (status, json.loads(text)) == (200, {"status": "alive"})
        assert await ready(service.http) == (200, READY)

    async def test_is_not_ready_while_the_database_is_gone_and_alive_all_the_same(
        self, start_service: StartService, settings: Settings
    ) -> None:
        async with Proxy(settings.database_url.get_secret_value()) as link:
            service = await start_service(DATABASE_URL=link.url)
            await link.shut()

            status, said = await ready(service.http)
            assert (status, said["status"], said["consumers"]) == (503, "not ready", "ok")
            assert said["database"].startswith("does not answer")
            assert (await http(f"{service.http}/health/live"))[0] == 200

            await link.open()
            await eventually(lambda: is_ready(service))

    async def test_is_not_ready_while_a_queue_is_gone_and_heals_or_ends(
        self, service: RunningService, client: PersistenceClient
    ) -> None:
        desk = await a_desk(client)
        async with await aio_pika.connect(service.rabbitmq_url) as connection:
            channel = await connection.channel()
            await channel.queue_delete(Lane.TRADING.queue)

        _, said = await eventually(lambda: not_ready(service))
        assert Lane.TRADING.queue in said["consumers"]
        assert (await http(f"{service.http}/health/live"))[0] == 200
        what_became_of_it = await eventually(lambda: healed_or_ended(service), seconds=25)
        if what_became_of_it == "healed":
            assert (await client.call(desk.trade())).bot_id == desk.bot.bot_id
        else:
            assert what_became_of_it == "ended with 1"

    async def test_is_not_ready_while_events_wait(self, start_service: StartService, settings: Settings) -> None:
        """A relay that cannot publish shows as a lag."""
        service = await start_service()
        async with await aio_pika.connect(service.rabbitmq_url) as connection:
            channel = await connection.channel()
            await channel.exchange_delete("persistence.events")
        async with PersistenceClient(service.rabbitmq_url) as client:
            await a_desk(client)

            _, said = await eventually(lambda: lagging(service), seconds=20)

        assert re.fullmatch(r"the oldest event has waited \d+\.\d s", said["relay"])


class TestMetrics:
    async def test_count_what_was_done(self, start_service: StartService) -> None:
        service = await start_service(JOBS_ENABLED="false")  # nothing is warmed
        async with PersistenceClient(service.rabbitmq_url, app_id="test", answer_timeout=10) as client:
            await self._count_what_was_done(service, client)

    async def _count_what_was_done(self, service: RunningService, client: PersistenceClient) -> None:
        desk = await a_desk(client)
        trade = desk.trade()
        await client.call(trade)
        await client.call(trade)
        with pytest.raises(Refusal):
            await client.call(desk.trade(bot_id=2**31 - 1))
        rejected = 'events_published_total{type="command.rejected"}'
        await eventually(lambda: samples_with(service, rejected))  # so the symbol's own event is out as well
        await certified(service.redis_url)
        for _ in range(2):
            await client.lookup(GetSymbol(symbol=desk.symbol.symbol, cat_ex_id=desk.catalog.cat_ex_id))

        samples = await eventually(lambda: samples_with(service, rejected))

        expected = {
            'persistence_commands_total{command="record_trade",outcome="done"}': 1,
            'persistence_commands_total{command="record_trade",outcome="duplicate"}': 1,
            'persistence_commands_total{command="record_trade",outcome="not_found"}': 1,
            'persistence_lookups_total{lookup="get_symbol",outcome="ok"}': 2,
            'persistence_cache_requests_total{kind="symbol:*:*",result="hit"}': 1,
            'persistence_cache_requests_total{kind="symbol:*:*",result="miss"}': 1,
            'persistence_events_published_total{type="trade.recorded"}': 1,
            'persistence_events_published_total{type="command.rejected"}': 1,
            'persistence_batch_size_count{lane="persistence.trading"}': 3,
            'persistence_lane_waiting{lane="persistence.trading"}': 0,
            "persistence_relay_leader": 1,
        }
        assert {name: samples.get(name) for name in expected} == expected
        assert samples["persistence_outbox_lag_seconds"] < 5


async def persistence(
    shared: SharedService, changed: dict[str, str | None] | dict[str, str], *arguments: str
) -> tuple[int, str, str]:
    """Exit code, output and complaints of ``persistence``."""
    names = ("DATABASE_URL", "RABBITMQ_URL", "REDIS_URL")
    inherited = {name: part for name, part in os.environ.items() if name not in names}
    given = {name: part for name, part in changed.items() if part is not None}
    return await shared.nursery.run(*arguments, environment={**inherited, **given, "COLUMNS": "80"})


async def refuses(shared: SharedService, changed: dict[str, str | None] | dict[str, str], *arguments: str) -> str:
    """The one line that ``persistence`` complains with before it ends with 2."""
    code, output, complaint = await persistence(shared, changed, *arguments)
    assert code == 2, complaint
    assert "Traceback" not in output + complaint
    [line] = complaint.splitlines()
    return line


async def is_ready(service: RunningService) -> bool:
    return await ready(service.http) == (200, READY)


async def not_ready(service: RunningService) -> tuple[int, dict[str, Any]] | None:
    status, said = await ready(service.http)
    return (status, said) if status == 503 else None


async def lagging(service: RunningService) -> tuple[int, dict[str, Any]] | None:
    status, said = await ready(service.http)
    return (status, said) if said["relay"] != "ok" else None


async def healed_or_ended(service: RunningService) -> str | None:
    if service.process.returncode is not None:
        return f"ended with {service.process.returncode}"
    try:
        return "healed" if await is_ready(service) else None
    except OSError:
        return None


async def samples_with(service: RunningService, name: str) -> dict[str, float] | None:
    """All samples of the metrics page, once one whose name ends like this is among them."""
    _, page = await http(f"{service.http}/metrics")
    lines = [line.rpartition(" ") for line in page.splitlines() if not line.startswith("#")]
    samples = {sample: float(number) for sample, _, number in lines}
    return samples if any(sample.endswith(name) for sample in samples) else None
