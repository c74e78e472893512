"""The protocol keeps its guarantees in every order of steps, and needs each of its rules."""

import pytest

from tests.cache.model import MUTANTS, WHOLE, Violation, search


@pytest.mark.parametrize("name", WHOLE)
def test_the_protocol_gives_what_it_guarantees(name: str) -> None:
    assert not isinstance(search(WHOLE[name]), Violation)


@pytest.mark.parametrize("name", MUTANTS)
def test_without_a_rule_it_does_not(name: str) -> None:
    assert isinstance(search(MUTANTS[name]), Violation)


def test_there_are_as_many_rules_as_were_asked_for() -> None:
    assert len(MUTANTS) >= 10
