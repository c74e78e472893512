"""Settings, from the environment only. A missing or bad one is named before anything is started."""

import os
from datetime import time
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import quote, urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from contracts.topology import REMEMBERED_DAYS


class SettingsError(Exception):
    """The environment lacks a setting or has a wrong one; the message names it and says what to do."""


class LibrarySettings(BaseSettings):
    """What a program needs that uses the repositories by itself: a database, and a cache if there is one.

    ``DATABASE_URL`` and ``REDIS_URL`` may be given in parts (``DB_*``, ``CACHE_*``).
    """

    model_config = SettingsConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True, env_ignore_empty=True)

    database_url: SecretStr
    """``postgresql://user:password@host:port/name``; or ``DB_USER DB_PASSWORD DB_HOST DB_PORT DB_NAME``."""
    redis_url: SecretStr = SecretStr("redis://localhost:6379/0")
    """``redis://host:port/db``; or ``CACHE_HOST CACHE_PORT CACHE_DB CACHE_USER CACHE_PASSWORD``."""

    db_pool_size: Annotated[int, Field(ge=2, le=200)] = 20
    db_pool_max_overflow: Annotated[int, Field(ge=0, le=200)] = 10
    db_pool_recycle: Annotated[int, Field(ge=1)] = 3600
    """Seconds after which an idle connection is replaced."""
    db_pool_timeout: Annotated[float, Field(gt=0)] = 5.0
    """Seconds to wait for a free connection."""
    db_pool_pre_ping: bool = True
    db_command_timeout: Annotated[float, Field(gt=0)] = 5.0
    """Seconds a statement may take; without a limit a silent network would hold it for ever."""
    db_connect_timeout: Annotated[float, Field(gt=0)] = 3.0

    cache_namespace: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")] = "persistence"
    cache_ttl: Annotated[int, Field(ge=1)] = 86_400
    """Seconds a cached answer lives if nothing makes it stale."""
    cache_timeout: Annotated[float, Field(gt=0)] = 0.1
    """Seconds Redis has to answer before a lookup goes to the database."""
    cache_audit_events: Annotated[float, Field(ge=0, le=1)] = 0.001
    """The share of events after which what they made stale is compared with the database."""
    cache_audit_hits: Annotated[float, Field(ge=0, le=1)] = 0.0001
    """The same of answers out of the cache."""

    warming_interval: Annotated[float, Field(ge=1)] = 300.0
    """Seconds between two looks at whether the symbols of active exchanges are cached."""
    cleanup_at: time = time(2)
    """When old rows are removed, in UTC."""
    bot_logs_retention_days: Annotated[int, Field(ge=0, le=36_500)] = 90
    """Days that logs are kept at least, by the week; 0 keeps them for ever, as it does for the others."""
    ticks_retention_days: Annotated[int, Field(ge=0, le=36_500)] = 90
    simulations_retention_days: Annotated[int, Field(ge=0, le=36_500)] = 90
    dead_letters_retention_days: Annotated[int, Field(ge=0, le=36_500)] = 90
    """Of dead letters that were replayed or discarded; open ones stay."""
    published_events_retention_days: Annotated[int, Field(ge=0, le=36_500)] = 30
    """Days in which an audit can tell that rows were announced."""
    inbox_retention_days: Annotated[int, Field(ge=REMEMBERED_DAYS, le=36_500)] = REMEMBERED_DAYS
    """Days in which a message that comes again has no second effect."""

    senders: str | None = None
    """``login:role`` or ``login:role:uid+uid`` of all who may send, separated by commas; see `service.senders`."""

    sealing_key: SecretStr | None = None
    """Private keys that senders of credentials seal for, the present one first; `persistence keygen` makes them."""
    sealing_key_file: Path | None = None
    """A file with the same, which other processes of the machine cannot see as easily as the environment."""
    storage_keys: SecretStr | None = None
    """``id:key`` of the keys that credentials are stored under, the present one first."""
    storage_keys_file: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_parts(cls, values: Any) -> Any:
        parts = {name.lower(): value for name, value in os.environ.items() if value}
        if isinstance(values, dict):
            if "database_url" not in values and "db_name" in parts:
                values["database_url"] = f"{_url('postgresql', 'db', parts)}/{quote(parts['db_name'], safe='')}"
            if "redis_url" not in values and parts.keys() & {"cache_host", "cache_port", "cache_db"}:
                values["redis_url"] = f"{_url('redis', 'cache', parts)}/{parts.get('cache_db', '0')}"
        return values

    @field_validator("database_url", "rabbitmq_url", "redis_url", check_fields=False)
    @classmethod
    def _is_a_url(cls, value: SecretStr, info: Any) -> SecretStr:
        schemes = {
            "database_url": ("postgresql", "postgresql+asyncpg", "postgres"),
            "rabbitmq_url": ("amqp", "amqps"),
            "redis_url": ("redis", "rediss", "unix"),
        }[info.field_name]
        try:
            parts = urlsplit(value.get_secret_value())
            parts.port  # noqa: B018 - raises for a port that is no number
        except ValueError as error:
            raise ValueError(f"is not a URL: {error}") from None
        if parts.scheme not in schemes or not (parts.hostname or parts.scheme == "unix"):
            raise ValueError(f"must look like {schemes[0]}://user:password@host:port/name")
        if "no_verify_ssl" in parts.query:
            raise ValueError("must not switch off the verification of certificates")
        return value

    @classmethod
    def read(cls) -> Self:
        """The settings of this environment; raises `SettingsError` that names what is missing or wrong."""
        try:
            return cls()
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, e['loc'])).upper() or 'settings'}: "
                + ("is not set" if e["type"] == "missing" else e["msg"].removeprefix("Value error, "))
                for e in error.errors(include_url=False, include_input=False, include_context=False)
            ]
            raise SettingsError("; ".join(problems) + " - set it in the environment (README, Settings)") from None


