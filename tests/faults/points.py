"""Every await on the way of a message, found in the code itself, as a point at which a process can be killed.

The modules of that way are compiled anew in a child process of the test, with each await and each ``async with``
wrapped; nothing of it is in the service. A point has moments: before the await begins, each time it waits (what it
had to send is sent then, and nobody has answered), and after it.
"""

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import mmap
import os
import signal
import struct
import sys
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final, NamedTuple, Self

REPOSITORY: Final = Path(__file__).parents[2]

# Between delivery and acknowledgement, and between reading the outbox and deleting from it: every await of these
# modules is a point that has to be hit, except in the functions named here, each with the reason.
STATIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "service.consumers": {
        "Lane.finish": "waits at the end of the process, for what `Lane.run` does",
        "Consumers.": "subscribes and unsubscribes; settles nothing",
        "_is_subscribed": "looks at subscriptions",
        "Lane.run: await self._sit_out()": "waits for the end of an outage; everything was given back",
        "Lane._sit_out": "waits for the end of an outage; everything was given back",
    },
    "service.executor": {
        "Executor.can_commit": "looks whether the database stores again",
        "Executor.execute": "reads and carries out in one go; a lane does the one after the other",
        "Executor._judge_senders": "looks whose the named ids are, before anything is done",
    },
    "service.inbox": {"probe": "looks whether the database stores again"},
    "service.dead_letters": {"find": "lists letters for an operator", "discard": "closes a letter for an operator"},
    "service.publisher": {"Publisher.open": "connects at the start", "Publisher.close": "ends connections"},
    "service.lease": {"release": "gives a lease back at the end of the process"},
    "service.producers": {"watch": "looks for gaps", "sweep": "looks for gaps, in a transaction of its own"},
    "service.relay": {
        "Relay.release": "gives the lease back at the end of the process",
        "Relay.publish_once": "publishes what is left at the end of the process",
        "Relay.run: await self._give_up()": "ends with the process",
        "Relay._settle: await asyncio.sleep(pause)": "waits for the database, and then deletes all the same",
    },
}
# What commands do on that way: the points that the workload comes by.
EFFECTS: Final = (
    "service.commands.trade",
    "service.commands.bot_log",
    "service.commands.symbol",
    "service.repositories.trade",
    "service.repositories.bot_log",
    "service.repositories.symbol",
    "service.repositories.ownership",
)

WAITS: Final = 5
"""How many waits within one await are told apart."""
MOMENTS: Final = WAITS + 2

_HEAD: Final = struct.Struct("II")
_COUNT: Final = struct.Struct("I")
_HEAD_BYTES: Final = 64


@dataclass(frozen=True)
class Point:
    """An await, or one half of an ``async with``."""

    number: int
    module: str
    function: str
    line: int
    text: str
    is_required: bool
    """Whether a workload that never comes by leaves a gap in the proof."""

    def __str__(self) -> str:
        return f"{self.module}.{self.function}:{self.line} {self.text}"


class Moment(NamedTuple):
    """When at a point: before it, at one of its waits, or after it."""

    point: Point
    when: int

    @property
    def place(self) -> int:
        return self.point.number * MOMENTS + self.when

    @property
    def is_incidental(self) -> bool:
        """Whether it depends on the network, and not on the code, that there is such a moment."""
        # To have a connection takes no wait, unless it has to be opened, or tried because it has rested.
        # Whether a round has to wait for the one before is a matter of which confirm comes first.
        is_quick = self.point.text.endswith(" self._autocommit()") or self.point.text.endswith(".settled")
        first = 1 if is_quick else 2
        return first <= self.when < MOMENTS - 1

    def __str__(self) -> str:
        name = {0: "before", MOMENTS - 1: "after"}.get(self.when, f"wait {self.when} of")
        return f"{name} {self.point}"


