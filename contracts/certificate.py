"""What tells the readers of a cache that somebody keeps it free of stale keys, and what its keys are called.

The one who removes stale keys writes a certificate beside them, which lives for seconds and is renewed as long as
everything arrives. Readers go around a cache without a valid one: a lease on the whole cache, as in C. Gray and
D. Cheriton, "Leases: an efficient fault-tolerant mechanism for distributed file cache consistency", SOSP 1989.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from pydantic import BaseModel, ConfigDict

from contracts.key_spec import spec_of


class Certificate(BaseModel):
    """Every change that was announced before ``as_of`` was applied to the cache under these epochs."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    epoch: int
    """Part of every name; another one leaves behind all that is cached."""
    spec_epochs: Mapping[str, int] = {}
    """The same for the keys of one kind, by their pattern, such as ``exchange:params:*``."""
    run_id: str = ""
    """Which run of the Redis server it is for: a restarted one may hold what had been removed.

    Of a cluster, which runs of all servers that are primaries.
    """
    kinds: frozenset[str] | None = None
    """Which kinds of keys it is for, by their patterns: those of whose events none is missed. None: all keys."""
    as_of: datetime
    """By the database's clock."""

    def is_for(self, key: str) -> bool:
        """Whether a logical key is of a kind that is kept fresh."""
        return self.kinds is None or spec_of(key).pattern in self.kinds


CertificateSource = Callable[[], Certificate | None]
"""Gives the certificate that is valid at this moment, if there is one. Called at every read, so it only looks."""

UNCERTIFIED: Final = Certificate(epoch=0, as_of=datetime.min.replace(tzinfo=UTC))
"""For a cache whose readers ask for no certificate."""


def name_of(namespace: str, key: str, certificate: Certificate = UNCERTIFIED) -> str:
    """The name in Redis of a logical key: under the epochs of the certificate, and the schema of its kind."""
    spec = spec_of(key)
    if (own := certificate.spec_epochs.get(spec.pattern)) is not None:
        return f"c:{namespace}:{certificate.epoch}.{own}:{spec.schema}:{key}"
    return f"c:{namespace}:{certificate.epoch}:{spec.schema}:{key}"


def name_of_certificate(namespace: str) -> str:
    """The name in Redis of the certificate itself."""
    return f"c:{{{namespace}}}:cert"


def name_of_progress(namespace: str) -> str:
    """The name in Redis of what has been applied. In a cluster it lies where the certificate lies."""
    return f"c:{{{namespace}}}:progress"
