"""The checker of a run judges what was read through caches as the checker of histories does."""

from dataclasses import replace
from typing import Any

import pytest

from tests.faults.checker import Checker, Evidence
from tests.faults.ledger import Entry

SECOND = 10**9
SYMBOL = 7


def sent(message_id: str, seconds: float) -> Entry:
    """A change of the symbol."""
    return entry("intent", seconds, message_id=message_id, kind="update", command="update_symbol", key=f"{SYMBOL}")


def answered(message_id: str, seconds: float, version: int, *, is_removed: bool = True) -> Entry:
    return entry("reply", seconds, message_id=message_id, key=f"{SYMBOL}", version=version, is_removed=is_removed)


def applied(seconds: float, version: int) -> Entry:
    return entry("applied", seconds, key=f"{SYMBOL}", version=version, cache="readers")


def read(cache: str, seconds: float, version: int, *, process: int = 1) -> Entry:
    """One of a tenth of a second."""
    began = round((seconds - 0.1) * SECOND)
    return entry("read", seconds, key=f"{SYMBOL}", version=version, cache=cache, process=process, began=began)


def entry(what: str, seconds: float, **values: Any) -> Entry:
    return Entry(what=what, bot=1, seq=1, at=round(seconds * SECOND), **values)


def announced(number: int, message_id: str, version: int) -> dict[str, Any]:
    return {
        "event_id": f"event {number}",
        "type": "symbol.updated",
        "sequence": number,
        "causation_ids": [message_id],
        "changes": [{"key": {"symbol_id": SYMBOL}, "version": version}],
    }


def evidence() -> Evidence:
    """The symbol becomes 2 and then 3, for which Redis was late; both are read at once, and in the end 3."""
    heard = [announced(1, "a", 2), announced(2, "b", 3)]
    return Evidence(
        ledger=[
            *(sent("a", 1), answered("a", 1.2, 2), applied(1.5, 2)),
            *(read("service", 1.35, 2), read("readers", 1.4, 1), read("readers", 1.7, 2)),
            *(sent("b", 20), answered("b", 20.2, 3, is_removed=False), applied(20.5, 3)),
            *(read("service", 24, 2), read("readers", 20.55, 2), read("readers", 20.7, 3), read("service", 30, 3)),
        ],
        trades=[],
        logs=[],
        symbols={SYMBOL: 3},
        first_symbols={SYMBOL: 1},
        inbox=set(),
        letters=[],
        heard={"steady": heard, "flaky": heard},
        cached={SYMBOL: 3},
        left_in_queues={},
        left_in_outbox=0,
        sessions={},
        artefacts={},
    )


def test_a_good_run_is_good() -> None:
    checker = Checker(evidence())

    assert checker.violations == []
    assert checker.compared["I8"] == 8


def test_who_came_too_late_to_hear_anything_missed_nothing() -> None:
    good = evidence()

    assert Checker(replace(good, heard={**good.heard, "late": []})).violations == []


def test_a_second_consumer_is_found() -> None:
    assert Checker(replace(evidence(), consumers={"a": 1, "b": 1})).broken == set()
    assert Checker(replace(evidence(), consumers={"a": 1, "b": 2})).broken == {"I11"}


@pytest.mark.parametrize(("order", "broken"), [("aba", set()), ("bab", {"I6"}), ("ba", {"I6"})])
def test_events_count_when_they_come_first(order: str, broken: set[str]) -> None:
    events = {"a": announced(1, "a", 2), "b": announced(2, "b", 3)}
    heard = [events[each] for each in order]

    assert Checker(replace(evidence(), heard={"steady": heard, "flaky": heard})).broken == broken


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (read("readers", 1.65, 1), "applied before"),
        (read("readers", 1.45, 2, process=2), None),
        (read("readers", 1.8, 1, process=2), "applied before"),
        (read("service", 1.4, 1), "answered before"),
        (read("service", 25.25, 2), None),
        (read("service", 25.4, 2), "known for 5 s"),
        (read("readers", 21, 2), "read before"),
        (read("readers", 20.6, 2, process=2), None),
        (read("service", 19, 3), "nobody had asked"),
        (read("readers", 60, 4), "nobody had asked"),
    ],
)
def test_a_read_that_must_not_be_is_found(bad: Entry, why: str | None) -> None:
    good = evidence()

    checker = Checker(replace(good, ledger=[*good.ledger, bad]))

    found = [violation for violation in checker.violations if violation.invariant == "I8"]
    assert checker.broken == ({"I8"} if why else set())
    assert why is None or any(why in violation.what for violation in found)
