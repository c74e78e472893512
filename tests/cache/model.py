"""The protocol of the cache as a small machine, of which every state is looked at.

One key; readers that take one step at a time in every order there is; a writer whose commits become events that
arrive late; keys that disappear (evicted, expired, an event that comes twice, a restart); a replica that lags and
takes over. A rule that is left out has to lead to a read that must not be:

- G1: it begins after an event was applied and shows less than the event told of.
- G2: it shows less than a read that ended before it began.
- G3: it begins after the writer answered and shows less than was written, where the writer removes the key itself.

Run as ``python -m tests.cache.model``.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

Nonce = tuple[int, ...]
Held = tuple[str, Nonce, int] | None
"""What the key holds: ("lease", nonce, 0), ("value", nonce, version) or nothing."""


class Floor(NamedTuple):
    """The least that a read may show, by what happened before it began, and which guarantee says so."""

    version: int = 0
    guarantee: str = "G1"


class Reader(NamedTuple):
    """Where a reader stands, and what it remembers."""

    at: str
    reads: int
    """Reads that it has yet to begin."""
    tries: int = 0
    nonce: Nonce = ()
    seen: Held = None
    version: int = 0
    floor: Floor = Floor()
    is_stored: bool = False


class State(NamedTuple):
    """Everything at one moment."""

    readers: tuple[Reader, ...]
    version: int = 0
    """Of the row, as committed."""
    held: Held = None
    replica: Held = None
    events: tuple[int, ...] = ()
    """Versions that were announced, and not applied yet."""
    applied: int = 0
    returned: int = 0
    answered: int = 0
    commits: int = 2
    """That are still to come, like the next two."""
    vanishings: int = 1
    failovers: int = 0
    writing: str = ""
    """Where the writer stands in the middle of a write."""


@dataclass(frozen=True)
class Rules:
    """What the protocol demands, and what of it is left out."""

    kinds: tuple[str, ...] = ("cached", "cached")
    reads: int = 2
    commits: int = 2
    vanishings: int = 1
    failovers: int = 0
    tries: int = 1
    """Loads that may be rejected before the last resort."""
    compares: bool = True
    """A value is stored only in the place of the lease it was loaded under."""
    unique_nonces: bool = True
    lease_before_load: bool = True
    primary_only: bool = True
    visible_before_event: bool = True
    removes_leases: bool = True
    """An invalidation removes leases as well as values."""
    returns_only_stored: bool = True
    shares: bool = True
    """Who finds another's lease waits or loads under that one, instead of without any."""
    same_lease: bool = True
    """A value takes the place of the lease that was there before its load, and of no other one."""
    single_flight: bool = False
    joins_until: str = "sent"
    """Others may join a load until its value is sent, and not until the answer arrives."""
    joins_what_was_stored: bool = True
    refresh_compares: bool = True
    last_resort_removes: bool = True
    last_resort_loads_first: bool = True
    around_removes: bool = True
    new_epoch_after_failover: bool = True
    shared: bool = False
    removes_after_commit: bool = True
    answers_after_removal: bool = True


class Violation(NamedTuple):
    """A read that must not be, and how many states it took to find it."""

    guarantee: str
    states: int


def search(rules: Rules) -> Violation | int:
    """The shortest way to a violation, or the number of states if there is none."""
    first = State(
        tuple(Reader("idle", rules.reads) for _ in rules.kinds),
        commits=rules.commits,
        vanishings=rules.vanishings,
        failovers=rules.failovers,
    )
    known = {first}
    queue = deque([first])
    while queue:
        for following in _steps(queue.popleft(), rules):
            if isinstance(following, str):
                return Violation(following, len(known))
            if following not in known:
                known.add(following)
                queue.append(following)
    return len(known)


