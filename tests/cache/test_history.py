"""The checker of histories finds what is planted in one, and nothing in a good one."""

import pytest

from tests.cache.history import History, Read


def a_history() -> History:
    """Two writes at 1 and 2, applied at 1.5 and 2.5, answered at 1.2 and 2.2."""
    history = History()
    of_key = history.keys["k"]
    of_key.committed.note(0.0, 1)
    for at, version in ((1.0, 2), (2.0, 3)):
        of_key.committed.note(at, version)
        of_key.answered.note(at + 0.2, version)
        of_key.applied.note(at + 0.5, version)
    of_key.reads.append(Read(1.6, 1.7, 2))
    return history


@pytest.mark.parametrize(
    ("read", "violated"),
    [
        (Read(1.1, 1.15, 1), set()),
        (Read(2.05, 2.1, 2), set()),
        (Read(1.3, 1.4, 1), {"linearizable"}),
        (Read(1.55, 1.65, 1), {"linearizable", "G1"}),
        (Read(1.8, 1.9, 1), {"linearizable", "G1", "G2"}),
        (Read(1.1, 1.15, 1, after=2), {"after"}),
        (Read(1.1, 1.15, 3), {"never written", "G2"}),
    ],
)
def test_a_read_that_must_not_be_is_found(read: Read, violated: set[str]) -> None:
    history = a_history()

    history.keys["k"].reads.append(read)

    assert {violation.guarantee for violation in history.violations()} == violated


def test_nothing_is_found_in_a_good_one() -> None:
    assert list(a_history().violations()) == []
    assert a_history().reads == 1
