"""Who handles which command and who answers which lookup. Data only; `consumers` and `lookup_server` act on it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from contracts.base import Command, Lookup, R
from service.inbox import Sent
from service.unit_of_work import UnitOfWork

C = TypeVar("C", bound=Command[Any])
L = TypeVar("L", bound=Lookup[Any])
Q = TypeVar("Q")


@dataclass(frozen=True)
class Existing(Generic[R]):
    """What a handler returns when the command asked for what was there already: no change, no event."""

    answer: R


One = Callable[[Any, UnitOfWork], Awaitable[Any]]
Many = Callable[[Sequence[Any], Sent, UnitOfWork], Awaitable[Mapping[int, Any]]]
Recall = Callable[[int, UnitOfWork], Awaitable[Any]]
"""Gives None for a row that is gone by now."""


@dataclass(frozen=True)
class Handler:
    """How a command is carried out: ``one`` by itself and, where that pays, ``many`` together.

    ``recall`` makes the answer again that one of the many would have got, out of the row it made.
    """

    one: One
    many: Many | None = None
    recall: Recall | None = None

    @property
    def stores_at_once(self) -> bool:
        """Whether ``many`` is one statement, which stores a row for each message and remembers the messages."""
        return self.recall is not None


@dataclass(frozen=True)
class Answer:
    """How a lookup is answered: by ``load``, kept in the cache under ``key`` where it gives one.

    A derived lookup is answered from the answer of another one, ``source``, and shares its cache entry. Where
    ``derive`` gives a lookup, that one is asked next and its answer is the answer.
    """

    load: One | None = None
    key: Callable[[Any], str | None] | None = None
    source: Callable[[Any], Lookup[Any]] | None = None
    derive: Callable[[Any], Any] | None = None
    connects: bool = True
    """Whether there is an answer only if the database can be reached."""


class CommandTable:
    """The handlers of some commands."""

    def __init__(self) -> None:
        self.handlers: dict[type[Command[Any]], Handler] = {}

    def handles(
        self, command: type[Command[R]]
    ) -> Callable[
        [Callable[[Any, UnitOfWork], Awaitable[R | Existing[R]]]],
        Callable[[Any, UnitOfWork], Awaitable[R | Existing[R]]],
    ]:
        """Register a plain function as the handler of ``command``; it stays callable as it is."""

        def register(
            handler: Callable[[Any, UnitOfWork], Awaitable[R | Existing[R]]],
        ) -> Callable[[Any, UnitOfWork], Awaitable[R | Existing[R]]]:
            if command in self.handlers:
                raise TypeError(f"{command.__name__} has two handlers")
            self.handlers[command] = Handler(handler)
            return handler

        return register

    def handles_many(self, command: type[Command[Any]], *, recall: Recall | None = None) -> Callable[[Many], Many]:
        """Register a function that carries out many commands at once that nobody waits for an answer to.

        It is given the commands, their messages and the unit of work, and gives by its position what the handler
        for one would have answered. Those it left alone because they are not plain (known before, wrong, or
        anything else that has to be told apart) go to the handler for one, which alone knows how to refuse.

        One that makes rows which never change does all its work in one statement, so that this can be a transaction
        by itself: it announces the rows, remembers the messages (`service.inbox.remembered`) and gives the ids of
        the rows, out of which ``recall`` makes the answers should somebody ask for them later.

        Commands of different types that are handled so must not depend on each other: those of one type keep their
        order, but all of a type are carried out before those of the next.
        """

        def register(handler: Many) -> Many:
            self.handlers[command] = replace(self.handlers[command], many=handler, recall=recall)
            return handler

        return register


class LookupTable:
    """The answers of some lookups."""

    def __init__(self) -> None:
        self.answers_by_lookup: dict[type[Lookup[Any]], Answer] = {}

    def answers(
        self,
        lookup: type[Lookup[R]],
        *,
        cached_under: Callable[[Any], str | None] | None = None,
        connects: bool = True,
    ) -> Callable[[Callable[[Any, UnitOfWork], Awaitable[R]]], Callable[[Any, UnitOfWork], Awaitable[R]]]:
        """Register a plain function that answers ``lookup``, and under which key its answer may be cached.

        A key of None is for a question whose answer is not cached. A function that ``connects`` is called within a
        transaction; another one is given a session that has not looked yet whether there is a database.
        """

        def register(load: Callable[[Any, UnitOfWork], Awaitable[R]]) -> Callable[[Any, UnitOfWork], Awaitable[R]]:
            self._add(lookup, Answer(load=load, key=cached_under, connects=connects))
            return load

        return register

    def derives(
        self, lookup: type[Lookup[R]], source: Callable[[Any], Lookup[Q]]
    ) -> Callable[[Callable[[Q], R | Lookup[R]]], Callable[[Q], R | Lookup[R]]]:
        """Register a plain function that makes the answer of ``lookup`` out of the answer of ``source(lookup)``.

        It may give another lookup instead, which is asked next.
        """

        def register(derive: Callable[[Q], R | Lookup[R]]) -> Callable[[Q], R | Lookup[R]]:
            self._add(lookup, Answer(source=source, derive=derive))
            return derive

        return register

    def _add(self, lookup: type[Lookup[Any]], answer: Answer) -> None:
        if lookup in self.answers_by_lookup:
            raise TypeError(f"{lookup.__name__} has two answers")
        self.answers_by_lookup[lookup] = answer
