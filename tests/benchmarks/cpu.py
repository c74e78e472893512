"""CPU time of the service and its servers, which other load on the machine blurs less than it blurs rates."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_SERVERS: Final = {"postgres": "PostgreSQL", "beam.smp": "RabbitMQ"}
_TICK: Final = os.sysconf("SC_CLK_TCK")


def used(service: int) -> Mapping[str, float]:
    """Seconds of CPU by now: of the process ``service``, and of each server that this process has started.

    A server that runs elsewhere, such as in a container, is missing.
    """
    parents, names, seconds = {}, {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        name, _, rest = stat.partition("(")[2].rpartition(")")
        fields = rest.split()
        pid = int(folder.name)
        names[pid], parents[pid] = name, int(fields[1])
        # Its own time, and that of its children that have ended.
        seconds[pid] = sum(map(int, fields[11:15])) / _TICK
    totals = {"service": seconds.get(service, 0.0)}
    for pid, name in names.items():
        if name in _SERVERS and _is_below(pid, os.getpid(), parents):
            totals[_SERVERS[name]] = totals.get(_SERVERS[name], 0.0) + seconds[pid]
    return totals


def between(before: Mapping[str, float], after: Mapping[str, float], messages: int) -> Mapping[str, float]:
    """Microseconds per message."""
    return {name: (after[name] - before[name]) / messages * 1e6 for name in before}


def _is_below(pid: int, root: int, parents: Mapping[int, int]) -> bool:
    while pid and pid != root:
        pid = parents.get(pid, 0)
    return pid == root
