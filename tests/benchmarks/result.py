"""A figure, what it is compared with, and what it should be."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Result:
    """One figure, and how it compares."""

    name: str
    value: float
    unit: str
    baseline: float | None
    """What the usual way reaches, in the same unit."""
    ratio: float | None
    limit: float | None
    """What no way can exceed here, in the same unit."""
    fraction_of_limit: float | None
    goal: str | None
    is_met: bool | None


class Goal(NamedTuple):
    """Bounds of a figure: of the value itself, its ratio to the baseline, its fraction of the limit."""

    ratio: float | None = None
    fraction: float | None = None
    value: float | None = None


def compared(
    name: str,
    value: float,
    unit: str,
    *,
    baseline: float | None = None,
    limit: float | None = None,
    at_least: Goal | None = None,
    at_most: Goal | None = None,
) -> Result:
    """The figure beside what it is compared with; at most one of the goals may be given."""
    ratio = value / baseline if baseline else None
    fraction = value / limit if limit else None
    goal = at_least or at_most
    if goal is None:
        return Result(name, value, unit, baseline, ratio, limit, fraction, None, None)
    bounds = [
        (figure, bound, text.format(bound))
        for figure, bound, text in (
            (ratio, goal.ratio, "{:g} x"),
            (fraction, goal.fraction, "{:g} of the limit"),
            (value, goal.value, f"{{:g}} {unit}"),
        )
        if bound is not None
    ]
    is_met = all(
        figure is not None and (figure >= bound if at_least else figure <= bound) for figure, bound, _ in bounds
    )
    said = f"at {'least' if at_least else 'most'} {', '.join(text for *_, text in bounds)}"
    return Result(name, value, unit, baseline, ratio, limit, fraction, said, is_met)
