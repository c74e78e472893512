"""A process that has imported the service, with its points if asked to, and becomes it again and again by forking.

Reads one JSON object a line: ``{"environment": ..., "board": ..., "log": ...}`` forks a service and answers with its
pid, ``{"wait": pid}`` answers with its exit code once it has ended. Without a board the service runs as always.
"""

import asyncio
import ctypes
import gc
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.faults import points

_SET_PARENT_DEATH_SIGNAL: Final = 1


def main() -> None:
    _end_with_parent()
    with_points = "--with-points" in sys.argv
    if with_points:
        points.install()
    from service import app, config  # noqa: PLC0415 - after the points are installed

    gc.freeze()
    _answer({"points": len(points.find()) if with_points else 0})
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            _, status = os.waitpid(asked["wait"], 0)
            _answer({"exit_code": os.waitstatus_to_exitcode(status)})
            continue
        pid = os.fork()
        if pid == 0:
            _become(asked, app, config)
        _answer({"pid": pid})


def _become(asked: Mapping[str, Any], app: Any, config: Any) -> None:
    _end_with_parent()
    code = 70
    try:
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        # Line by line, so that the last words of a process that is killed are there.
        sys.stdout = os.fdopen(1, "w", buffering=1)
        os.environ.update(asked["environment"])
        if asked["board"] is None:
            code = app.serve(config.Settings.read())
        else:
            points.play_on(points.Board(Path(asked["board"])))
            # Its awaits are the same, and their waits can be seen.
            code = app.serve(config.Settings.read(), run=asyncio.run)
    finally:
        os._exit(code)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _answer(said: Mapping[str, Any]) -> None:
    sys.__stdout__.write(json.dumps(said) + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


if __name__ == "__main__":
    main()
