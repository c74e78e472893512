"""The manual's checklist for production: each point is seen to, and stays so."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy import text
from structlog.testing import capture_logs
from typer.testing import CliRunner

from contracts import (
    AddExchange,
    GetBotWithDetails,
    GetExchangeCatalog,
    GetExchangeCredentials,
    GetExchangeParams,
    GetExchangesByUser,
    GetSymbol,
    GetSymbolsByExchange,
    GetUser,
    GetUserTradingSummary,
    Lookup,
    seal,
    unseal,
)
from contracts.certificate import name_of
from deploy.servers import Servers
from service import cli, dispose_engine, get_engine, schema
from service.config import LibrarySettings, Settings
from service.database import SessionMaker, build_session_maker
from service.engine import build_engine
from service.executor import Executor
from service.health import Health
from service.http import HttpServer
from service.lookup_server import LookupServer
from service.models import ExchangeCredential
from tests.builders import Desk, Direct, received
from tests.e2e.wire import http
from tests.fresh import fresh_database
from tests.manual.conftest import asked
from tests.observe import refusal

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.manual("PC1", "connection pool for the expected load")
async def test_the_pool_is_set_and_its_limit_kept(library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    await dispose_engine()
    monkeypatch.setenv("DB_POOL_SIZE", "3")
    monkeypatch.setenv("DB_POOL_MAX_OVERFLOW", "1")
    used = 0

    async def query() -> None:
        nonlocal used
        async with get_engine().connect() as connection:
            used = max(used, get_engine().pool.checkedout())  # type: ignore[attr-defined]
            await connection.execute(text("SELECT pg_sleep(0.01)"))

    await asyncio.gather(*(query() for _ in range(20)))

    assert used == 4


@pytest.mark.manual("PC2", "Redis with TTLs")
async def test_everything_that_is_cached_has_an_end(server: LookupServer, desk: Desk, redis_url: str) -> None:
    cached: list[Lookup[Any]] = [
        GetUser(uid=desk.user.uid),
        GetUserTradingSummary(uid=desk.user.uid),
        GetExchangesByUser(uid=desk.user.uid),
        GetExchangeParams(ex_id=desk.account.ex_id),
        GetExchangeCatalog(),
        GetSymbol(symbol=desk.symbol.symbol, cat_ex_id=desk.catalog.cat_ex_id),
        GetSymbolsByExchange(cat_ex_id=desk.catalog.cat_ex_id),
        GetBotWithDetails(bot_id=desk.bot.bot_id),
    ]
    for lookup in cached:
        await asked(server, lookup)

    async with Redis.from_url(redis_url) as redis:
        lifetimes = [await redis.ttl(name) for name in await redis.keys(name_of("persistence", "*"))]
    assert len(lifetimes) >= len(cached)
    assert all(lifetime > 0 for lifetime in lifetimes)


@pytest.mark.manual("PC3", "error handling and logging")
async def test_a_refusal_is_answered_stored_and_logged(executor: Executor, desk: Desk) -> None:
    with capture_logs() as logs:
        error = await refusal(executor, desk.trade(symbol_id=999))

    assert (error.code, error.field, error.retryable) == ("not_found", "symbol_id", False)
    [entry] = [entry for entry in logs if entry["event"] == "command_refused"]
    assert (entry["command"], entry["code"], entry["field"]) == ("record_trade", "not_found", "symbol_id")


class _Ready:
    """A service that is ready or not."""

    is_ready = True

    async def ready(self) -> tuple[bool, dict[str, Any]]:
        return self.is_ready, {"database": "ok" if self.is_ready else "does not answer"}


@pytest.mark.manual("PC4", "health endpoints")
async def test_the_side_port_says_whether_it_lives_and_works() -> None:
    health = _Ready()
    side = HttpServer(cast("Settings", SimpleNamespace(http_host="127.0.0.1", http_port=0)), cast("Health", health))
    side.listen()
    side.start()
    try:
        live, ready = [await http(f"{side.address}/health/{what}") for what in ("live", "ready")]
        health.is_ready = False
        failing = await http(f"{side.address}/health/ready")
    finally:
        await side.stop()

    assert (live[0], ready[0], failing[0]) == (200, 200, 503)
    assert "does not answer" in failing[1]


@pytest.mark.manual("PC5", "uvloop", differs="X47: from the start of the process, and no promise of a factor")
def test_the_service_runs_on_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve(_: Settings) -> int:
        loops.append(asyncio.get_running_loop())
        return 0

    monkeypatch.setattr("service.app._serve", serve)
    for name, url in {
        "DATABASE_URL": "postgresql://h/d",
        "RABBITMQ_URL": "amqp://h/",
        "REDIS_URL": "redis://h/0",
    }.items():
        monkeypatch.setenv(name, url)

    assert CliRunner().invoke(cli.app, ["serve"]).exit_code == 0
    assert isinstance(loops[0], uvloop.Loop)


@pytest.mark.manual("PC6", "monitoring and alerting")
async def test_there_are_metrics_and_it_is_said_which_to_watch() -> None:
    side = HttpServer(cast("Settings", SimpleNamespace(http_host="127.0.0.1", http_port=0)), cast("Health", _Ready()))
    side.listen()
    side.start()
    try:
        status, metrics = await http(f"{side.address}/metrics")
    finally:
        await side.stop()

    watched = {
        "persistence_outbox_lag_seconds",
        "persistence_held_batches_total",
        "persistence_commands_total",
        "persistence_cache_requests_total",
    }
    assert status == 200
    assert {name for name in watched if name.removesuffix("_total") in metrics} == watched
    assert {name for name in watched if name in README} == watched


@pytest.mark.manual("PC7", "backup and recovery")
async def test_a_copy_of_the_database_is_all_there_is_to_restore(
    servers: Servers, executor: Executor, desk: Desk, sessions: SessionMaker, emptied_database: str
) -> None:
    message = received(desk.trade(ex_trade_id=None))
    [first] = await executor.execute([message])
    async with sessions() as session:
        pending = len((await session.scalars(text("SELECT id FROM outbox"))).all())
    await dispose_engine()

    async with fresh_database(servers, template=emptied_database.rpartition("/")[2]) as copy:
        engine = build_engine(LibrarySettings.read().model_copy(update={"database_url": SecretStr(copy)}))
        restored = build_session_maker(engine)
        [again] = await Executor(restored).execute([message])
        async with restored() as session:
            to_publish = len((await session.scalars(text("SELECT id FROM outbox"))).all())
        await engine.dispose()

    # Resends are still known, and what was not published yet still will be.
    assert (again.data, again.meta.duplicate) == (first.data, True)
    assert to_publish == pending > 0
    assert "pg_dump" in README


@pytest.mark.manual("PC8", "configuration by environment")
def test_every_setting_is_a_variable_and_explained() -> None:
    assert not {"env_file", "secrets_dir", "toml_file", "yaml_file"} & {
        name for name, value in Settings.model_config.items() if value is not None
    }
    assert [name for name in Settings.model_fields if f"`{name.upper()}`" not in README] == []


@pytest.mark.manual("PC9", "migrations with Alembic")
async def test_the_database_is_at_the_head_of_one_chain(library: None) -> None:
    scripts = ScriptDirectory.from_config(schema._config())
    chain = list(scripts.walk_revisions())

    assert len(scripts.get_heads()) == 1
    assert all(isinstance(revision.down_revision, str) for revision in chain[:-1])
    assert await schema.current(get_engine()) == schema.head() == chain[0].revision


@pytest.mark.manual("PC10", "security of API credentials")
async def test_credentials_are_stored_encrypted_and_leave_sealed(
    direct: Direct, desk: Desk, sessions: SessionMaker, server: LookupServer, keys: tuple[str, str]
) -> None:
    private, public = keys
    uid, secret = desk.user.uid, "the-api-key"
    account = await direct.call(
        AddExchange(
            uid=uid,
            cat_ex_id=desk.catalog.cat_ex_id,
            ex_name="sealed",
            api_key=seal(secret, public, uid=uid, field="api_key"),
        )
    )
    given = await asked(server, GetExchangeCredentials(ex_id=account.ex_id, public_key=public))

    async with sessions() as session:
        stored = await session.get_one(ExchangeCredential, account.ex_id)
    assert stored.api_key is not None
    assert stored.api_key.startswith("v1:first:")
    assert unseal(given["api_key"], private, uid=uid, field="api_key") == secret
    assert secret not in json.dumps(given) + stored.api_key
    assert GetExchangeCredentials.restricted
