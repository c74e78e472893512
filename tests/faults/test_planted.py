"""The bugs that prove the checker are bugs of the code as it is."""

import ast

import pytest

from tests.faults.planted import BUGS, changed
from tests.faults.points import REPOSITORY


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_fits_the_code(name: str) -> None:
    for module in BUGS[name].changes:
        source = REPOSITORY.joinpath(*module.split(".")).with_suffix(".py").read_text()

        with_bug = changed(module, source, BUGS[name])

        assert ast.dump(ast.parse(with_bug)) != ast.dump(ast.parse(source))


def test_there_are_as_many_as_were_asked_for() -> None:
    assert len(BUGS) == 18