def _steps(s: State, rules: Rules) -> Iterator[State | str]:
    """Every state that may be next; the name of a guarantee for a read that must not be."""
    yield from _writer(s, rules)
    for event in sorted(set(s.events)):
        left = list(s.events)
        left.remove(event)
        gone = s.held is not None and (rules.removes_leases or s.held[0] == "value")
        held = None if gone else s.held
        yield s._replace(events=tuple(left), held=held, applied=max(s.applied, event))
    if s.vanishings and s.held is not None:
        yield s._replace(held=None, vanishings=s.vanishings - 1)
    if s.failovers:
        if s.replica != s.held:
            yield s._replace(replica=s.held)
        held = None if rules.new_epoch_after_failover else s.replica
        yield s._replace(held=held, replica=None, failovers=s.failovers - 1)
    for number, reader in enumerate(s.readers):
        yield from _STEPS[rules.kinds[number]](Turn(s, number, reader, rules))


def _writer(s: State, rules: Rules) -> Iterator[State]:
    """Commits, announces, and where the cache is shared removes the key before it answers."""
    if s.writing == "announced":
        yield s._replace(version=s.version + 1, writing="")
    elif s.writing == "committed":
        if rules.answers_after_removal:
            yield s._replace(held=None if rules.removes_after_commit else s.held, writing="", answered=s.version)
        else:
            yield s._replace(answered=s.version, writing="answered")
    elif s.writing == "answered":
        yield s._replace(held=None, writing="")
    elif s.commits:
        after = s._replace(commits=s.commits - 1, events=tuple(sorted((*s.events, s.version + 1))))
        if not rules.visible_before_event:
            yield after._replace(writing="announced")
        elif rules.shared and not rules.removes_after_commit and s.held is not None:
            yield s._replace(held=None)
            yield after._replace(version=s.version + 1, writing="committed")
        else:
            yield after._replace(version=s.version + 1, writing="committed" if rules.shared else "")


class Turn(NamedTuple):
    """A reader who is about to take a step."""

    s: State
    number: int
    r: Reader
    rules: Rules

    def becomes(self, reader: Reader, **fields: Any) -> State:
        """The state after the step."""
        s, number = self.s, self.number
        return s._replace(readers=(*s.readers[:number], reader, *s.readers[number + 1 :]), **fields)

    def goes(self, at: str, **remembers: Any) -> State:
        """The state after a step that concerns the reader alone."""
        return self.becomes(self.r._replace(at=at, **remembers))

    def begins(self, at: str) -> Iterator[State]:
        """Another read, if there are any left."""
        if self.r.reads:
            s = self.s
            floor = max(Floor(s.applied, "G1"), Floor(s.returned, "G2"), Floor(s.answered, "G3"))
            yield self.becomes(Reader(at, self.r.reads - 1, floor=floor))

    def returns(self) -> Iterator[State | str]:
        """The end of a read."""
        r = self.r
        if r.version < r.floor.version:
            yield r.floor.guarantee
        else:
            yield self.becomes(Reader("idle", r.reads), returned=max(self.s.returned, r.version))

    def loads(self, at: str) -> Iterator[State]:
        """What the source says."""
        versions = {self.s.version} if self.rules.primary_only else {self.s.version, max(self.s.version - 1, 0)}
        yield from (self.goes(at, version=version) for version in versions)

    def ends(self, at: str, *, is_given: bool, **remembers: Any) -> State:
        """The end of a flight: those who joined are given its value, or start over."""
        s = self.goes(at, **remembers)
        version = s.readers[self.number].version
        for other, reader in enumerate(s.readers):
            if reader.at == "joined" and reader.nonce == (self.number,):
                after = reader._replace(at="got" if is_given else "get", version=version if is_given else 0, nonce=())
                s = self._replace(s=s, number=other).becomes(after)
        return s


def _cached(turn: Turn) -> Iterator[State | str]:
    """A step of a read through the cache."""
    return _CACHED[turn.r.at](turn)


def _get(turn: Turn) -> Iterator[State]:
    held = turn.s.held
    if held is not None and held[0] == "value":
        yield turn.goes("got", version=held[2])
    elif (leader := _flight(turn)) is not None:
        yield turn.goes("joined", nonce=(leader,))
    elif turn.rules.lease_before_load:
        yield turn.goes("acquire")
    else:
        yield from turn.loads("acquire")


