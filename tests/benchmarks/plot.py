"""The last figures as a picture: each value beside what the usual way reaches and what no way can exceed."""

from collections.abc import Sequence
from html import escape

from tests.benchmarks.result import Result

_ROW, _LEFT, _WIDTH, _RIGHT = 46, 310, 420, 70
_COLOURS = {"limit": "#c9ced6", "value": "#2f6fde", "baseline": "#e0912f"}


def drawn(figures: Sequence[Result]) -> str:
    """An SVG with a row for each figure that is compared; the longest bar of a row is its largest value."""
    compared = [figure for figure in figures if figure.baseline is not None or figure.limit is not None]
    rows = "".join(_row(place, figure) for place, figure in enumerate(compared))
    height = _ROW * len(compared) + 40
    legend = "".join(
        f'<rect x="{_LEFT + 110 * place}" y="10" width="12" height="12" fill="{colour}"/>'
        f'<text x="{_LEFT + 17 + 110 * place}" y="20">{name}</text>'
        for place, (name, colour) in enumerate(_COLOURS.items())
    )
    width = _LEFT + _WIDTH + _RIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f"{legend}{rows}</svg>\n"
    )


def _row(place: int, figure: Result) -> str:
    top = 36 + place * _ROW
    values = {"limit": figure.limit, "value": figure.value, "baseline": figure.baseline}
    present = {kind: value for kind, value in values.items() if value}
    most = max(present.values())
    bars = "".join(
        _bar(kind, value, value / most, top + 13 * line) for line, (kind, value) in enumerate(present.items())
    )
    name = f"{escape(figure.name)} ({escape(figure.unit)})"
    return f'<text x="{_LEFT - 10}" y="{top + 16}" text-anchor="end">{name}</text>{bars}'


def _bar(kind: str, value: float, part: float, top: int) -> str:
    length = max(1, round(_WIDTH * part))
    number = f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
    return (
        f'<rect x="{_LEFT}" y="{top}" width="{length}" height="11" fill="{_COLOURS[kind]}"/>'
        f'<text x="{_LEFT + length + 5}" y="{top + 10}">{number}</text>'
    )
