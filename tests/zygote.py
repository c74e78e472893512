"""A process that has imported the service, with its points if asked to, and becomes ``persistence`` by forking.

Reads one JSON object a line. What `tests.nursery` says of a child is answered with its pid, ``{"wait": pid}`` with
its exit code once it has ended. Without a board the service runs as always.
"""

import asyncio
import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from contracts import heartbeat
from tests.faults import points

_BEAT_SECONDS: Final = 0.05
"""How often a service with points beats: so that beats come while there is something in flight."""
_SET_PARENT_DEATH_SIGNAL: Final = 1


def main() -> None:
    _end_with_parent()
    with_points = "--with-points" in sys.argv
    if with_points:
        points.install()
        vars(heartbeat)["HEARTBEAT_SECONDS"] = _BEAT_SECONDS
    importlib.import_module("service.cli")  # after the points are installed
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
            _become(asked)
        _answer({"pid": pid})


def _become(asked: Mapping[str, Any]) -> None:
    _end_with_parent()
    code: object = 70
    try:
        for name, number in (("output", 1), ("errors", 2)):
            os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
        # Line by line, so that the last words of a process that is killed are there.
        sys.stdin, sys.stdout = open(os.devnull), os.fdopen(1, "w", buffering=1)  # noqa: SIM115, PTH123
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.argv = ["persistence", *asked["arguments"]]
        if asked["board"] is None:
            importlib.import_module(asked["program"]).main()
        else:
            from service import app, config  # noqa: PLC0415 - imported long ago

            points.play_on(points.Board(Path(asked["board"])))
            # Its awaits are the same, and their waits can be seen.
            code = app.serve(config.Settings.read(), run=asyncio.run)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001 - as an interpreter of its own would
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 1)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _answer(said: Mapping[str, Any]) -> None:
    sys.__stdout__.write(json.dumps(said) + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


if __name__ == "__main__":
    main()