class _Finder(ast.NodeTransformer):
    """Wraps what is awaited, and notes each place."""

    def __init__(self, module: str, first_number: int) -> None:
        self.points: list[Point] = []
        self._module = module
        self._next = first_number
        self._names: list[str] = []

    def _within(self, node: Any) -> Any:
        self._names.append(node.name)
        self.generic_visit(node)
        self._names.pop()
        return node

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _within  # noqa: N815 - ast's names

    def visit_Await(self, node: ast.Await) -> ast.Await:
        number = self._note(node, f"await {ast.unparse(node.value)}")
        self.generic_visit(node)
        node.value = _call("at", number, node.value)
        return node

    def visit_AsyncWith(self, node: ast.AsyncWith) -> ast.AsyncWith:
        for item in node.items:
            text = ast.unparse(item.context_expr)
            enter, leave = self._note(node, f"enter {text}"), self._note(node, f"leave {text}")
            item.context_expr = _call("around", enter, leave, item.context_expr)
        self.generic_visit(node)
        return node

    def visit_AsyncFor(self, node: ast.AsyncFor) -> ast.AsyncFor:
        raise NotImplementedError(f"{self._module}:{node.lineno}: an async for on the way of a message has no points")

    def _note(self, node: ast.stmt | ast.expr, text: str) -> int:
        function = ".".join(self._names)
        excluded = STATIONS.get(self._module)
        is_required = excluded is not None and not any(
            name in (function, f"{function}: {text}") or (name.endswith(".") and function.startswith(name))
            for name in excluded
        )
        self.points.append(Point(self._next, self._module, function, node.lineno, text[:90], is_required))
        self._next += 1
        return self._next - 1


def _call(function: str, *arguments: int | ast.expr) -> ast.Call:
    values = [ast.Constant(value) if isinstance(value, int) else value for value in arguments]
    return ast.Call(ast.Attribute(ast.Name("__points__", ast.Load()), function, ast.Load()), list(values), [])


def _path(module: str) -> Path:
    return REPOSITORY.joinpath(*module.split(".")).with_suffix(".py")


def find() -> list[Point]:
    """All points, in the order of the modules and of their lines."""
    points: list[Point] = []
    for module in (*STATIONS, *EFFECTS):
        points += _transformed(module, _path(module).read_text(), len(points))[1]
    return points


def _transformed(module: str, source: str, first_number: int) -> tuple[ast.Module, list[Point]]:
    finder = _Finder(module, first_number)
    tree = finder.visit(ast.parse(source))
    return ast.fix_missing_locations(tree), finder.points


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module from a source that was changed on the way, past the cache of compiled files."""

    def __init__(self, name: str, path: str, change: Callable[[str, str], ast.Module]) -> None:
        super().__init__(name, path)
        self._change = change

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return compile(self._change(fullname, Path(path).read_text()), path, "exec")

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__points__"] = sys.modules[__name__]
        super().exec_module(module)


class _ChangedModules(importlib.abc.MetaPathFinder):
    def __init__(self, modules: frozenset[str], change: Callable[[str, str], ast.Module]) -> None:
        self._modules = modules
        self._change = change

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._modules:
            return None
        loader = _Loader(fullname, str(_path(fullname)), self._change)
        return importlib.util.spec_from_file_location(fullname, _path(fullname), loader=loader)


def compile_changed(modules: frozenset[str], change: Callable[[str, str], ast.Module]) -> None:
    """From here on, have these modules compiled from what ``change`` makes of their name and source."""
    loaded = modules & sys.modules.keys()
    if loaded:
        raise RuntimeError(f"imported already: {', '.join(sorted(loaded))}")
    sys.meta_path.insert(0, _ChangedModules(modules, change))


def install() -> None:
    """Wrap every point in this process; before the service is imported."""
    first = {point.module: point.number for point in reversed(find())}
    compile_changed(frozenset(first), lambda module, source: _transformed(module, source, first[module])[0])


class Board:
    """A file by which a test tells a process where to die, and the process tells where it has been."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    @classmethod
    def create(cls, path: Path, points: int) -> Self:
        path.write_bytes(bytes(_HEAD_BYTES + _COUNT.size * points * MOMENTS))
        return cls(path)

    def clear(self) -> None:
        """Forget where processes have been."""
        self._memory[:] = bytes(len(self._memory))

    def arm(self, moment: Moment | None, *, hit: int = 1) -> None:
        """Have the process die at this moment, when it comes there for the ``hit``-th time from now on."""
        self._memory[: _HEAD.size] = _HEAD.pack(0 if moment is None else moment.place + 1, hit)

    def count(self, moment: Moment) -> int:
        """How often a process came by."""
        [count] = _COUNT.unpack_from(self._memory, _HEAD_BYTES + _COUNT.size * moment.place)
        return int(count)

    def hit(self, index: int) -> None:
        """Note that the process came by, and end it if this is the place."""
        place = _HEAD_BYTES + _COUNT.size * index
        [count] = _COUNT.unpack_from(self._memory, place)
        _COUNT.pack_into(self._memory, place, count + 1)
        armed, left = _HEAD.unpack_from(self._memory)
        if armed != index + 1:
            return
        _HEAD.pack_into(self._memory, 0, armed if left > 1 else 0, left - 1)
        if left == 1:
            os.kill(os.getpid(), signal.SIGKILL)


