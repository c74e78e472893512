"""The cache itself keeps its guarantees in schedules that a seed decides, and each planted bug is found."""

import pytest

from contracts.leased_cache import LeasedCache
from tests.cache.simulation import MUTANTS, Schedule, killed_by, search

# In so many schedules a bug is found; `make cache-proof` has the time for those that take more.
_FEW = 600
_RARE = {
    "gives out what was not stored",
    "shares the load that is under way",
}


def test_no_schedule_shows_a_violation() -> None:
    assert list(search(LeasedCache, range(_FEW))) == []


@pytest.mark.parametrize("name", sorted(set(MUTANTS) - _RARE))
def test_a_planted_bug_is_found(name: str) -> None:
    assert killed_by(name, range(_FEW)) is not None


def test_a_seed_that_showed_a_violation_shows_it_again() -> None:
    name = "takes the same nonce each time"
    found = killed_by(name, range(_FEW))
    assert found is not None

    again = killed_by(name, range(found.seed, found.seed + 1))

    assert again == found


def test_a_schedule_is_the_same_each_time() -> None:
    def returned() -> list[object]:
        schedule = Schedule(LeasedCache, 7)
        schedule.run()
        return list(schedule._returned.values())

    assert returned() == returned()