def _flight(turn: Turn) -> int | None:
    """The reader whose load may be joined."""
    if not turn.rules.single_flight:
        return None
    open_at = {
        "acquire",
        "found",
        "load",
        "send",
        *(() if turn.rules.joins_until == "sent" else ("sent", "answered")),
    }
    open_now = (number for number, reader in enumerate(turn.s.readers) if reader.at in open_at)
    return next((number for number in open_now if number != turn.number), None)


def _acquire(turn: Turn) -> Iterator[State]:
    s, r, rules = turn.s, turn.r, turn.rules
    nonce = (turn.number, r.reads, r.tries) if rules.unique_nonces else ()
    after = "load" if rules.lease_before_load else "send"
    if s.held is None:
        yield turn.becomes(r._replace(at=after, nonce=nonce), held=("lease", nonce, 0))
    elif s.held[0] == "value":
        yield from _found(turn._replace(r=r._replace(at="found", version=s.held[2])))
    elif rules.shares:
        # To wait changes nothing.
        yield turn.goes(after, nonce=s.held[1])
    else:
        yield from turn.loads("got")


def _found(turn: Turn) -> Iterator[State]:
    """Instead of a lease of its own it got a value; the answer takes its time."""
    if turn.rules.single_flight and turn.s.readers[turn.number].at == "acquire":
        yield turn.becomes(turn.r)
    else:
        yield turn.ends("got", is_given=not turn.rules.joins_what_was_stored)


def _send(turn: Turn) -> Iterator[State]:
    """A value is on its way. That this takes time matters to those who may join until then."""
    yield from [turn.goes("sent")] if turn.rules.single_flight else _sent(turn)


def _sent(turn: Turn) -> Iterator[State]:
    s, r = turn.s, turn.r
    is_any_lease = s.held is not None and s.held[0] == "lease"
    is_own = s.held == ("lease", r.nonce, 0) or (is_any_lease and not turn.rules.same_lease)
    is_stored = is_own or not turn.rules.compares
    held = ("value", r.nonce, r.version) if is_stored else s.held
    stored = turn.becomes(r._replace(at="answered", is_stored=is_stored), held=held)
    if turn.rules.single_flight:
        yield stored
    else:
        yield from _answered(turn._replace(s=stored, r=stored.readers[turn.number]))


def _answered(turn: Turn) -> Iterator[State]:
    r, rules = turn.r, turn.rules
    if r.is_stored or not rules.returns_only_stored:
        yield turn.ends("got", is_given=True, nonce=(), is_stored=False)
    else:
        again = "get" if r.tries + 1 < rules.tries else "last resort"
        yield turn.ends(again, is_given=False, nonce=(), tries=r.tries + 1, version=0)


def _last_resort(turn: Turn) -> Iterator[State]:
    if not turn.rules.last_resort_loads_first:
        yield turn.becomes(turn.r._replace(at="removed"), held=None)
        return
    is_around = turn.rules.kinds[turn.number] == "around"
    removes = turn.rules.around_removes if is_around else turn.rules.last_resort_removes
    yield from turn.loads("loaded" if removes else "got")


_LAST_RESORT: Final[Mapping[str, Callable[[Turn], Iterator[State | str]]]] = {
    "last resort": _last_resort,
    "removed": lambda turn: turn.loads("got"),
    "loaded": lambda turn: iter([turn.becomes(turn.r._replace(at="got"), held=None)]),
    "got": Turn.returns,
}
_CACHED: Final[Mapping[str, Callable[[Turn], Iterator[State | str]]]] = {
    "idle": lambda turn: turn.begins("get"),
    "get": _get,
    "joined": lambda _: iter(()),
    "acquire": _acquire,
    "found": _found,
    "load": lambda turn: turn.loads("send"),
    "send": _send,
    "sent": _sent,
    "answered": _answered,
    **_LAST_RESORT,
}


