"""``make chaos MINUTES=5 SEED=1``: faults in an order that the seed gives, on private servers, then the verdict.

Each fault comes three times at least, with messages under way, however long that takes.
"""

import argparse
import asyncio
import logging
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console

from tests.faults.checker import Checker, meetings
from tests.faults.ledger import read
from tests.faults.machines import move_to_small_disks, private_servers
from tests.faults.nemesis import FAULTS
from tests.faults.run import Run
from tests.faults.world import World

_MEETINGS: Final = 3

say = partial(Console(highlight=False, soft_wrap=True).print, markup=False)


async def chaos(minutes: float, seed: int, folder: Path, only: str | None = None) -> bool:
    """Whether everything held."""
    async with private_servers() as machines:
        names = [name for name in FAULTS if only is None or only in name]
        say(f"seed {seed}, {minutes:g} minutes, {machines.servers.way}")
        if not machines.have_small_disks:
            say("disks cannot be filled: only root can mount small ones")
            names = [name for name in names if "full disk" not in name]
        async with World.open(machines, folder, seed=seed) as world:
            started = time.monotonic()

            def tell(line: str) -> None:
                say(f"{time.monotonic() - started:7.1f} s  {line}")

            run = Run(world, seed=seed, tell=tell)
            await run.begin()
            await asyncio.sleep(1)
            wanted = list(names)
            while wanted or time.monotonic() - started < minutes * 60:
                # Each once, in an order of the seed; then again, or those that came too seldom when time is over.
                run.chance.shuffle(names)
                is_over = time.monotonic() - started >= minutes * 60
                for name in wanted if is_over else names:
                    await run.suffer(name)
                    await asyncio.sleep(run.chance.uniform(0, 0.5))
                if not run.subscribers.has_late:
                    await run.subscribers.join_late()
                    # RabbitMQ 3.10.8 breaks a quorum queue that was declared within about a second before a kill -9.
                    await asyncio.sleep(2)
                met = meetings(read(folder / "ledger"), run.faults)
                wanted = [name for name in names if met[name] < _MEETINGS]
            evidence = await run.end()
    checker = Checker(evidence, meetings=_MEETINGS)
    counts = Counter(fault.name for fault in evidence.faults)
    times = sorted(fault.recovered for fault in evidence.faults if fault.recovered is not None)
    say(f"\n{len(evidence.trades)} trades, {len(evidence.logs)} log entries, {len(evidence.letters)} dead letters")
    say(
        f"{sum(counts.values())} faults of {len(counts)} kinds; each at least {min(counts.values(), default=0)} times"
    )
    if times:
        say(f"work went on after {times[len(times) // 2]:.2f} s (median), {times[-1]:.2f} s (at most)")
    say(checker.report())
    say("everything held" if not checker.violations else f"{len(checker.violations)} violations; see {folder}")
    return not checker.violations


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="faults whose name holds this word")
    options = parser.parse_args()
    move_to_small_disks("tests.faults.chaos")
    # The libraries tell of each fault what is told here anyway.
    logging.basicConfig(handlers=[logging.NullHandler()])
    # Kept for who wants to look.
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    return 0 if asyncio.run(chaos(options.minutes, options.seed, folder, options.only)) else 1


if __name__ == "__main__":
    sys.exit(main())
