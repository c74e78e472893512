"""What a key looks like, which kind it is of, and what an event makes stale follows from one declaration."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from contracts import cache_keys, key_spec
from contracts.certificate import UNCERTIFIED, name_of
from contracts.key_spec import KeySpec, On, spec_of


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kinds of keys may be declared that are gone after the test."""
    monkeypatch.setattr(key_spec, "SPECS", {})
    spec_of.cache_clear()
    yield
    spec_of.cache_clear()


def row(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**fields)


@pytest.mark.parametrize("spec", key_spec.SPECS.values(), ids=lambda spec: spec.template)
def test_a_key_knows_its_kind(spec: KeySpec) -> None:
    key = spec(*(f"A:{{*}}%{number}" for number in range(len(spec.parameters))))

    assert spec_of(key) is spec
    assert "*" not in key
    assert len(key.split(":")) == len(spec.parts)


def test_parameters_cannot_be_taken_for_parts() -> None:
    assert cache_keys.symbol("A:1", 2) != cache_keys.symbol("A", 12)
    assert cache_keys.symbol("*", 2) != cache_keys.symbol.pattern
    assert cache_keys.user_id("Ada@Example.org") == cache_keys.user_id("ada@example.org")
    with pytest.raises(TypeError, match="takes 2 values, not 1"):
        cache_keys.symbol("A")


def test_a_key_that_nobody_declared_is_a_plain_one() -> None:
    assert spec_of("one:of:my:own") is spec_of("another")
    assert spec_of("another").stale_on == ()


def test_the_epoch_of_a_kind_is_part_of_the_names_of_that_kind_only() -> None:
    bumped = UNCERTIFIED.model_copy(update={"epoch": 7, "spec_epochs": {"exchange:params:*": 2}})

    assert name_of("web", cache_keys.exchange_params(1), bumped) == "c:web:7.2:1:exchange:params:1"
    assert name_of("web", cache_keys.exchange_catalog(), bumped) == "c:web:7:1:exchange:catalog"


class TestWhatAnEventMakesStale:
    def test_is_said_of_the_old_image_and_of_the_new_one(self, others: None) -> None:
        spec = KeySpec("thing:{name}:{owner}", (On("thing.changed", owner="uid"),))

        stale = list(spec.stale_keys("thing.changed", row(name="a", uid=1), row(name="b", uid=2)))

        assert stale == ["thing:a:1", "thing:b:2"]
        assert list(spec.stale_keys("thing.other", row(name="a", uid=1), None)) == []

    def test_is_a_key_for_each_item_of_a_list_and_none_for_null(self, others: None) -> None:
        spec = KeySpec("thing:{id}", (On("thing.changed", id="ids"),))

        assert list(spec.stale_keys("thing.changed", None, row(ids=[1, 2]))) == ["thing:1", "thing:2"]
        assert list(spec.stale_keys("thing.changed", None, row(ids=None))) == []

    def test_depends_on_the_fields_that_count(self, others: None) -> None:
        spec = KeySpec("size:{id}", (On("thing.changed", fields="size"),))

        def stale(before: Any, after: Any) -> list[str]:
            return list(spec.stale_keys("thing.changed", before, after))

        assert stale(row(id=1, size=1, name="a"), row(id=1, size=1, name="b")) == []
        assert set(stale(row(id=1, size=1), row(id=1, size=2))) == {"size:1"}
        assert stale(None, row(id=1, size=1)) == ["size:1"]
        assert stale(row(id=1, size=1), None) == ["size:1"]

    def test_is_the_whole_kind_where_it_cannot_be_told(self, others: None) -> None:
        spec = KeySpec("thing:{id}:{name}", (On("catalog.changed", every=True),))

        assert set(spec.stale_keys("catalog.changed", row(), row())) == {"thing:*:*"}
        assert list(spec.stale_templates("catalog.changed")) == ["thing:*:*"]

    def test_is_taken_once(self, others: None) -> None:
        KeySpec("thing:{id}")
        with pytest.raises(TypeError, match=r"thing:\{other\} is taken by thing:\{id\}"):
            KeySpec("thing:{other}")