def _around(turn: Turn) -> Iterator[State | str]:
    """A step of a read that goes to the source and removes what is cached."""
    return turn.begins("last resort") if turn.r.at == "idle" else _LAST_RESORT[turn.r.at](turn)


def _refresh(turn: Turn) -> Iterator[State | str]:
    """A step of what loads a value ahead of its expiry."""
    s, r = turn.s, turn.r
    if r.at == "load":
        yield from turn.loads("swap")
    elif r.at == "swap":
        is_there = s.held == r.seen or not turn.rules.refresh_compares
        new = ("value", (turn.number, r.reads), r.version)
        yield turn.becomes(Reader("idle", r.reads), held=new if is_there else s.held)
    elif r.reads and s.held is not None and s.held[0] == "value":
        yield turn.becomes(Reader("load", r.reads - 1, seen=s.held))


_STEPS: Final = {"cached": _cached, "around": _around, "refresh": _refresh}

_ALL: Final = Rules()
_TWICE: Final = replace(_ALL, tries=2, reads=1)
_JOINING: Final = replace(_ALL, single_flight=True, commits=1)
_REFRESHING: Final = replace(_ALL, kinds=("cached", "cached", "refresh"), reads=1)
_AROUND: Final = replace(_ALL, kinds=("cached", "cached", "around"), reads=1, commits=1)
_FAILOVER: Final = replace(_ALL, failovers=1, reads=2, commits=1)
_SHARED: Final = replace(_ALL, shared=True, commits=1)
# Each way a read can go, with every rule kept.
WHOLE: Final[Mapping[str, Rules]] = {
    "leases": _ALL,
    "leases, and a second try": _TWICE,
    "leases, and one load for all readers of a process": _JOINING,
    "leases, and refreshing ahead": _REFRESHING,
    "leases, and readers without a certificate": _AROUND,
    "leases, and a failover to a replica that lags": _FAILOVER,
    "leases, and a writer that removes the key before it answers": _SHARED,
}
# And each rule left out.
MUTANTS: Final[Mapping[str, Rules]] = {
    "stores without comparing": replace(_ALL, compares=False),
    "the same nonce each time": replace(_ALL, unique_nonces=False),
    "loads before it has the lease": replace(_ALL, lease_before_load=False),
    "loads from a replica that lags": replace(_ALL, primary_only=False),
    "announces before the commit can be seen": replace(_ALL, visible_before_event=False),
    "an event removes values and no leases": replace(_ALL, removes_leases=False),
    "returns what was not stored": replace(_ALL, returns_only_stored=False),
    "loads without a lease where another's is": replace(_ALL, shares=False),
    "stores in the place of any lease": replace(_ALL, same_lease=False),
    "joins until the answer arrives": replace(_JOINING, joins_until="answered"),
    "joins what was only found": replace(_JOINING, joins_what_was_stored=False),
    "refreshes without comparing": replace(_REFRESHING, refresh_compares=False),
    "removes nothing in the last resort": replace(_ALL, last_resort_removes=False),
    "removes before it loads in the last resort": replace(_ALL, last_resort_loads_first=False),
    "reads around the cache and removes nothing": replace(_AROUND, around_removes=False),
    "keeps the epoch after a failover": replace(_FAILOVER, new_epoch_after_failover=False),
    "removes the key before the commit": replace(_SHARED, removes_after_commit=False),
    "answers before it removes the key": replace(_SHARED, answers_after_removal=False),
}


def main() -> int:
    """Print a line for each; 1 if one is not as it has to be."""
    wrong = 0
    for name, rules in {**WHOLE, **MUTANTS}.items():
        found = search(rules)
        is_violated = isinstance(found, Violation)
        wrong += is_violated == (name in WHOLE)
        said = (
            f"violates {found.guarantee} after {found.states}"
            if isinstance(found, Violation)
            else f"holds in {found}"
        )
        sys.stdout.write(f"{said:>28} states  {name}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
