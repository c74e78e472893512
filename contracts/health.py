"""How the service and its servers are."""

from typing import Annotated, Literal

from pydantic import Field, Strict

from contracts.base import Lookup, View
from contracts.types import Count, Instant

State = Literal["healthy", "unhealthy", "unknown"]


class ConnectionPool(View):
    """The database connections of the instance that answers."""

    pool_size: int
    """How many it keeps open."""
    checked_in: int
    """Open and idle."""
    checked_out: int
    """In use."""
    overflow: int
    """Open beyond ``pool_size``."""
    invalid: int
    """Found broken and replaced since it was started."""


class QueryPerformance(View):
    """How long a round trip took."""

    db_latency_ms: float | None = None
    cache_latency_ms: float | None = None


class DatabaseHealth(View):
    """How database and cache are, as the instance that answers sees them."""

    database: State
    cache: State
    connection_pool: ConnectionPool | None
    query_performance: QueryPerformance
    outbox_lag_seconds: float | None = None
    """How long the oldest event has waited to be published."""
    dead_letters: Count | None = None
    """Refused commands that nobody has looked after yet."""
    errors: list[str]


class CacheHealth(View):
    """How the cache is."""

    redis_status: State
    connected_clients: int | None = None
    used_memory: str | None = None
    cache_hits: int | None = None
    """Reads by the instance that answers, since its start, that found something."""
    cache_misses: int | None = None
    uptime: int | None = None
    """Seconds since Redis was started."""
    error: str | None = None


class TableMetrics(View):
    """What came new into a table."""

    new_records: int | None = None
    rate_per_minute: float | None = None
    error: str | None = None


class PerformanceMetrics(View):
    """What came new into the tables lately, by name."""

    time_window_seconds: int
    table_metrics: dict[str, TableMetrics]
    collected_at: Instant


class CheckDatabaseHealth(Lookup[DatabaseHealth], name="check_database_health"):
    """Whether database and cache answer, and how fast. Answered also if they do not."""


class GetCacheHealth(Lookup[CacheHealth], name="get_cache_health"):
    """How the cache is. Answered also if it is away."""


class MonitorConnectionHealth(Lookup[ConnectionPool], name="monitor_connection_health"):
    """The database connections of the instance that answers."""


class CollectPerformanceMetrics(Lookup[PerformanceMetrics], name="collect_performance_metrics"):
    """How many users, bots, orders and trades are of the last seconds."""

    time_window: Annotated[int, Strict(), Field(ge=1, le=86_400)] = 300
    """Seconds."""
