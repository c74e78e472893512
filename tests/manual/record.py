"""The record of conformance: which test shows which row of the checklist, and what became of it."""

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest

from tests.manual.checklist import ROWS

_PROPERTY: Final = "row of the manual"
_CORRECTION: Final = re.compile(r"X\d+(, X\d+)*: \S")
_WORST_FIRST: Final = ("failed", "skipped", "differs", "holds", "missing")


class Claims:
    """What the tests below a folder say they show."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._modules: set[Path] = set()
        self._tests: dict[str, str] = {}
        """The test function of each row; its cases are one."""
        self.problems: list[str] = []

    def add(self, item: pytest.Item) -> None:
        """Note which row ``item`` shows, and what is wrong with that; its reports will say so too."""
        if self._folder not in item.path.parents:
            return
        self._modules.add(item.path)
        marks = list(item.iter_markers("manual"))
        if len(marks) > 1:
            self.problems.append(f"{item.nodeid} shows more than one row")
        for mark in marks[:1]:
            self._note(item, *mark.args, **mark.kwargs)

    def _note(self, item: pytest.Item, row: str, name: str, differs: str | None = None) -> None:
        item.user_properties.append((_PROPERTY, {"row": row, "reason": differs or ""}))
        test = item.nodeid.partition("[")[0]
        if ROWS.get(row) != name:
            self.problems.append(f"{item.nodeid}: the checklist has no row {row!r} of the name {name!r}")
        if differs is not None and not _CORRECTION.match(differs):
            self.problems.append(f"{item.nodeid}: {differs!r} does not begin with the correction it follows")
        if self._tests.setdefault(row, test) != test:
            self.problems.append(f"{row} is shown by {self._tests[row]} and by {test}")

    @property
    def are_whole(self) -> bool:
        """Whether every module that can show a row was collected."""
        return self._modules == set(self._folder.glob("test_*.py"))

    @property
    def missing(self) -> list[str]:
        """The rows that no test shows."""
        return [row for row in ROWS if row not in self._tests]


class Table:
    """A line per row with what became of its test, put together from reports, whichever process ran it."""

    def __init__(self, *, is_shown: bool, file: Path | None) -> None:
        self._is_shown = is_shown
        self._file = file
        self._lines: dict[str, dict[str, str]] = {
            row: {"row": row, "name": name, "state": "missing", "reason": "", "test": ""}
            for row, name in ROWS.items()
        }

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in what became of a case: setup and teardown count where they fail, and the worst case counts."""
        shown: dict[str, str] | None = dict[str, Any](report.user_properties).get(_PROPERTY)
        if shown is None or shown["row"] not in self._lines or (report.when != "call" and report.passed):
            return
        line = self._lines[shown["row"]]
        state = report.outcome if not report.passed else "differs" if shown["reason"] else "holds"
        line["state"] = min(state, line["state"], key=_WORST_FIRST.index)
        line["reason"] = shown["reason"]
        line["test"] = report.nodeid.partition("[")[0]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table, write the file, where they are asked for."""
        lines = list(self._lines.values())
        if self._is_shown:
            terminalreporter.section("the manual, row by row")
            widths = {column: max(len(line[column]) for line in lines) for column in ("row", "name", "state")}
            for line in lines:
                cells = [line[column].ljust(width) for column, width in widths.items()]
                terminalreporter.write_line("  ".join([*cells, line["reason"]]).rstrip())
            states = [line["state"] for line in lines]
            numbers = [f"{states.count(state)} {state}" for state in reversed(_WORST_FIRST) if state in states]
            terminalreporter.write_line(f"{len(lines)} rows: {', '.join(numbers)}")
        if self._file is not None:
            self._file.write_text(json.dumps(lines, indent=2) + "\n")