class Settings(LibrarySettings):
    """All that the service has to be told."""

    rabbitmq_url: SecretStr
    """``amqp://user:password@host:port/vhost``, or ``amqps://``."""
    redis_url: SecretStr

    rabbitmq_heartbeat: Annotated[int, Field(ge=1, le=60)] = 3
    """Seconds; a silent link is noticed after some four of them."""
    rabbitmq_prefetch: Annotated[int, Field(ge=1, le=10_000)] = 1_500
    """Messages a lane holds unacknowledged."""
    batch_size: Annotated[int, Field(ge=1, le=10_000)] = 500
    """Commands of a lane that are committed together at most."""
    outage_hold: Annotated[float, Field(gt=0, le=600)] = 60.0
    """Seconds a lane keeps what it cannot commit; then the broker gets it back until the database stores again."""
    publish_timeout: Annotated[float, Field(gt=0)] = 5.0
    """Seconds the broker has to confirm an event."""

    relay_lease: Annotated[float, Field(ge=0.5)] = 1.0
    """Seconds after which another instance takes over publishing from one that fell silent."""
    relay_poll_interval: Annotated[float, Field(gt=0, le=1)] = 0.1
    relay_batch: Annotated[int, Field(ge=1, le=10_000)] = 1_000
    """Outbox rows read and published at once."""

    jobs_enabled: bool = True
    """Whether this instance runs jobs; among several that do, each job is run by one."""

    require_authenticated_sender: bool = False
    """Refuse commands without the ``user_id`` property, which the broker checks against the login."""

    http_host: str = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    """Port of health, metrics and documents; 0 takes a free one."""
    shutdown_timeout: Annotated[float, Field(gt=0)] = 6.0
    """Seconds to finish what was taken in before the process ends."""
    log_level: Annotated[str, Field(pattern=r"^(DEBUG|INFO|WARNING|ERROR)$")] = "INFO"
    log_format: Annotated[str, Field(pattern=r"^(auto|json|console)$")] = "auto"


def _url(scheme: str, prefix: str, parts: dict[str, str]) -> str:
    """A URL out of ``<prefix>_user``, ``_password``, ``_host`` and ``_port``."""
    user, password, host, port = (parts.get(f"{prefix}_{name}", "") for name in ("user", "password", "host", "port"))
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
    return f"{scheme}://{login}{host or 'localhost'}{f':{port}' if port else ''}"
