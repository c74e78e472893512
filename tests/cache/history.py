"""What happened to versioned values, and which reads should not have been.

Writes of a key are totally ordered and a read gives the version it saw, so each guarantee is a comparison with the
greatest version of a moment; no search for an order is needed.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


class Read(NamedTuple):
    """A read of a key, with its times by one clock."""

    began: float
    ended: float
    version: int
    after: int = 0
    """The write that it was told to show."""
    by: str = ""
    """Whose reads never go back; all of them together, if nobody is named."""


class Maximum:
    """The greatest version so far, at any moment."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._versions: list[int] = []

    def note(self, time: float, version: int) -> None:
        """Times never go back."""
        if not self._versions or version > self._versions[-1]:
            self._times.append(time)
            self._versions.append(version)

    def before(self, time: float) -> int:
        """The greatest version that was noted before this moment."""
        index = bisect_left(self._times, time)
        return self._versions[index - 1] if index else 0


@dataclass
class OfKey:
    """What happened to one key."""

    committed: Maximum = field(default_factory=Maximum)
    """Noted when the commit begins: no read may show it earlier."""
    applied: Maximum = field(default_factory=Maximum)
    """Noted when the removal that an event asks for was answered, or has to have been."""
    answered: Maximum = field(default_factory=Maximum)
    """Noted when the writer was told that it is done, where it removes the key itself."""
    reads: list[Read] = field(default_factory=list)


class Violation(NamedTuple):
    """A read that gave what it must not give."""

    guarantee: str
    key: str
    read: Read


class History:
    """Of many keys."""

    def __init__(self) -> None:
        self.keys: defaultdict[str, OfKey] = defaultdict(OfKey)

    @property
    def reads(self) -> int:
        """How many were recorded."""
        return sum(len(of_key.reads) for of_key in self.keys.values())

    def violations(self) -> Iterator[Violation]:
        """Reads older than what was applied (G1), returned (G2) or answered (linearizability) before they began.

        Also those that do not show the write they were told to show, and those of what was not written yet.
        """
        for key, of_key in self.keys.items():
            returned: defaultdict[str, Maximum] = defaultdict(Maximum)
            for read in sorted(of_key.reads, key=lambda read: read.ended):
                returned[read.by].note(read.ended, read.version)
            for read in of_key.reads:
                floors = {
                    "G1": of_key.applied.before(read.began),
                    "G2": returned[read.by].before(read.began),
                    "linearizable": of_key.answered.before(read.began),
                    "after": read.after,
                }
                yield from (Violation(name, key, read) for name, floor in floors.items() if read.version < floor)
                if read.version > of_key.committed.before(read.ended):
                    yield Violation("never written", key, read)
