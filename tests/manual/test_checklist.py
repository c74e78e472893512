"""The record of conformance is whole: it is made of the tests themselves, so it says what they say."""

import pytest

from tests.manual.record import Claims


def test_every_row_is_shown_by_a_test(claims: Claims) -> None:
    if not claims.are_whole:
        pytest.skip("only some modules of tests/manual were collected")

    assert claims.missing == []


def test_every_test_shows_one_row_that_no_other_shows(claims: Claims) -> None:
    assert claims.problems == []
