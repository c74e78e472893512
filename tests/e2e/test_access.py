"""Certificates that run out and passwords that are changed under a running service: it waits, and comes back."""

import asyncio
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from service.config import Settings
from tests.conftest import RunningService, StartService
from tests.e2e.certificates import Authority
from tests.e2e.proxy import Proxy
from tests.e2e.run import Run, stored
from tests.e2e.wire import eventually, ready, rows
from tests.fresh import a_plain_login, execute


class TestACertificateOfTheBroker:
    @pytest.mark.parametrize("wrong", [{"expired": True}, {"address": "192.0.2.1"}], ids=["expired", "of another"])
    async def test_that_is_wrong_makes_commands_wait_for_a_right_one(
        self, start_service: StartService, settings: Settings, tmp_path: Path, wrong: dict[str, Any]
    ) -> None:
        authority, server = Authority(tmp_path), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.equip(server)
        async with Proxy(settings.rabbitmq_url.get_secret_value(), encrypted=server) as broker:
            service = await start_service(RABBITMQ_URL=f"{broker.url}?cafile={authority.file}")
            async with Run.of(service) as run:
                first = run.desk.trade()
                await run.client.call(first)

                authority.equip(server, **wrong)
                await broker.shut()
                await broker.open()
                trades = [run.desk.trade() for _ in range(20)]
                for trade in trades:
                    await run.client.publish(trade)
                await eventually(lambda: answers_with(service, 503))
                await asyncio.sleep(1)
                assert len(await stored(service.database_url, run.desk)) == 1

                authority.equip(server)
                await eventually(lambda: answers_with(service, 200), seconds=30)
                await run.has_exactly([first, *trades], service=service)


class TestAPasswordOfTheDatabase:
    async def test_that_is_changed_makes_commands_wait_until_it_is_right_again(
        self, start_service: StartService, database_url: str
    ) -> None:
        async with a_plain_login(database_url) as url:
            service = await start_service(DATABASE_URL=url)
            async with Run.of(service) as run:
                role, password = urlsplit(url).username, urlsplit(url).password
                await execute(database_url, f"ALTER ROLE {role} PASSWORD 'another'")
                await rows(
                    database_url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role
                )
                trades = [run.desk.trade() for _ in range(20)]
                for trade in trades:
                    await run.client.publish(trade)
                await eventually(lambda: answers_with(service, 503))
                await asyncio.sleep(1)
                assert await stored(service.database_url, run.desk) == []

                await execute(database_url, f"ALTER ROLE {role} PASSWORD '{password}'")
                await eventually(lambda: answers_with(service, 200), seconds=30)
                await run.has_exactly(trades, service=service, repeated=0)


async def answers_with(service: RunningService, status: int) -> bool:
    return (await ready(service.http))[0] == status
