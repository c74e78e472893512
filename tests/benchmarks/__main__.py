"""``make bench``: what this service does in a second, beside what else could be done on the same servers.

Both sides of a ratio run one after the other on the same servers; a run that lost or doubled anything fails.
"""

import argparse
import gc
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any, Final

import uvloop
from rich.console import Console
from rich.table import Table

from deploy.servers import Servers, running
from tests.benchmarks import announce, backlog, drain, growth, plot, talk
from tests.benchmarks.result import Goal, Result, compared
from tests.benchmarks.stage import REPOSITORY, Stage, logs, mixed, trades

RESULTS: Final = REPOSITORY / ".bench" / "latest.json"
PICTURE: Final = RESULTS.with_suffix(".svg")
_DESKS: Final = 20


async def record_trade(servers: Servers, scale: float) -> list[Result]:
    """Trades per second out of a full queue into the database, announced in the outbox."""

    def make(stage: Stage, number: int) -> list[Any]:
        return list(trades(stage.desks, number))

    drained, *cpu = await _drained("record_trade", servers, make, scale, Goal(ratio=22, fraction=0.75))
    few = round(2_000 * scale)
    celery = await drain.celery_pattern(servers, make, few, desks=_DESKS)
    return [drained, compared("record_trade, Celery", drained.value, drained.unit, baseline=celery), *cpu]


async def save_bot_log(servers: Servers, scale: float) -> list[Result]:
    """Log entries per second out of a full queue into the database, announced in the outbox."""

    def make(stage: Stage, number: int) -> list[Any]:
        return list(logs(stage.desks, number))

    return await _drained("save_bot_log", servers, make, scale, Goal(ratio=25, fraction=0.8))


async def _drained(name: str, servers: Servers, make: drain.Messages, scale: float, goal: Goal) -> list[Result]:
    """Ours and the limit twice, in turn: the machine may have neighbours. Then what CPU each process took."""
    many, few = round(30_000 * scale), round(3_000 * scale)
    ours, limits = [], []
    for _ in range(2):
        limits.append(await drain.bare_consumer(servers, make, many, desks=_DESKS))
        ours.append(await drain.service(servers, make, many, desks=_DESKS))
    baseline = await drain.manual_pattern(servers, make, few, desks=_DESKS)
    value, limit = (mean(each.per_second for each in some) for some in (ours, limits))
    least = mean(each.cpu["service"] for each in limits)
    return [
        compared(name, value, "messages/s", baseline=baseline, limit=limit, at_least=goal),
        *(
            compared(
                f"{name}, CPU of {who}",
                mean(each.cpu[who] for each in ours),
                "µs/message",
                baseline=least if who == "service" else None,
            )
            for who in ours[0].cpu
        ),
    ]


async def mixed_load(servers: Servers, scale: float) -> list[Result]:
    """70 % log entries, 20 % trades, 10 % steps of orders, of 200 bots; the order per bot is checked."""
    many, few = round(40_000 * scale), round(4_000 * scale)

    def make(stage: Stage, number: int) -> list[Any]:
        return list(mixed(stage, number))

    drained = await drain.service(servers, make, many, desks=200, orders=_orders(many))
    baseline = await drain.manual_pattern(servers, make, few, desks=200, orders=_orders(few))
    return [compared("mixed", drained.per_second, "messages/s", baseline=baseline, at_least=Goal(ratio=15))]


