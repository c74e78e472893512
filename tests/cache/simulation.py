"""The cache itself, its source unchanged, in schedules that a seed decides.

Two processes with a cache each read a value in every way there is, while a writer changes it and its events arrive
late, twice and in any order, and keys are evicted. What was read is compared with what had happened:

- G1: a read that begins after an event was applied shows what the event told of.
- G2: no read gives an older value than one that ended before it began gave.
- G3, where the writer removes the key before it answers: a read that begins after the answer shows the write.

Run as ``python -m tests.cache.simulation --schedules 20000``, or ``--seed N`` for one of them.
"""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from contracts.certificate import name_of
from contracts.key_spec import KeySpec
from contracts.leased_cache import LeasedCache
from tests.cache.simulated import Scheduler, SimulatedRedis, run
from tests.faults.planted import Bug, changed
from tests.faults.points import REPOSITORY
from tests.simulation.loop import StuckError

_SPECS: Final = (
    KeySpec("simulated:plain:{id}"),
    KeySpec("simulated:refreshed:{id}", soft_ttl=0.0),
    KeySpec("simulated:large:{id}", is_large=True),
    KeySpec("simulated:large_and_refreshed:{id}", is_large=True, soft_ttl=0.0),
)
_MODULES: Final = ("contracts.cache_entry", "contracts.loads", "contracts.cache_store", "contracts.leased_cache")


@dataclass(frozen=True)
class Violation:
    """A read that gave what it must not give."""

    seed: int
    guarantee: str
    version: int
    at_least: int


def _bug(module: str, *changes: tuple[str, str]) -> Bug:
    return Bug({f"contracts.{module}": changes}, frozenset())


_STORE: Final = "await self._store.swap(name, lease, entry.held, self._ttl_ms(key, entry))"
_ANY_LEASE: Final = "name, await self._store.head(name)"
_REFRESH: Final = "await self._store.swap(name, entry.head, newer.held, self._ttl_ms(key, newer))"
_TAKE_OUT: Final = """\
            # Who comes from now on must not be given this: it may be stale when the answer arrives.
            self._take_out(name, flight)
"""
_LOAD: Final = "            entry = await self._load_under(key, name, lease, load, after)\n"
_ACQUIRE: Final = (
    "            if not await self._acquire(key, name, flight, stale, until):\n                return None\n"
    "            lease = flight.lease\n"
)
_SHARED: Final = "        loaded = await self._loads.shared(key, lambda: self._loaded(load))\n"
_REMOVE: Final = "        await self._remove_older([key], ask=ask)\n"
_OVER: Final = "            del self._running[key]\n"

# Two more rules are seen in the model alone, since too much has to coincide: that the last resort must not remove
# before it loads, and that what was loaded in a batch and not stored is not given out.
MUTANTS: Final[Mapping[str, Bug]] = {
    "stores without comparing": _bug(
        "leased_cache",
        (_STORE, "await self._store._answer(self._store._redis.set(name, entry.held, px=60_000))"),
    ),
    "takes the same nonce each time": _bug("cache_entry", ("os.urandom(HEAD_BYTES - 1)", "bytes(HEAD_BYTES - 1)")),
    "loads before it has the lease": _bug(
        "leased_cache", (_ACQUIRE + _LOAD, "            lease = flight.lease\n" + _LOAD + _ACQUIRE)
    ),
    "stores in the place of any lease": _bug(
        "leased_cache",
        (
            _STORE,
            f"(await self._store.head(name))[:1] == bytes(1) and {_STORE.replace('name, lease', _ANY_LEASE)}",
        ),
    ),
    "lets others join until the answer arrives": _bug("leased_cache", (_TAKE_OUT, "")),
    "gives out what was not stored": _bug(
        "leased_cache", ("            result = entry if is_stored else None\n", "            result = entry\n")
    ),
    "refreshes without comparing": _bug(
        "leased_cache",
        (_REFRESH, "await self._store._answer(self._store._redis.set(name, newer.held, px=60_000))"),
    ),
    "removes nothing in the last resort": _bug("leased_cache", (_SHARED + _REMOVE, _SHARED)),
    "shares the load that is under way": _bug(
        "loads",
        ("following = self._next.pop(key)", "following = self._next[key]"),
        (_OVER, _OVER + "            del self._next[key]\n"),
    ),
    "keeps what it has decoded without asking": _bug(
        "leased_cache", ("await self._store.head(name) == kept[0].head", "kept[0].head")
    ),
    "stores a batch without comparing": _bug(
        "cache_store",
        ("pipe.eval(_SWAP, 1, name, *swaps[name])", "pipe.set(name, swaps[name][1], px=swaps[name][2])"),
    ),
    "takes any value for one that shows the commit": _bug(
        "cache_entry", ("return is_visible(", "return True or is_visible(")
    ),
    "forgets what it gave out while Redis was away": _bug(
        "leased_cache", ("            if key in self._owed:\n", "            if False:\n")
    ),
}


