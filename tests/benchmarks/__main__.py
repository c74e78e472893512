"""``make bench``: what this service does in a second, beside what else could be done on the same servers.

Both sides of a ratio run one after the other on the same servers; a run that lost or doubled anything fails.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from deploy.servers import Servers, running
from tests.benchmarks import drain, talk
from tests.benchmarks.stage import REPOSITORY, Stage, logs, trades

RESULTS: Final = REPOSITORY / ".bench" / "latest.json"
_DESKS: Final = 20


@dataclass(frozen=True)
class Result:
    """One figure, and how it compares."""

    name: str
    value: float
    unit: str
    baseline: float | None
    """What the usual way reaches, in the same unit."""
    ratio: float | None
    limit: float | None
    """What no way can exceed here, in the same unit."""
    fraction_of_limit: float | None


def compared(name: str, value: float, unit: str, *, baseline: float | None, limit: float | None) -> Result:
    return Result(
        name, value, unit, baseline, value / baseline if baseline else None, limit, value / limit if limit else None
    )


async def record_trade(servers: Servers, scale: float) -> list[Result]:
    """Trades per second out of a full queue into the database, announced in the outbox."""
    return [await _drained("record_trade", servers, lambda s, n: list(trades(s.desks, n)), drain.TRADES, scale)]


async def save_bot_log(servers: Servers, scale: float) -> list[Result]:
    """Log entries per second out of a full queue into the database, announced in the outbox."""
    return [await _drained("save_bot_log", servers, lambda s, n: list(logs(s.desks, n)), drain.LOGS, scale)]


async def _drained(
    name: str, servers: Servers, make: Callable[[Stage, int], Any], outcome: drain.Outcome, scale: float
) -> Result:
    many, few = round(60_000 * scale), round(4_000 * scale)
    limit = await drain.bare_consumer(servers, make, many, desks=_DESKS)
    value = await drain.service(servers, make, many, outcome, desks=_DESKS)
    baseline = await drain.manual_pattern(servers, make, few, outcome, desks=_DESKS)
    return compared(name, value, "messages/s", baseline=baseline, limit=limit)


async def lookup(servers: Servers, scale: float) -> list[Result]:
    """Cached lookups per second, 100 at once, client and service in processes of their own."""
    number = round(20_000 * scale)
    limit = await talk.echo(servers, number)
    value = await talk.lookups(servers, number)
    baseline = await talk.faststream_request(servers, max(number // 10, 300))
    return [compared("lookup", value, "lookups/s", baseline=baseline, limit=limit)]


async def latency(servers: Servers, scale: float) -> list[Result]:
    """Milliseconds from publishing a trade to receiving its event, at 200 trades a second."""
    round_trips = await talk.echo_latency(servers, round(2_000 * scale))
    times = await talk.event_latency(servers, round(4_000 * scale), per_second=200)
    half = talk.percentile(round_trips, 50) * 1_000
    return [
        compared(f"latency p{percent}", talk.percentile(times, percent) * 1_000, "ms", baseline=half, limit=None)
        for percent in (50, 99)
    ]


BENCHMARKS: Final[dict[str, Callable[[Servers, float], Awaitable[list[Result]]]]] = {
    "record_trade": record_trade,
    "save_bot_log": save_bot_log,
    "lookup": lookup,
    "latency": latency,
}


async def measure(servers: Servers, names: list[str], scale: float, console: Console) -> list[Result]:
    results = []
    for name in names:
        console.print(f"[dim]{name}: {(BENCHMARKS[name].__doc__ or '').splitlines()[0]}[/]")
        results += await BENCHMARKS[name](servers, scale)
    return results


def show(results: list[Result], console: Console) -> None:
    table = Table("what", "value", "unit", "baseline", "ratio", "limit", "of the limit")
    for result in results:
        table.add_row(
            result.name,
            _number(result.value),
            result.unit,
            _number(result.baseline),
            "" if result.ratio is None else f"{result.ratio:.1f} x",
            _number(result.limit),
            "" if result.fraction_of_limit is None else f"{result.fraction_of_limit:.2f}",
        )
    console.print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def keep(results: list[Result], servers: Servers) -> None:
    """Write the figures for programs."""
    packages = ("faststream", "aio-pika", "aiormq", "sqlalchemy", "asyncpg", "pydantic", "redis", "uvloop")
    machine = {"cores": os.cpu_count(), "processor": platform.processor(), "system": platform.platform()}
    versions = {"python": platform.python_version(), "servers": servers.way, **{p: version(p) for p in packages}}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps([{**asdict(result), "machine": machine, "versions": versions} for result in results], indent=2)
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", choices=sorted(BENCHMARKS), help="one of them; ONLY=... with make")
    parser.add_argument("--quick", action="store_true", help="each under a minute, less exact; QUICK=1 with make")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as servers:
        names = [arguments.only] if arguments.only else list(BENCHMARKS)
        results = asyncio.run(measure(servers, names, 0.25 if arguments.quick else 1.0, console))
        keep(results, servers)
    show(results, console)
    console.print(f"[dim]also in {RESULTS.relative_to(REPOSITORY)}[/]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
