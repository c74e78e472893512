"""Logs and metrics: how they look, and every metric's name in one place."""

import asyncio
import logging
import os
import sys
import time
from collections.abc import MutableMapping
from typing import Any, TextIO, cast

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()

COMMANDS_HANDLED = Counter(
    "persistence_commands_total",
    "Commands handled, by outcome: done, duplicate, or the code of the refusal.",
    ["command", "outcome"],
    registry=REGISTRY,
)
BATCH_SIZE = Histogram(
    "persistence_batch_size",
    "Commands committed together.",
    ["lane"],
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
    registry=REGISTRY,
)
BATCH_SECONDS = Histogram(
    "persistence_batch_seconds", "From taking a batch up to its commit.", ["lane"], registry=REGISTRY
)
LANE_WAITING = Gauge(
    "persistence_lane_waiting", "Commands taken from the broker and not committed yet.", ["lane"], registry=REGISTRY
)
OUTAGES = Counter(
    "persistence_held_batches_total", "Attempts to commit that failed for an outage.", ["lane"], registry=REGISTRY
)
COMMANDS_MISSING = Counter(
    "persistence_commands_missing_total", "Numbers of producers that did not arrive.", registry=REGISTRY
)
LOOKUPS_ANSWERED = Counter(
    "persistence_lookups_total",
    "Lookups answered, by outcome: ok or the code of the refusal.",
    ["lookup", "outcome"],
    registry=REGISTRY,
)
LOOKUP_SECONDS = Histogram("persistence_lookup_seconds", "Time to answer a lookup.", ["lookup"], registry=REGISTRY)
CACHE_REQUESTS = Counter(
    "persistence_cache_requests_total",
    "What became of reads through the cache (hit, absent, miss, join, stale, bypass), and what happened besides "
    "(refreshed, rejected, shared, last_resort, forgotten), by the kind of key, such as symbol:*:*.",
    ["kind", "result"],
    registry=REGISTRY,
)
CACHE_APPLY_LAG = Histogram(
    "persistence_cache_apply_lag_seconds",
    "From a change, at the begin of its transaction, until what it made stale was gone from the cache.",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60),
    registry=REGISTRY,
)
CACHE_REMOVALS = Counter(
    "persistence_cache_removals_total",
    "Commits that made cached answers stale, by whether those were gone before the answer: done, or pending.",
    ["outcome"],
    registry=REGISTRY,
)
CACHE_AUDITED = Counter(
    "persistence_cache_audited_total", "Cached entries that were compared with the database.", registry=REGISTRY
)
CACHE_STALE = Counter(
    "persistence_cache_audit_stale_total",
    "Cached entries that were found to be stale, by the seconds for which they were at least.",
    ["window"],
    registry=REGISTRY,
)
CACHE_CERTIFICATE_AGE = Gauge(
    "persistence_cache_certificate_age_seconds",
    "Since the moment up to which all changes were applied to the cache; -1 while it may not be read.",
    registry=REGISTRY,
)
CACHE_EPOCHS = Counter(
    "persistence_cache_epochs_total",
    "How often all that was cached was left behind, and why: start, gap, unreadable, asked, timeline, run_id.",
    ["why"],
    registry=REGISTRY,
)
EVENTS_PUBLISHED = Counter("persistence_events_published_total", "Events confirmed.", ["type"], registry=REGISTRY)
OUTBOX_LAG = Gauge(
    "persistence_outbox_lag_seconds", "Age of the oldest event that is not published.", registry=REGISTRY
)
RELAY_LEADER = Gauge("persistence_relay_leader", "1 while this instance publishes.", registry=REGISTRY)
LOOP_LAG = Gauge(
    "persistence_event_loop_lag_seconds",
    "How late the event loop came back to a waiting task, at worst in the last seconds.",
    registry=REGISTRY,
)
LOG_LINES_LOST = Counter(
    "persistence_log_lines_lost_total",
    "Lines of log that could not be written: the disk is full, or nobody reads them any more.",
    registry=REGISTRY,
)
JOB_RUNS = Counter(
    "persistence_job_runs_total",
    "Runs of jobs by this instance, by outcome: done, failed (and tried again), or taken_over by another instance.",
    ["job", "outcome"],
    registry=REGISTRY,
)
JOB_LAST_SUCCESS = Gauge(
    "persistence_job_last_success_timestamp_seconds",
    "When a job was last done by its schedule, by whichever instance.",
    ["job"],
    registry=REGISTRY,
)
JOB_LAST_SECONDS = Gauge("persistence_job_last_duration_seconds", "How long that took.", ["job"], registry=REGISTRY)
JOB_LAST_ROWS = Gauge("persistence_job_last_rows", "How many rows or keys it was about.", ["job"], registry=REGISTRY)


def count_cache_request(kind: str, result: str) -> None:
    """What a `LeasedCache` counts."""
    CACHE_REQUESTS.labels(kind, result).inc()


async def watch_loop(*, looks: int = 50, pause: float = 0.1) -> None:
    """Measure until cancelled how late the event loop is: what blocks it keeps heartbeats waiting too."""
    while True:
        worst = 0.0
        for _ in range(looks):
            started = time.monotonic()
            await asyncio.sleep(pause)
            worst = max(worst, time.monotonic() - started - pause)
        LOOP_LAG.set(worst)


class _Log:
    """Where lines of log go. One that cannot be written is counted; trades are stored without it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_broken = False

    def write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except OSError:
            self._is_broken = True

    def flush(self) -> None:
        """Called at the end of each line."""
        try:
            self._stream.flush()
        except OSError:
            self._is_broken = True
        if self._is_broken:
            self._is_broken = False
            LOG_LINES_LOST.inc()


def end_logging() -> None:
    """Have lines that could not be written not turn the end of the process into a failure."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def configure_logging(level: str, style: str) -> None:
    """JSON lines on stdout, or coloured lines on a terminal; ``style`` is auto, json or console."""
    console = style == "console" or (style == "auto" and sys.stdout.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _one_line,
    ]
    log = cast("TextIO", _Log(sys.stdout))
    renderer = (
        # A traceback with the values of variables would show what messages hold.
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.PrintLoggerFactory(log),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(log)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[_without_record, *renderer])
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # What it says about a connection that cannot be made, whoever wanted the connection says better.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)


def _without_record(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event.pop("_record", None)
    event.pop("_from_structlog", None)
    return event


def _one_line(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Control characters of senders must not make lines of their own or colour a terminal."""
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = value.encode("unicode_escape").decode()
    return event
