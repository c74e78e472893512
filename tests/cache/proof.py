"""Shows that the cache is never stale, and what it costs: ``make cache-proof``.

The protocol as a model, the cache itself in schedules that a seed decides and under stress on a real Redis, and
figures. Prints a table; the exit code is 1 if anything is not as it has to be.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from contracts.leased_cache import LeasedCache
from deploy.servers import Servers, running
from tests.cache import figures, lag, model, simulation
from tests.cache.stress import Aside, Decorated, Leased, stress

PARTS: Final = ("model", "simulation", "stress", "figures", "lag")
_HIT_AT_LEAST: Final = 0.9
_LIST_AT_LEAST: Final = 10
_GONE_AT_MOST_MS: Final = 150
_LAG_AT_MOST_MS: Final = 100
_LAG_SECONDS: Final = 15.0


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    found: str
    is_right: bool | None
    """None for what is shown beside it."""
    seconds: float


@dataclass(frozen=True)
class Plan:
    """How much of each is tried."""

    schedules: int
    seconds: float
    parts: Sequence[str] = PARTS


def rows(plan: Plan, servers: Servers) -> Iterator[Row]:
    """Everything there is to show, one after the other."""
    url = servers.redis_url
    parts = {
        "model": _model(),
        "simulation": _simulation(plan.schedules),
        "stress": _stress(url, plan.seconds),
        "figures": _figures(url),
        "lag": _lag(servers),
    }
    for name in plan.parts:
        began = time.monotonic()
        for what, found, is_right in parts[name]:
            yield Row(what, found, is_right, round(time.monotonic() - began, 1))
            began = time.monotonic()


Said = Iterator[tuple[str, str, bool | None]]


def _model() -> Said:
    states = 0
    violated = []
    for name, rules in model.WHOLE.items():
        found = model.search(rules)
        if isinstance(found, model.Violation):
            violated.append(name)
        else:
            states += found
    yield "model: all rules", f"{states:,} states, violations: {', '.join(violated) or 'none'}", not violated
    caught = [name for name, rules in model.MUTANTS.items() if isinstance(model.search(rules), model.Violation)]
    number = len(model.MUTANTS)
    yield "model: a rule left out", f"{len(caught)} of {number} violated", len(caught) == number


def _simulation(schedules: int) -> Said:
    violations = list(simulation.search(LeasedCache, range(schedules)))
    seeds = sorted({violation.seed for violation in violations})
    yield "simulation", f"{schedules:,} schedules, {len(violations)} violations {seeds[:5]}", not violations
    survivors = [name for name in simulation.MUTANTS if simulation.killed_by(name, range(schedules)) is None]
    number = len(simulation.MUTANTS)
    said = f"{number - len(survivors)} of {number} found" + (f", not: {', '.join(survivors)}" if survivors else "")
    yield "simulation: a planted bug", said, not survivors


def _stress(url: str, seconds: float) -> Said:
    for way, shared in ((Leased, False), (Leased, True), (Aside, False), (Decorated, False)):
        outcome = asyncio.run(stress(url, way, seconds=seconds, shared=shared))
        wrong = outcome.violations
        said = f"{outcome.reads:,} reads, {outcome.writes:,} writes, {outcome.loads:,} loads: "
        said += f"{wrong['G1']} stale after apply, {wrong['G2']} backwards"
        if way is Leased:
            said += f", {wrong['after']} without the write they asked for"
            said += f", {wrong['linearizable']} not linearizable" if shared else ""
        name = f"stress: {way.name}" + (", writer removes" if shared else "")
        yield name, said, not wrong.total() if way is Leased else None


def _figures(url: str) -> Said:
    ratio = asyncio.run(figures.a_hit(url))
    yield "a hit, of a bare GET", f"{ratio:.2f}", ratio >= _HIT_AT_LEAST
    ratio = asyncio.run(figures.a_large_list(url))
    yield "a kept list of 2,000, of GET and decode", f"{ratio:.0f} times as fast", ratio >= _LIST_AT_LEAST
    for kind in ("refused", "silent", "slow"):
        more = asyncio.run(figures.without_redis(kind))
        yield f"Redis {kind}: p99 of a read, more than its load", f"{more:.0f} ms", more <= _GONE_AT_MOST_MS


def _lag(servers: Servers) -> Said:
    found = asyncio.run(lag.measure(servers, _LAG_SECONDS))
    said = f"p50 {found.applied.p50:.0f} ms, p99 {found.applied.p99:.0f} ms, {found.changes:,} events"
    yield f"apply lag at {lag.CHANGES_PER_SECOND} changes/s", said, found.applied.p99 < _LAG_AT_MOST_MS
    times = found.applied.p50 / found.bare.p50
    said = f"p50 {found.bare.p50:.1f} ms, p99 {found.bare.p99:.0f} ms: the lag is {times:.1f} times that"
    yield "a bare publish and consume", said, None


def _report(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def main() -> int:
    """Print the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="of stress, of each way to cache")
    parser.add_argument("--only", choices=PARTS, help="one part instead of all")
    parser.add_argument("--json", type=Path, help="write the table to this file as well")
    chosen = parser.parse_args()
    plan = Plan(chosen.schedules, chosen.seconds, [chosen.only] if chosen.only else PARTS)
    shown: list[Row] = []
    with (
        TemporaryDirectory(prefix="persistence-cache-proof-") as folder,
        running(Path(folder), docker=False, report=_report) as servers,
    ):
        for row in rows(plan, servers):
            mark = {True: "ok", False: "NOT", None: ""}[row.is_right]
            sys.stdout.write(f"{mark:4}{row.what:50}{row.found}  ({row.seconds} s)\n")
            sys.stdout.flush()
            shown.append(row)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps([asdict(row) for row in shown], indent=2) + "\n")
    return 1 if any(row.is_right is False for row in shown) else 0


if __name__ == "__main__":
    sys.exit(main())
