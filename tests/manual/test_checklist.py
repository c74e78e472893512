"""The record of conformance is whole: it is made of the tests themselves, so it says what they say."""

import pytest

from tests.manual.conftest import Record


def test_every_row_is_shown_by_a_test(record: Record) -> None:
    if not record.is_whole:
        pytest.skip("only some modules of tests/manual were collected")

    assert record.missing == []


def test_every_test_shows_one_row_that_no_other_shows(record: Record) -> None:
    assert record.problems == []
