"""The history of what was read through caches while everything around them failed."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final, Literal, NamedTuple

from tests.cache.history import History, Read
from tests.faults.ledger import Entry

STALE_SECONDS: Final = 5
"""How long after an answer was given a reader may be shown what was before, whatever fails."""
CACHES: Final = ("service", "readers")


class _Moment(NamedTuple):
    """When something became true of a version of a symbol."""

    at: int
    what: Literal["committed", "applied", "answered"]
    cache: str
    symbol: str
    version: int


def history_of(
    ledger: Sequence[Entry], first_symbols: Mapping[int, int], events: Iterable[Mapping[str, Any]]
) -> History:
    """Times are in nanoseconds. ``first_symbols`` are versions by id; ``events`` are all that were announced."""
    history = History()
    for entry in ledger:
        if entry.what == "read" and entry.version is not None:
            read = Read(entry.began, entry.at, entry.version, by=str(entry.process))
            history.keys[_key(entry.cache, entry.key)].reads.append(read)
    changes = [event for event in events if event["type"] == "symbol.updated"]
    moments = chain(_committed(ledger, first_symbols, changes), _applied(ledger), _answered(ledger, changes))
    for at, what, cache, symbol, version in sorted(moments):
        getattr(history.keys[_key(cache, symbol)], what).note(at, version)
    return history


def _key(cache: str, symbol: str) -> str:
    return f"symbol {symbol} through the cache of the {cache}"


def _committed(
    ledger: Iterable[Entry], first_symbols: Mapping[int, int], changes: Iterable[Mapping[str, Any]]
) -> Iterator[_Moment]:
    """A commit begins when its command has been sent at the earliest."""
    sent: dict[str, int] = {}
    for entry in ledger:
        if entry.what == "intent":
            sent.setdefault(entry.message_id, entry.at)
    began = [(0, str(symbol), version) for symbol, version in first_symbols.items()]
    for event in changes:
        at = min(sent.get(message_id, 0) for message_id in event["causation_ids"])
        began += [(at, symbol, version) for symbol, version in _versions(event)]
    yield from (_Moment(at, "committed", cache, symbol, version) for at, symbol, version in began for cache in CACHES)


def _applied(ledger: Iterable[Entry]) -> Iterator[_Moment]:
    """A change is in no cache any more when its invalidator says so, and when the stated time is over."""
    for entry in ledger:
        if entry.version is not None and entry.what == "applied":
            yield _Moment(entry.at, "applied", entry.cache, entry.key, entry.version)
        elif entry.version is not None and entry.what == "reply":
            at = entry.at + STALE_SECONDS * 10**9
            yield from (_Moment(at, "applied", cache, entry.key, entry.version) for cache in CACHES)


def _answered(ledger: Iterable[Entry], changes: Iterable[Mapping[str, Any]]) -> Iterator[_Moment]:
    """An answer that does not say ``pending`` comes after the removal of what its own command made stale."""
    made: defaultdict[str, set[tuple[str, int]]] = defaultdict(set)
    for event in changes:
        for message_id in event["causation_ids"]:
            made[message_id].update(_versions(event))
    for entry in ledger:
        if entry.is_removed and entry.version is not None and (entry.key, entry.version) in made[entry.message_id]:
            yield _Moment(entry.at, "answered", "service", entry.key, entry.version)


def _versions(event: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [(str(change["key"]["symbol_id"]), change["version"]) for change in event["changes"]]
