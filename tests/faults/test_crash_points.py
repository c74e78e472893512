"""A process that dies at any await from delivery to acknowledgement, or from read to delete, harms nothing."""

import os
import time
from pathlib import Path

import pytest

from service.config import Settings
from tests.faults.crash_points import DISTURBANCES, MISSES, Range
from tests.faults.points import Moment

ALL = os.environ.get("CRASH_POINTS") == "all"
SHARE = 8
"""How many of the moments are tried when not all are, spread over the way."""
TRIES = 12
"""How often a workload is sent to come by a moment: what meets where depends on what arrives when."""


@pytest.mark.timeout(3_600)
async def test_a_death_at_any_await_loses_nothing_and_doubles_nothing(settings: Settings, tmp_path: Path) -> None:
    async with Range.open(settings, tmp_path) as range_:
        # Where services come by, and under which circumstances, is where they can die.
        circumstances: dict[Moment, str] = {}
        for disturbance in DISTURBANCES * TRIES:
            assert await range_.fire(None, disturbance) == []
            circumstances = {moment: circumstances.get(moment, disturbance) for moment in range_.seen()}
            came_by = {moment.point for moment in circumstances}
            missed = [str(point) for point in range_.points if point.is_required and point not in came_by]
            if not missed:
                break
        chosen = list(circumstances)
        assert not missed, f"no workload comes by {missed}"

        chosen = chosen if ALL else chosen[:: max(1, len(chosen) // SHARE)]
        started = time.monotonic()
        failures = {}
        seldom = []
        for number, moment in enumerate(chosen, 1):
            for _ in range(TRIES):
                wrong = await range_.fire(moment, circumstances[moment])
                if moment in range_.killed or set(wrong) - MISSES:
                    break
            if moment.is_incidental and wrong and set(wrong) <= MISSES:
                # Statements are prepared, and answers come in pieces, now and then.
                seldom.append(str(moment))
            elif wrong:
                failures[str(moment)] = wrong
            tell(number, len(chosen), moment, wrong, time.monotonic() - started)
        assert failures == {}
        assert len(range_.killed) == len(chosen) - len(seldom)
        assert await range_.finish() == []


def tell(number: int, of: int, moment: Moment, wrong: list[str], seconds: float) -> None:
    if ALL:
        print(f"{number}/{of} {seconds:6.1f} s  {moment}  {'; '.join(wrong) or 'ok'}", flush=True)  # noqa: T201
