"""Settings come from the environment, under the manual's names where it has some."""

import secrets
from pathlib import Path

import pytest
from annotated_types import Le
from redis.asyncio import Redis
from sqlalchemy.engine import make_url

from contracts import GetUserTradingSummary
from contracts.certificate import name_of
from contracts.leased_cache import LeasedCache
from service.config import Settings, SettingsError
from service.lookup_server import LookupServer
from tests.manual.conftest import Market, asked

REQUIRED = {"DATABASE_URL": "postgresql://h/d", "RABBITMQ_URL": "amqp://h/", "REDIS_URL": "redis://h/0"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment with the three servers in it and no other setting."""
    for name in [*Settings.model_fields, "db_name", "cache_host"]:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in REQUIRED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.manual("C1", "CACHE_HOST, CACHE_PORT, CACHE_DB")
def test_redis_is_found_by_its_parts(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("REDIS_URL")
    for name, value in {"CACHE_HOST": "localhost", "CACHE_PORT": "6379", "CACHE_DB": "1"}.items():
        environment.setenv(name, value)

    assert Settings.read().redis_url.get_secret_value() == "redis://localhost:6379/1"


async def lifetime(redis_url: str, key: str) -> float:
    """Seconds that a cached value still lives."""
    async with Redis.from_url(redis_url) as redis:
        milliseconds: int = await redis.pttl(name_of("persistence", key))
    return milliseconds / 1_000


@pytest.mark.manual("C2", "cached for 24 hours")
async def test_what_is_cached_lives_for_a_day(cache: LeasedCache, redis_url: str) -> None:
    async def load() -> bytes:
        return b"1"

    await cache.get("key", load)

    # Up to a tenth less, so that not everything ends at once.
    assert 0.89 * 86_400 < await lifetime(redis_url, "key") <= 86_400


@pytest.mark.manual("C3", "the trading summary is cached for an hour")
async def test_the_trading_summary_lives_for_an_hour(server: LookupServer, market: Market, redis_url: str) -> None:
    await asked(server, GetUserTradingSummary(uid=market.user.uid))

    assert 0.89 * 3_600 < await lifetime(redis_url, f"user:trading_summary:{market.user.uid}") <= 3_600


@pytest.mark.manual(
    "C4", "DB_* and further CACHE_*", differs="X50: settings of its own; the prefix is CACHE_NAMESPACE"
)
def test_database_and_cache_are_set_by_parts(environment: pytest.MonkeyPatch) -> None:
    password = "p@ss/w:rd#" + secrets.token_hex(2)
    for name in ("DATABASE_URL", "REDIS_URL"):
        environment.delenv(name)
    parts = {"DB_USER": "bot", "DB_PASSWORD": password, "DB_HOST": "db", "DB_PORT": "5433", "DB_NAME": "fullon"}
    sizes = {"DB_POOL_SIZE": "7", "DB_POOL_MAX_OVERFLOW": "3", "DB_POOL_RECYCLE": "60", "DB_POOL_TIMEOUT": "2"}
    cache = {"CACHE_HOST": "cache", "CACHE_USER": "u", "CACHE_PASSWORD": password, "CACHE_TIMEOUT": "30"}
    for name, value in {**parts, **sizes, **cache, "DB_POOL_PRE_PING": "false"}.items():
        environment.setenv(name, value)

    settings = Settings.read()

    url = make_url(settings.database_url.get_secret_value())
    assert (url.username, url.password, url.host, url.port, url.database) == ("bot", password, "db", 5433, "fullon")
    assert make_url(settings.redis_url.get_secret_value()).password == password
    assert (settings.db_pool_size, settings.db_pool_max_overflow, settings.db_pool_recycle) == (7, 3, 60)
    assert (settings.db_pool_timeout, settings.db_pool_pre_ping, settings.cache_timeout) == (2, False, 30)


@pytest.mark.manual("C5", "RABBITMQ_URL and what else messages need")
def test_messaging_is_set_too(environment: pytest.MonkeyPatch) -> None:
    names = {
        "rabbitmq_prefetch",
        "batch_size",
        "publish_timeout",
        "relay_poll_interval",
        "sealing_key",
        "storage_keys",
    }

    assert names <= set(Settings.model_fields)
    environment.delenv("RABBITMQ_URL")
    with pytest.raises(SettingsError, match="RABBITMQ_URL: is not set"):
        Settings.read()


@pytest.mark.manual("C6", "all configuration from the environment")
def test_nothing_is_set_by_a_file(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DB_POOL_SIZE=3\n")
    environment.chdir(tmp_path)
    assert Settings.read().db_pool_size == 20

    numbers = {name: field for name, field in Settings.model_fields.items() if field.annotation in (int, float)}
    for name, field in numbers.items():
        is_share = Le(1) in field.metadata
        number = 1 if is_share else 9
        assert number != field.default
        environment.setenv(name.upper(), str(number))
        assert getattr(Settings.read(), name) == number
    assert len(numbers) > 10
