"""What the person in front of it sees: bars and a table on a terminal, plain lines anywhere else."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from deploy.demo.verdict import Verdict

_SECONDS_PER_LINE: Final = 2.0
_PROBLEMS_SHOWN: Final = 3


@dataclass(frozen=True)
class Counts:
    """How many trades have got how far."""

    published: int = 0
    stored: int = 0
    announced: int = 0


Show = Callable[[Counts], None]


class Screen:
    """Standard output, as good as it can be."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._started = time.monotonic()

    def say(self, line: str) -> None:
        """One line with the seconds since the start before it."""
        self._console.print(f"{time.monotonic() - self._started:6.1f} s  {line}", markup=False)

    @contextmanager
    def progress(self, total: int) -> Iterator[Show]:
        """Something to show counts with, again and again."""
        if self._console.is_terminal:
            with self._bars(total) as show:
                yield show
        else:
            with self._lines() as show:
                yield show

    def verdict(self, verdict: Verdict) -> None:
        """All checks, and what is wrong with those that failed."""
        if self._console.is_terminal:
            table = Table("", "check", "tried", title="Verdict", title_justify="left")
            table.columns[-1].justify = "right"
            for check in verdict.checks:
                table.add_row("[green]ok[/]" if check.holds else "[red]FAILED[/]", check.claim, f"{check.tried:,}")
            self._console.print(table)
        else:
            for check in verdict.checks:
                print(f"{'ok' if check.holds else 'FAILED':6}  {check.tried:>7,}  {check.claim}")
        for check in verdict.checks:
            for problem in check.problems[:_PROBLEMS_SHOWN]:
                print(f"  {check.claim}: {problem[:1_000]}")
            if (more := len(check.problems) - _PROBLEMS_SHOWN) > 0:
                print(f"  {check.claim}: and {more:,} more")

    @contextmanager
    def _lines(self) -> Iterator[Show]:
        shown_at, shown = time.monotonic(), Counts()
        last = shown

        def line() -> None:
            nonlocal shown_at, shown
            seconds = time.monotonic() - shown_at
            self.say(
                f"{last.published:6,} published ({(last.published - shown.published) / seconds:5,.0f}/s)  "
                f"{last.stored:6,} stored ({(last.stored - shown.stored) / seconds:5,.0f}/s)  "
                f"{last.announced:6,} announced ({(last.announced - shown.announced) / seconds:5,.0f}/s)"
            )
            shown_at, shown = time.monotonic(), last

        def show(counts: Counts) -> None:
            nonlocal last
            last = counts
            if time.monotonic() - shown_at >= _SECONDS_PER_LINE:
                line()

        yield show
        line()

    @contextmanager
    def _bars(self, total: int) -> Iterator[Show]:
        name = TextColumn("{task.description:>18}")
        with Progress(name, BarColumn(), MofNCompleteColumn(), _Rate(), console=self._console) as progress:
            bars = [progress.add_task(name, total=total) for name in ("published", "stored", "announced")]

            def show(counts: Counts) -> None:
                for bar, count in zip(bars, (counts.published, counts.stored, counts.announced), strict=True):
                    progress.update(bar, completed=count)

            yield show


class _Rate(ProgressColumn):
    """Trades a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "", style="progress.data.speed")