_board: Board | None = None
_counted: object = None
"""What the innermost of the awaits waits for; the outer ones wait for it too, which makes no moments of their own."""


def play_on(board: Board) -> None:
    """Report to ``board``, in this process."""
    global _board  # noqa: PLW0603 - one process, one board
    _board = board


def _reach(number: int, when: int) -> None:
    if _board is not None:
        _board.hit(number * MOMENTS + when)


class at:  # noqa: N801 - stands in the place of what is awaited
    """An awaitable with a point around it."""

    def __init__(self, number: int, awaited: Awaitable[Any]) -> None:
        self._number = number
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, Any]:
        global _counted  # noqa: PLW0603 - one event loop
        _reach(self._number, 0)
        inner = self._awaited.__await__()
        waits = 0
        resume: Callable[[], Any] = lambda: next(inner)  # noqa: E731 - the first of several ways to go on
        while True:
            try:
                waited_for = resume()
            except StopIteration as end:
                _reach(self._number, MOMENTS - 1)
                return end.value
            if waited_for is None or waited_for is not _counted:
                waits += 1
                _counted = waited_for
                if waits <= WAITS:
                    _reach(self._number, waits)
            try:
                sent = yield waited_for
            except GeneratorExit:
                inner.close()
                raise
            except BaseException as error:  # noqa: BLE001 - handed on
                resume = _throwing(inner, error)
            else:
                resume = _sending(inner, sent)


def _throwing(inner: Any, error: BaseException) -> Callable[[], Any]:
    return lambda: inner.throw(error)


def _sending(inner: Any, value: Any) -> Callable[[], Any]:
    return lambda: next(inner) if value is None else inner.send(value)


class around:  # noqa: N801 - stands in the place of a context manager
    """An asynchronous context manager with points around its halves."""

    def __init__(self, enter: int, leave: int, manager: Any) -> None:
        self._enter = enter
        self._leave = leave
        self._manager = manager

    async def __aenter__(self) -> Any:
        return await at(self._enter, self._manager.__aenter__())

    async def __aexit__(self, *error: object) -> Any:
        return await at(self._leave, self._manager.__aexit__(*error))


def moments(points: list[Point]) -> Iterator[Moment]:
    """Every moment that a point may have."""
    return (Moment(point, when) for point in points for when in range(MOMENTS))


@contextmanager
def board(path: Path, points: list[Point]) -> Iterator[Board]:
    """A board for ``points`` at ``path``, gone afterwards."""
    try:
        yield Board.create(path, len(points))
    finally:
        path.unlink(missing_ok=True)
