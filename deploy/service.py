"""The service as a child process: its tables made, started, waited for and stopped."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deploy.servers import REPOSITORY, Servers

_SECONDS_TO_START = 30
_SECONDS_TO_STOP = 15
_PR_SET_PDEATHSIG = 1


class ServiceError(Exception):
    """The service did not start, or cannot be used. The message says why."""


class Service:
    """A running instance of the service."""

    def __init__(self, process: subprocess.Popen[bytes], address: str, log: Path | None = None) -> None:
        self._process = process
        self.address = address
        """Of its side port: health, metrics and documents."""
        self.log = log

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self) -> int:
        """Return when it has ended, with its exit code."""
        return self._process.wait()

    def stop(self) -> int:
        """Ask it to finish what it has begun, and wait for that; gives its exit code."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()


def migrate(servers: Servers) -> str:
    """Bring the database to the service's version; gives the sentence that says what was done."""
    done = subprocess.run(
        [sys.executable, "-m", "service", "migrate"],
        cwd=REPOSITORY,
        env=_environment(servers),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ServiceError(_reason(done.stderr) or f"the migration ended with {done.returncode}")
    return done.stdout.strip()


@contextmanager
def running(
    servers: Servers, *, log: Path | None = None, port: int = 0, log_format: str = "json"
) -> Iterator[Service]:
    """The service, ready for work, for as long as the block lasts.

    It writes to ``log``, or where this process does. ``port`` 0 takes a free one and needs a ``log`` to read it from.
    """
    environment = {**_environment(servers), "HTTP_PORT": str(port), "LOG_FORMAT": log_format}
    with (log or Path(os.devnull)).open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "serve"],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file if log else None,
            stderr=subprocess.STDOUT if log else None,
            # Ctrl-C is for us alone: the service is stopped when its clients are.
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - nothing here starts threads before
        )
    service = Service(process, f"http://127.0.0.1:{port}", log)
    try:
        _wait_until_ready(service, log)
        yield service
    finally:
        service.stop()


def end_with_parent() -> None:
    """Have the kernel end this process when its parent is gone, in whatever way; on Linux only."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def interrupt_on_sigterm(*, within: int = 0) -> None:
    """Have SIGTERM end this process as Ctrl-C does, with everything cleaned up.

    After ``within`` seconds the kernel ends it, cleaned up or not; 0 leaves it all the time it takes.
    """
    # A parent that ignores interrupts, as a shell does for its background jobs, must not make us deaf to them.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(*_: object) -> None:
        signal.alarm(within)
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, interrupt)


def _environment(servers: Servers) -> dict[str, str]:
    return {
        **os.environ,
        "DATABASE_URL": servers.database_url,
        "RABBITMQ_URL": servers.rabbitmq_url,
        "REDIS_URL": servers.redis_url,
    }


def _wait_until_ready(service: Service, log: Path | None) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while not ((log is None or _takes_its_address_from(log, service)) and _is_ready(service.address)):
        if service.has_ended:
            ended = f"the service ended with {service.wait()}"
            raise ServiceError((log and _reason(log.read_text())) or ended)
        if time.monotonic() > deadline:
            raise ServiceError(f"the service was not ready within {_SECONDS_TO_START} s")
        time.sleep(0.05)


def _takes_its_address_from(log: Path, service: Service) -> bool:
    for line in log.read_text().splitlines():
        with suppress(ValueError):
            if (entry := json.loads(line))["event"] == "serving":
                service.address = entry["http"]
                return True
    return False


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health/ready", timeout=5) as answer:  # noqa: S310 - http, made here
            return bool(answer.status == 200)  # noqa: PLR2004 - HTTP's own number
    except (urllib.error.URLError, OSError):
        return False


def _reason(text: str) -> str:
    """What the service said last, which is why it ended."""
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    return last.removeprefix("persistence: ")