def _orders(messages: int) -> int:
    """As many orders as that many messages take through their three steps, for 200 bots evenly."""
    return -(-messages // 6_000) * 200


async def end_to_end(servers: Servers, scale: float) -> list[Result]:
    """Trades per second from a publisher that waits for confirms to a subscriber that was told of them."""
    value = await announce.end_to_end(servers, round(20_000 * scale), desks=_DESKS)
    baseline = await announce.manual_end_to_end(servers, round(2_000 * scale), desks=_DESKS)
    return [compared("end_to_end", value, "trades/s", baseline=baseline, at_least=Goal(ratio=8))]


async def relay(servers: Servers, scale: float) -> list[Result]:
    """Changes per second from the outbox to the broker, persistent and confirmed."""
    together = await announce.relay(servers, round(400_000 * scale), per_event=100)
    single = await announce.relay(servers, round(60_000 * scale), per_event=1)
    baseline = await announce.faststream_outbox(servers, round(6_000 * scale))
    return [
        compared(name, value, "changes/s", baseline=baseline, at_least=Goal(ratio=10))
        for name, value in (("relay, 100 changes to an event", together), ("relay, one change to an event", single))
    ]


async def lookup(servers: Servers, scale: float) -> list[Result]:
    """Cached lookups per second, 100 at once, client and service in processes of their own."""
    number = round(10_000 * scale)
    limits, values = [], []
    for _ in range(2):
        limits.append(await talk.echo(servers, number))
        values.append(await talk.lookups(servers, 3 * number))
    baseline = await talk.faststream_request(servers, max(number // 10, 300))
    redis = await talk.redis_get(servers, number)
    goal = Goal(ratio=6, fraction=0.7)
    return [
        compared("lookup", mean(values), "lookups/s", baseline=baseline, limit=mean(limits), at_least=goal),
        compared("lookup, Redis alone", mean(values), "lookups/s", limit=redis),
    ]


async def latency(servers: Servers, scale: float) -> list[Result]:
    """Milliseconds from publishing a trade to receiving its event, at 200 trades a second."""
    round_trips = await talk.echo_latency(servers, round(2_000 * scale))
    ways = await talk.event_latency(servers, round(4_000 * scale), per_second=200)
    half = talk.percentile(round_trips, 50) * 1_000
    totals = [way.total for way in ways]
    to_database = talk.percentile([way.until_stored for way in ways], 50) * 1_000
    return [
        *(
            compared(
                f"latency p{percent}",
                talk.percentile(totals, percent) * 1_000,
                "ms",
                baseline=half,
                at_most=Goal(ratio=most),
            )
            for percent, most in ((50, 6), (99, 20))
        ),
        compared("latency p50, until it is being stored", to_database, "ms", baseline=half),
    ]


async def long_queue(servers: Servers, scale: float) -> list[Result]:
    """A million trades in the queue (a hundred thousand with QUICK): speed at the end, memory at the worst."""
    number = 1_000_000 if scale >= 1 else 100_000
    drained = await backlog.drained(servers, number)
    return [
        compared(f"backlog of {number:,}", drained.per_second, "trades/s"),
        compared("backlog, last tenth to first", drained.last_to_first, "x", at_least=Goal(value=0.9)),
        compared("backlog, memory above idle", drained.grown, "MB", at_most=Goal(value=100)),
    ]


async def growing(servers: Servers, scale: float) -> list[Result]:
    """Milliseconds of what is asked all day with many trades on record, beside the same with ten thousand."""
    sizes = [10_000, 100_000, 1_000_000, 10_000_000] if scale >= 1 else [10_000, 100_000]
    times = await growth.measured(servers, sizes)
    return [
        compared(
            f"{name} at {size:,}", times[size][name], "ms", baseline=times[sizes[0]][name], at_most=Goal(ratio=1.5)
        )
        for name in times[sizes[0]]
        for size in sizes[1:]
    ]


BENCHMARKS: Final[dict[str, Callable[[Servers, float], Awaitable[list[Result]]]]] = {
    "record_trade": record_trade,
    "save_bot_log": save_bot_log,
    "mixed": mixed_load,
    "end_to_end": end_to_end,
    "relay": relay,
    "lookup": lookup,
    "latency": latency,
    "backlog": long_queue,
    "growth": growing,
}


async def measure(
    servers: Servers, names: list[str], scale: float, console: Console
) -> tuple[list[Result], list[str]]:
    """The figures, and the names of those that failed because something was lost, doubled, refused or too slow."""
    results: list[Result] = []
    failed = []
    for name in names:
        console.print(f"[dim]{name}: {(BENCHMARKS[name].__doc__ or '').splitlines()[0]}[/]")
        began = time.perf_counter()
        # Or this process stops for a tenth of a second now and then, which is no side's matter.
        gc.collect()
        gc.freeze()
        try:
            results += await BENCHMARKS[name](servers, scale)
        except Exception:  # noqa: BLE001 - the others are worth knowing all the same
            console.print_exception()
            failed.append(name)
        console.print(f"[dim]  {time.perf_counter() - began:.0f} s[/]")
    return results, failed


def show(results: list[Result], console: Console) -> None:
    table = Table("what", "value", "unit", "baseline", "ratio", "limit", "of the limit", "goal", "met")
    for result in results:
        table.add_row(
            result.name,
            _number(result.value),
            result.unit,
            _number(result.baseline),
            "" if result.ratio is None else f"{result.ratio:.1f} x",
            _number(result.limit),
            "" if result.fraction_of_limit is None else f"{result.fraction_of_limit:.2f}",
            result.goal or "",
            "" if result.is_met is None else "yes" if result.is_met else "[bold red]no[/]",
        )
    console.print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def keep(results: list[Result], servers: Servers) -> None:
    """Write the figures for programs."""
    packages = ("faststream", "aio-pika", "aiormq", "sqlalchemy", "asyncpg", "pydantic", "redis", "uvloop")
    load = round(os.getloadavg()[2], 1)
    machine = {
        "cores": os.cpu_count(),
        "load": load,
        "processor": platform.processor(),
        "system": platform.platform(),
    }
    versions = {"python": platform.python_version(), "servers": servers.way, **{p: version(p) for p in packages}}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps([{**asdict(result), "machine": machine, "versions": versions} for result in results], indent=2)
    )
    PICTURE.write_text(plot.drawn(results))


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", choices=sorted(BENCHMARKS), help="one of them; ONLY=... with make")
    parser.add_argument("--quick", action="store_true", help="each under a minute, less exact; QUICK=1 with make")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as servers:
        names = [arguments.only] if arguments.only else list(BENCHMARKS)
        results, failed = uvloop.run(measure(servers, names, 0.25 if arguments.quick else 1.0, console))
        keep(results, servers)
    show(results, console)
    console.print(f"[dim]also in {RESULTS.relative_to(REPOSITORY)} and {PICTURE.name} beside it[/]")
    if failed:
        console.print(f"[bold red]failed: {', '.join(failed)}[/]")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
