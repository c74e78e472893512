"""Find or start the three servers the service needs: PostgreSQL, RabbitMQ and Redis.

``running()`` takes the first way that is open: the URLs of the environment, Docker Compose, or private servers on
free ports of 127.0.0.1. Standard library only, since it also runs before anything is installed.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
URL_VARIABLES = ("DATABASE_URL", "RABBITMQ_URL", "REDIS_URL")

Report = Callable[[str], None]
"""Takes one short line that tells a person what is going on."""


class ServersError(Exception):
    """The servers cannot be had. The message says what is missing and what to do."""


@dataclass(frozen=True)
class Servers:
    """Where the three servers answer."""

    way: str
    """How they were found, as a part of a sentence: "URLs from the environment", "Docker Compose"."""
    database_url: str
    rabbitmq_url: str
    redis_url: str
    rabbitmq_management_url: str | None


@contextmanager
def running(folder: Path, *, report: Report = print, docker: bool = True) -> Iterator[Servers]:
    """The three servers, for as long as the block lasts.

    Private servers keep their data below ``folder``, so a later run with the same folder finds it again; Docker's
    data ends with the run. A server that dies meanwhile is started again on its port. Whatever was started ends
    with the block, and also when this process is killed.
    """
    servers = _from_environment()
    if servers:
        yield servers
        return
    with _kept(folder, report=report, docker=docker) as servers:
        yield servers


def _from_environment() -> Servers | None:
    urls = [os.environ.get(name, "") for name in URL_VARIABLES]
    if not any(urls):
        return None
    missing = [name for name, url in zip(URL_VARIABLES, urls, strict=True) if not url]
    if missing:
        names = ", ".join(URL_VARIABLES)
        raise ServersError(f"{' and '.join(missing)} is not set: set all of {names}, or none of them")
    database_url = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", urls[0])
    management_url = os.environ.get("RABBITMQ_MANAGEMENT_URL") or None
    return Servers("URLs from the environment", database_url, urls[1], urls[2], management_url)


@contextmanager
def _kept(folder: Path, *, report: Report, docker: bool) -> Iterator[Servers]:
    """Servers that a keeper process starts, and ends once it can no longer hear from this process."""
    command = [sys.executable, "-m", "deploy.servers.keeper", str(folder.resolve())]
    ours, theirs = socket.socketpair()
    with theirs:
        keeper = subprocess.Popen(
            [*command, *(["--docker"] if docker else [])],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            # A session of its own keeps Ctrl-C away from it: it has to outlive us, to clean up.
            start_new_session=True,
        )
    try:
        with ours, ours.makefile() as lines:
            yield _first_answer(lines, report)
    finally:
        keeper.wait()


def _first_answer(lines: Iterable[str], report: Report) -> Servers:
    for line in lines:
        match json.loads(line):
            case {"report": text}:
                report(text)
            case {"failed": text}:
                raise ServersError(text)
            case {"started": servers}:
                return Servers(**servers)
    raise ServersError("the keeper of the servers ended before they were up")
