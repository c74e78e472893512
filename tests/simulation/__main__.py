"""``python -m tests.simulation``: seed after seed; see ``make simulation``."""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

import structlog

from tests.faults import planted
from tests.faults.planted import BUGS, Bug

# Of the bugs that chaos has to find, those in what the simulation runs, and some that only time tells.
FOUND_HERE: Final = (
    "acknowledges before the commit",
    "publishes before the commit",
    "announces in a transaction of its own",
    "forgets which messages it handled",
    "acknowledges the newest delivery",
    "reads the outbox behind a watermark",
    "does not wait for confirms",
    "deletes and then publishes",
    "gives held messages back",
    "answers whoever asked last",
    "acknowledges whatever happened",
)
ONLY_HERE: Final = {
    "sleeps although something has arrived": Bug(
        {
            "service.consumers": (
                (
                    "            if not self._arrived:\n                self._not_empty.clear()\n",
                    "            self._not_empty.clear()\n            if not self._arrived:\n",
                ),
            )
        },
        frozenset(),
    ),
    "carries on with what a broken channel delivered": Bug(
        {
            "service.consumers": (
                (
                    "return [delivery for delivery in batch if not delivery.channel.is_closed]",
                    "return list(reversed(batch))",
                ),
            )
        },
        frozenset(),
    ),
    "numbers on after a failure": Bug(
        {
            "service.relay": (
                (
                    "        self._rounds.clear()\n        self._sequences = self._mark = None\n",
                    "        self._rounds.clear()\n",
                ),
            )
        },
        frozenset(),
    ),
    "sends behind what was lost": Bug(
        {"service.relay": (("after=before.sent if before else None", "after=None"),)}, frozenset()
    ),
    "deletes before the round before": Bug(
        {"service.relay": (("            await before.settled\n", "            pass\n"),)}, frozenset()
    ),
    "reads again what it sent": Bug(
        {"service.relay": (("for row_id in each.ids)", "for row_id in each.ids[:0])"),)}, frozenset()
    ),
    "lets the next one begin with something on its way": Bug(
        {"service.consumers": (("self._last is not None and self._is_all_there_is:", "self._last is not None:"),)},
        frozenset(),
    ),
    "acknowledges at its end what it has acknowledged": Bug(
        {"service.consumers": ((" and self._last is not self._acknowledged:", ":"),)}, frozenset()
    ),
    "never takes again what it gave back": Bug(
        {
            "service.consumers": (
                ("                await self._intake.resume(self.queue)\n", "                pass\n"),
            )
        },
        frozenset(),
    ),
}


FOUND: Final = 3
"""The exit code of who found a violation; a crash has another one."""


def main() -> int:
    """Gives 0 if nothing was violated and every bug was found."""
    arguments = argparse.ArgumentParser(prog="make simulation", description=__doc__)
    arguments.add_argument("--seeds", type=int, default=2_000, help="how many worlds")
    arguments.add_argument("--first", type=int, default=0, help="the first one's seed")
    arguments.add_argument("--bug", help="with this bug in the code")
    arguments.add_argument("--bugs", type=int, default=0, help="then each bug, with so many seeds at most to find it")
    given = arguments.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    if given.bug is not None:
        planted.plant(given.bug, {**BUGS, **ONLY_HERE})
    # Only now: the bug is put in while the module is read.
    from tests.simulation.world import Violation, simulate  # noqa: PLC0415

    failed = _run(simulate, Violation, given.first, given.seeds)
    for bug in (*FOUND_HERE, *ONLY_HERE) if given.bugs else ():
        search = [sys.executable, "-m", "tests.simulation", "--bug", bug, "--seeds", str(given.bugs)]
        found = subprocess.run(search, capture_output=True, text=True, check=False)
        failed |= found.returncode != FOUND
        said = found.stdout.partition("\n")[0] or found.stderr[-200:]
        print(f"{'found' if found.returncode == FOUND else 'NOT FOUND'}: {bug}\n    {said[:160]}", flush=True)
    return FOUND if failed else 0


def _run(simulate: Callable[[int], str], violation: type[Exception], first: int, seeds: int) -> bool:
    started = time.perf_counter()
    for done, seed in enumerate(range(first, first + seeds)):
        try:
            simulate(seed)
        except violation as found:
            print(f"seed {seed}: {found}\n(again: make simulation FIRST={seed} SEEDS=1)")
            return True
        if sys.stderr.isatty() and done % 50 == 0:
            sys.stderr.write(f"\r{done} of {seeds} seeds")
    took = time.perf_counter() - started
    print(f"{seeds} seeds from {first} on, nothing violated, in {took:.1f} s ({60 * seeds / took:,.0f} a minute)")
    return False


if __name__ == "__main__":
    sys.exit(main())
