"""Start the servers, and end them when the process that asked for them is gone.

``running()`` starts this module as a process of its own session and holds the other end of its standard input, which
the kernel closes when the asker ends, in whatever way. That is the sign to stop everything. Progress and result go
out as one JSON object a line.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

from deploy.servers import ServersError, compose, private
from deploy.servers.processes import Processes

SECONDS_FOR_THE_LAST_RUN_TO_END = 10


def main() -> int:
    folder, docker = Path(sys.argv[1]), "--docker" in sys.argv
    # Read before the first wait: the asker may be gone already.
    asker = os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    processes = Processes()
    try:
        Thread(target=_start, args=(folder, processes, docker), daemon=True).start()
        while not select.select([sys.stdin], [], [], 0.5)[0] and os.getppid() == asker:
            processes.restart_the_dead()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        processes.end()
    return 0


def _start(folder: Path, processes: Processes, docker: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _lock(folder)
        servers = (compose.start(processes, _report) if docker else None) or private.start(folder, processes, _report)
        _say("started", dataclasses.asdict(servers))
    except ServersError as error:
        _say("failed", str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the asker waits to hear it
        _say("failed", f"the servers could not be started: {error!r}")


def _lock(folder: Path) -> None:
    """Keep the folder to this run until the process ends; wait a little for a run that is just ending."""
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + SECONDS_FOR_THE_LAST_RUN_TO_END
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ServersError(f"another run uses {folder}: end it first, or take another folder") from None
            time.sleep(0.1)


def _report(line: str) -> None:
    _say("report", line)


def _say(kind: str, content: object) -> None:
    # Nobody listens any more when the asker is gone; the main thread sees that too.
    with suppress(BrokenPipeError):
        sys.stdout.write(json.dumps({kind: content}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
