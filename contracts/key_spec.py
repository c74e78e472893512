"""How something is cached: under which logical key, how long, and which events make it stale."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import Any, Final, Literal

_ESCAPES: Final = str.maketrans({character: f"%{ord(character):02X}" for character in "%:{}*"})

ANY: Final = "*"
"""Stands in a pattern for every value of a parameter. Parameters themselves are escaped."""


class On:
    """Events that make a key stale."""

    def __init__(self, *events: str, fields: str = "", every: bool = False, **columns: str) -> None:
        """``events`` are wire names; ``columns`` say which field of the image a parameter is, where named otherwise.

        A field that is a list stands for a key for each of its items, and one that is null for none. With ``fields``,
        names separated by spaces, a change of none of these leaves the key as it is. ``every``: whose keys are stale
        cannot be told from the event, so all of the kind are.
        """
        self.events: Final = frozenset(events)
        self.every: Final = every
        self._fields: Final = fields.split()
        self._columns: Final = columns

    def columns(self, parameters: tuple[str, ...]) -> list[str]:
        """The fields of the image that the parameters are."""
        return [self._columns.get(name, name) for name in parameters]

    def values(self, parameters: tuple[str, ...], image: Any) -> Iterator[tuple[Any, ...]]:
        """What the parameters are of each key that depends on a row that looks like ``image``."""
        found = (getattr(image, column) for column in self.columns(parameters))
        yield from product(*([] if each is None else each if isinstance(each, list) else [each] for each in found))

    def matters(self, before: Any, after: Any) -> bool:
        """Whether what changed is among the fields that count."""
        if before is None or after is None or not self._fields:
            return True
        return any(getattr(before, name) != getattr(after, name) for name in self._fields)


SPECS: Final[dict[str, "KeySpec"]] = {}
"""Every kind of key there is, by pattern; filled by `KeySpec` itself."""


@dataclass(frozen=True, eq=False)
class KeySpec:
    """One kind of logical key. Called with its parameters in order, it gives the key."""

    template: str
    """Such as ``symbol:{symbol}:{cat_ex_id}``: parts between colons, each a word or a parameter."""
    stale_on: tuple[On, ...] = ()
    """None for what lives by its time to live alone."""
    ttl: float | None = None
    """Seconds; None for as long as the cache keeps anything."""
    soft_ttl: float = 300.0
    """Seconds after which a reader loads it anew in the background, for changes that had no event."""
    absent_ttl: float = 30.0
    """Seconds that the absence of a value is kept."""
    when_uncertain: Literal["bypass", "serve_stale"] = "bypass"
    """Without a certificate: go around the cache, or be content with what is within its ``soft_ttl``."""
    is_large: bool = False
    """Whether a reader keeps it in its process and only asks the cache whether it is still the same."""
    any_case: bool = False
    """Whether parameters that differ in case only are the same."""
    schema: int = 1
    """Goes up when the same key comes to hold another kind of value."""
    parts: tuple[str, ...] = field(init=False)
    parameters: tuple[str, ...] = field(init=False)
    pattern: str = field(init=False)
    """The template with a star for each parameter: stands in ``stale_keys`` for every key of the kind."""

    def __post_init__(self) -> None:
        parts = tuple(self.template.split(":"))
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "parameters", tuple(part[1:-1] for part in parts if part[0] == "{"))
        object.__setattr__(self, "pattern", ":".join(ANY if part[0] == "{" else part for part in parts))
        if self.pattern in SPECS:
            raise TypeError(f"{self.template} is taken by {SPECS[self.pattern].template}")
        SPECS[self.pattern] = self

    @property
    def events(self) -> frozenset[str]:
        """The wire names of all events that make a key of this kind stale: what its cache has to be bound to."""
        return frozenset(event for on in self.stale_on for event in on.events)

    def __call__(self, *values: str | int) -> str:
        """The logical key about these, escaped, so that ``BTC/USDT:USDT`` cannot be taken for two parts."""
        if len(values) != len(self.parameters):
            raise TypeError(f"{self.template} takes {len(self.parameters)} values, not {len(values)}")
        return self._filled([self._escaped(str(value)) for value in values])

    def stale_keys(self, event: str, before: Any, after: Any) -> Iterator[str]:
        """Keys whose value may be another one after this change; the pattern where they cannot be told."""
        for on in self.stale_on:
            if event in on.events and on.matters(before, after):
                for image in (before, after):
                    if image is not None and on.every:
                        yield self.pattern
                    elif image is not None:
                        yield from (self(*values) for values in on.values(self.parameters, image))

    def stale_templates(self, event: str) -> Iterator[str]:
        """What `stale_keys` gives, with the names of the image's fields in braces."""
        for on in self.stale_on:
            if event in on.events:
                columns = on.columns(self.parameters)
                yield self.pattern if on.every else self._filled([f"{{{column}}}" for column in columns])

    def _filled(self, values: list[str]) -> str:
        given = iter(values)
        return ":".join(next(given) if part[0] == "{" else part for part in self.parts)

    def _escaped(self, value: str) -> str:
        return (value.lower() if self.any_case else value).translate(_ESCAPES)


_PLAIN: Final = KeySpec("{key}")
"""For keys that nobody declared."""
SPECS.clear()


@lru_cache(maxsize=10_000)
def spec_of(key: str) -> KeySpec:
    """How a logical key is cached. Words count for more than parameters: ``user:id:a`` is no ``user:{a}:{b}``."""
    parts = key.split(":")
    fitting = [
        spec
        for spec in SPECS.values()
        if len(spec.parts) == len(parts)
        and all(own in (part, ANY) for own, part in zip(spec.pattern.split(":"), parts, strict=True))
    ]
    return max(fitting, key=lambda spec: len(spec.parts) - len(spec.parameters), default=_PLAIN)
