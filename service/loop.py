"""uvloop for programs that use the library: chosen when a loop is started, never under a running one."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import structlog
import uvloop

log = structlog.get_logger()

P = ParamSpec("P")
R = TypeVar("R")


def run_with_uvloop(main: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, R]:
    """A plain function that runs ``main`` on uvloop to its end and gives what it returns.

    Raises RuntimeError where a loop runs already; ``await main.__wrapped__()`` there.
    """

    @wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if _running_loop() is not None:
            raise RuntimeError(f"a loop runs already: await {main.__name__}.__wrapped__(...) instead")
        return uvloop.run(main(*args, **kwargs))

    return run


def setup_uvloop() -> bool:
    """Have the next ``asyncio.run`` use uvloop; says whether it will, or, where a loop runs, whether that is one.

    A running loop stays what it is. From Python 3.14 on, which deprecates choosing a loop ahead, it raises
    RuntimeError outside of one: use `run_with_uvloop` or ``uvloop.run``.
    """
    loop = _running_loop()
    if loop is not None:
        return _is_uvloop(loop)
    if sys.version_info >= (3, 14):
        raise RuntimeError("a loop is chosen when it is started: use run_with_uvloop or uvloop.run")
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    return True


class UVLoopManager:
    """Tells in the log whether what happens inside runs on uvloop; it cannot change a loop that runs."""

    async def __aenter__(self) -> Self:
        _is_uvloop(asyncio.get_running_loop())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _is_uvloop(loop: asyncio.AbstractEventLoop) -> bool:
    is_uvloop = isinstance(loop, uvloop.Loop)
    if not is_uvloop:
        log.warning("not_on_uvloop", advice="start the program with run_with_uvloop or uvloop.run")
    return is_uvloop
