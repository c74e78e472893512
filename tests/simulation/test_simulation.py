"""The simulation finds nothing in the code as it is, the same each time, and finds what is put in."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.faults.planted import changed
from tests.simulation.__main__ import FOUND, ONLY_HERE
from tests.simulation.world import simulate

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Worlds go wrong all the time, and say so."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.reset_defaults()


def test_nothing_is_violated() -> None:
    for seed in range(100):
        simulate(seed)


def test_a_seed_gives_the_same_world_again() -> None:
    assert simulate(7) == simulate(7)
    assert simulate(7) != simulate(8)


@pytest.mark.parametrize("name", ONLY_HERE)
def test_bugs_fit_the_code_as_it_is(name: str) -> None:
    for module in ONLY_HERE[name].changes:
        source = (REPOSITORY / f"{module.replace('.', '/')}.py").read_text()
        ast.parse(changed(module, source, ONLY_HERE[name]))


@pytest.mark.parametrize("name", ["acknowledges before the commit", "sleeps although something has arrived"])
def test_a_bug_is_found(name: str) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seeds", "100", "--bug", name],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    assert found.returncode == FOUND
    assert found.stdout.startswith("seed ")
