"""The caches of this service and of others, for whoever changed data behind the service's back."""

from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import Field, model_validator

from contracts.base import Change, Command, Event, View
from contracts.types import STORABLE, Id

CacheKey = Annotated[str, Field(min_length=1, max_length=300), STORABLE]


class InvalidationView(View):
    """Keys that were declared stale, and why these: ``cat_ex_id`` and ``uid`` say whose they are, if anybody's."""

    cat_ex_id: Id | None
    uid: Id | None
    keys: list[str]


class Invalidated(View):
    """How much was declared stale; `cache.invalidated` says what."""

    keys: int


class InvalidateCache(Command[Invalidated], name="invalidate_cache"):
    """Have every subscriber drop cached answers: those under the keys named, or all about an exchange or a user.

    For data that was changed past the service, which announces its own changes by itself. ``not_found`` if there is
    no such exchange or user.
    """

    keys: Annotated[list[CacheKey], Field(min_length=1, max_length=1_000)] | None = None
    """Logical keys, such as ``symbol:BTC/USDT:1``, or all keys of a kind, such as ``exchange:params:*``."""
    cat_ex_id: Id | None = None
    """All keys of this catalog exchange, of its symbols and of accounts there."""
    uid: Id | None = None
    """All keys of this user, of their accounts and of their bots."""

    @model_validator(mode="after")
    def _says_which(self) -> Self:
        if [self.keys, self.cat_ex_id, self.uid].count(None) != 2:  # noqa: PLR2004 - of three
            raise ValueError("one of keys, cat_ex_id and uid says what is stale")
        return self


class CacheInvalidated(Event[InvalidationView], name="cache.invalidated", key=("cat_ex_id", "uid")):
    """Cached answers are to be dropped although no other event says so."""

    @classmethod
    def stale_keys_of(cls, changes: Iterable[Change[InvalidationView]]) -> list[str]:
        """The keys that were named."""
        return list(dict.fromkeys(key for change in changes if change.after is not None for key in change.after.keys))

    @classmethod
    def stale_key_templates(cls) -> list[str]:
        """Whatever was named."""
        return ["{keys}"]
