"""What a key of the cache holds: a lease, or a value with what its readers need to know about it."""

import math
import os
import random
import struct
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, Self

LEASE: Final = 0
_VALUE: Final = 1
_ABSENT: Final = 2

HEAD_BYTES: Final = 17
"""What tells one lease or value from every other one: its kind, and the nonce it was stored with."""
_ONLY: Final = "="
_LONGEST: Final = 40
"""More than the negative logarithm of a random number can be."""
_ABOUT: Final = struct.Struct("<B16sdfH")
"""Kind, nonce, soft expiry, seconds it took to load, length of the snapshot; then snapshot and value."""
_ABOUT_ITS_VALUE: Final = struct.Struct("<17xdfH")
"""The same without its head."""


class Loaded(NamedTuple):
    """What was read from the source: the value, or None where there is none.

    ``snapshot`` is PostgreSQL's `pg_current_snapshot()` of the transaction that read it, as text. It tells which
    commits the value shows; without it only the one that the reader asked for, if any, is known.
    """

    value: bytes | None
    snapshot: str = ""


Load = Callable[[], Awaitable[Loaded | bytes | None]]
"""Reads a value from its source: the primary, in a transaction that begins when this is called.

It must not read through the same cache. What it raises is raised to the reader.
"""


class Entry:
    """A value as it stands in the cache."""

    __slots__ = ("_about", "held", "is_cached")

    def __init__(self, held: bytes, *, is_cached: bool = True) -> None:
        """``held`` is what the key holds, no lease; not ``is_cached`` is what was not found or put there."""
        self.held = held
        self.is_cached = is_cached
        self._about: tuple[float, float, int] = _ABOUT_ITS_VALUE.unpack_from(held)

    @classmethod
    def under(cls, lease: bytes, loaded: Loaded, *, soft_expiry: float, load_seconds: float) -> Self:
        """The entry that takes the place of ``lease``.

        From ``soft_expiry`` on, by the clocks of the readers, who reads it loads it anew in the background.
        """
        kind = _ABSENT if loaded.value is None else _VALUE
        snapshot = loaded.snapshot.encode()
        about = _ABOUT.pack(kind, lease[1:], soft_expiry, load_seconds, len(snapshot))
        return cls(b"".join((about, snapshot, loaded.value or b"")))

    @property
    def head(self) -> bytes:
        """What tells it from every other one."""
        return self.held[:HEAD_BYTES]

    @property
    def is_absent(self) -> bool:
        """Whether there was nothing."""
        return self.held[0] == _ABSENT

    @property
    def value(self) -> bytes | None:
        """What was loaded; None where there was nothing."""
        return None if self.held[0] == _ABSENT else self.held[_ABOUT.size + self._about[2] :]

    def is_young(self, now: float) -> bool:
        """Whether its soft expiry is still to come."""
        return now < self._about[0]

    def is_due(self, now: float) -> bool:
        """Whether the reader should load it anew, ahead of its soft expiry and rather late than early.

        The probability grows with the time that loading takes: A. Vattani, F. Chierichetti, K. Lowenstein, "Optimal
        probabilistic cache stampede prevention", VLDB 2015, with a beta of 1.
        """
        soft_expiry, load_seconds, _ = self._about
        if now + load_seconds * _LONGEST < soft_expiry:
            return False
        return now - load_seconds * math.log(1.0 - random.random()) >= soft_expiry

    def shows(self, token: str | None) -> bool:
        """Whether it was loaded when the transaction of this commit token could be seen."""
        if token is None:
            return True
        snapshot = self.held[_ABOUT.size : _ABOUT.size + self._about[2]]
        return is_visible(int(token), snapshot.decode())


def new_lease() -> bytes:
    """A lease that nobody had before: a name of the reader would be taken for its earlier leases."""
    return bytes([LEASE]) + os.urandom(HEAD_BYTES - 1)


def only(transaction: int | str) -> str:
    """A snapshot of which no more is known than that it shows this one."""
    return f"{_ONLY}{transaction}"


def is_visible(transaction: int, snapshot: str) -> bool:
    """Whether a snapshot shows what a committed transaction did, as PostgreSQL's `pg_visible_in_snapshot`."""
    if not snapshot:
        return False
    if snapshot.startswith(_ONLY):
        return snapshot == only(transaction)
    first, end, running = snapshot.split(":")
    if transaction < int(first):
        return True
    return transaction < int(end) and str(transaction) not in running.split(",")