def variant(bug: Bug | None) -> Any:
    """The cache, as it is or with a bug in it."""
    if bug is None:
        return LeasedCache
    before = {name: sys.modules[name] for name in _MODULES}
    try:
        for name in _MODULES:
            source = REPOSITORY.joinpath(*name.split(".")).with_suffix(".py").read_text()
            module = ModuleType(name)
            text = changed(name, source, bug) if name in bug.changes else source
            sys.modules[name] = module
            exec(compile(text, name, "exec"), vars(module))  # noqa: S102 - the project's own source
        return sys.modules["contracts.leased_cache"].LeasedCache
    finally:
        sys.modules.update(before)


class Schedule:
    """One run of everything, decided by a seed."""

    def __init__(self, cache: Any, seed: int) -> None:
        self._scheduler = Scheduler(seed)
        random = self._scheduler.random
        self._seed = seed
        self._key = random.choice(_SPECS)(1)
        self._redis = SimulatedRedis(self._scheduler)
        # In one schedule of four Redis may be too slow to answer. Then each process alone never reads backwards.
        self._scheduler.may_time_out = random.random() < 0.25
        self._is_shared = random.random() < 0.3
        self._version = 1
        self._applied = 1
        self._answered = 1
        self._returned: Counter[object] = Counter()
        # Of this variant's own modules.
        self._loaded = cache.get.__globals__["Loaded"]
        self._caches = [cache(self._redis, namespace="s", timeout=0.1) for _ in range(2)]
        self._name = name_of("s", self._key)
        self.violations: list[Violation] = []

    def run(self) -> list[Violation]:
        """What was wrong."""
        run(self._scheduler, self._main)
        return self.violations

    async def _main(self) -> None:
        random = self._scheduler.random
        actors = [self._write(random.randint(2, 3))]
        actors += [self._read(cache, random.randint(2, 3)) for cache in self._caches for _ in range(2)]
        if random.random() < 0.3:
            actors.append(self._evict(random.randint(1, 2)))
        await asyncio.gather(*actors)

    async def _write(self, commits: int) -> None:
        random = self._scheduler.random
        events = []
        for _ in range(commits):
            await self._scheduler.point()
            self._version += 1
            committed = self._version
            copies = 2 if random.random() < 0.2 else 1
            events += [asyncio.create_task(self._apply(committed)) for _ in range(copies)]
            if self._is_shared:
                await self._redis.unlink(self._name)
                self._answered = committed
        await asyncio.gather(*events)

    async def _apply(self, version: int) -> None:
        for _ in range(self._scheduler.random.randrange(6)):
            await self._scheduler.point()
        await self._redis.unlink(self._name)
        self._applied = max(self._applied, version)

    async def _evict(self, times: int) -> None:
        for _ in range(times):
            await self._scheduler.point()
            self._redis.forget()

    async def _load(self) -> Any:
        await self._scheduler.point()
        version = self._version
        await self._scheduler.point()
        # In one schedule of three nothing is known of a value but what was asked for.
        return self._loaded(str(version).encode(), f"{version + 1}:{version + 1}:" if self._seed % 3 else "")

    async def _load_many(self, keys: Any) -> dict[str, Any]:
        return {key: await self._load() for key in keys}

    async def _read(self, cache: Any, times: int) -> None:
        random = self._scheduler.random
        for _ in range(times):
            await self._scheduler.point()
            way = random.choice(("get", "get", "get", "many", "after"))
            seen_by = cache if self._scheduler.may_time_out else "all"
            at_least = {"G1": self._applied, "G2": self._returned[seen_by], "G3": self._answered}
            if way == "many":
                value = (await cache.get_many([self._key], self._load_many))[self._key]
            elif way == "after":
                at_least["after"] = self._version
                value = await cache.get(self._key, self._load, after=str(self._version))
            else:
                value = await cache.get(self._key, self._load)
            version = int(value)
            for guarantee, lowest in at_least.items():
                if version < lowest:
                    self.violations.append(Violation(self._seed, guarantee, version, lowest))
            for who in (cache, "all"):
                self._returned[who] = max(self._returned[who], version)


def search(cache: Any, seeds: range) -> Iterator[Violation]:
    """The violations in the schedules of these seeds."""
    for seed in seeds:
        schedule = Schedule(cache, seed)
        try:
            yield from schedule.run()
        except StuckError:
            yield Violation(seed, "goes on", 0, 0)


def killed_by(name: str, seeds: range) -> Violation | None:
    """The first violation that shows a mutant."""
    return next(search(variant(MUTANTS[name]), seeds), None)


def main() -> int:
    """Print what was found; 1 if something was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=20_000)
    parser.add_argument("--seed", type=int, help="only this schedule")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="of the cache with this bug")
    chosen = parser.parse_args()
    seeds = range(chosen.schedules) if chosen.seed is None else range(chosen.seed, chosen.seed + 1)
    found = list(search(variant(MUTANTS[chosen.mutant] if chosen.mutant else None), seeds))
    for violation in found[:10]:
        sys.stdout.write(f"{violation}\n")
    sys.stdout.write(f"{len(seeds)} schedules, {len(found)} violations\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
