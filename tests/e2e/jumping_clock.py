"""``persistence`` on a machine whose clock is wrong by as many seconds as the file ``CLOCK_FILE`` holds at a moment.

The clock that tells the time, not the one that measures it: that one never jumps.
"""

import inspect
import os
import sys
import time
from datetime import datetime, tzinfo
from pathlib import Path

_FILE = Path(os.environ["CLOCK_FILE"])
_right_ns = time.time_ns


class _JumpingDatetime(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.fromtimestamp(time.time(), tz)


def _wrong_ns() -> int:
    return _right_ns() + int(_FILE.read_text() or 0) * 10**9


def main() -> None:
    time.time_ns = _wrong_ns
    time.time = lambda: _wrong_ns() / 10**9
    from service.cli import main as persistence  # noqa: PLC0415 - it reads the clock from now on

    for name, module in list(sys.modules.items()):
        if name.startswith(("service.", "contracts.")) and "datetime.now(" in inspect.getsource(module):
            vars(module)["datetime"] = _JumpingDatetime
    persistence()


if __name__ == "__main__":
    main()
