"""The beat of the relay, by which a cache knows how late it is at most."""

from typing import ClassVar, Final

from contracts.base import View
from contracts.types import Instant

HEARTBEAT_SECONDS: Final = 1.0
"""How often the relay tells how far it has come, unless events are too many to keep up."""


class Heartbeat(View):
    """How far the relay has come, once a second, behind the events it speaks of.

    `CacheInvalidator` makes of it the certificate that lets readers use the cache.
    """

    wire_name: ClassVar[str] = "heartbeat"

    as_of: Instant
    """All that was committed before this moment of the database's clock is published."""
    term: int
    """Counts the instances that published, one after the other."""
    timeline: str
    """The history of the database: another one after a failover, a restore, or a change of database."""
    sequences: dict[str, int]
    """The number of the last event of each type. Who has fewer of one has lost some."""
