"""A figure and what it is compared with."""

from dataclasses import dataclass


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


def compared(name: str, value: float, unit: str, *, baseline: float | None, limit: float | None) -> Result:
    return Result(
        name, value, unit, baseline, value / baseline if baseline else None, limit, value / limit if limit else None
    )
