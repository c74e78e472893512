"""What bots note of each message, on disk before it is sent and after they know what became of it."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel


class Entry(BaseModel):
    """A line of the ledger."""

    what: str
    """``intent`` before a message is sent, ``verdict`` after, ``reply`` for an answer, ``read`` for a cache read.

    ``applied`` is for a change that is not in the readers' cache any more.
    """
    bot: int
    seq: int
    at: int
    """Of the machine's monotonic clock, in nanoseconds, so that processes can be compared."""
    kind: str = ""
    expect: str = ""
    """``applied``, ``duplicate`` or ``refused``."""
    message_id: str = ""
    command: str = ""
    body: str = ""
    verdict: str = ""
    """``confirmed``, ``returned`` or ``unknown``."""
    key: str = ""
    """Business key, or the cache's key."""
    version: int | None = None
    is_removed: bool = False
    """Whether an answer says that the older value is not in the service's cache any more."""
    cache: str = ""
    """What was read through: ``service`` or ``readers``."""
    process: int = 0
    """Of the reader: another one knows nothing of what was read before."""
    began: int = 0
    """When a cache read began."""


class Ledger:
    """A file of entries. What `note` returned from survives any death of the process."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, what: str, bot: int, seq: int, *, durable: bool = True, **values: Any) -> None:
        entry = Entry(what=what, bot=bot, seq=seq, at=time.monotonic_ns(), **values)
        os.write(self._file, entry.model_dump_json(exclude_defaults=True).encode() + b"\n")
        if durable:
            os.fdatasync(self._file)


def read(path: Path) -> Iterator[Entry]:
    """The entries of a ledger; a last line that was cut off by a death is none."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield Entry.model_validate(json.loads(line))
        except ValueError:
            continue
