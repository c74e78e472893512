"""Who may send what: the role of each login, and whose data it may name.

RabbitMQ checks that the property ``user_id`` is the login of the connection, and (deploy/permissions.py) which
commands a login may publish. What is left is decided here, where bodies are read: whose data a request names.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from pydantic import BaseModel
from sqlalchemy import Select, literal, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from contracts.base import Command, Lookup, Request
from contracts.errors import ErrorCode, Refusal
from contracts.exchange import GetExchangeCatalog, GetExchangeCredentials, GetSealingKey
from contracts.simulation import SaveSimulation
from contracts.strategy import GetCatStrategies, GetCatStrategiesParams, GetCatStrategy, GetCatStrId
from contracts.symbol import (
    AddSymbol,
    AddSymbols,
    GetAllSymbols,
    GetDecimals,
    GetIdBySymbol,
    GetSymbol,
    GetSymbolById,
    GetSymbolsByExchange,
    SearchSymbols,
    SymbolExists,
)
from contracts.tick import GetTicks
from contracts.topology import Lane
from service.config import Settings, SettingsError
from service.models import Bot, Exchange, Order, Simulation, Strategy, Trade

Kind = type[Request[Any]]


def _reads(kind: Kind) -> bool:
    return issubclass(kind, Lookup) and not kind.restricted


def _trades(kind: Kind) -> bool:
    if issubclass(kind, Command):
        return kind.lane in (Lane.TRADING, Lane.BOT_LOGS) or kind in (SaveSimulation, AddSymbol, AddSymbols)
    return _reads(kind)


ROLES: Final[Mapping[str, Callable[[Kind], bool]]] = {
    # Sets everything up, lets users in, and answers for whom it does that.
    "admin": lambda _: True,
    # Orders, trades, logs, simulations and symbols, and lookups without secrets.
    "bot": _trades,
    # The same, and the credentials of accounts.
    "trader": lambda kind: _trades(kind) or kind is GetExchangeCredentials,
    # Lookups without secrets.
    "reader": _reads,
}
"""What a login of each role may send."""

NOBODYS: Final[frozenset[Kind]] = frozenset(
    {
        *(AddSymbol, AddSymbols, GetAllSymbols, GetDecimals, GetIdBySymbol, GetSymbol, GetSymbolById),
        *(GetSymbolsByExchange, SearchSymbols, SymbolExists, GetTicks),
        *(GetExchangeCatalog, GetSealingKey),
        *(GetCatStrategies, GetCatStrategiesParams, GetCatStrategy, GetCatStrId),
    }
)
"""Requests about what belongs to no user, such as the symbols of an exchange."""


def _owned(key: InstrumentedAttribute[int], by_bot: InstrumentedAttribute[int] | None) -> Select[Any]:
    owner = key.class_.uid if by_bot is None else Bot.uid
    rows = select(literal(key.key).label("name"), key.label("id"), owner.label("uid"))
    return rows if by_bot is None else rows.join(Bot, Bot.bot_id == by_bot)


# How a request names what belongs to a user, and where one reads whose it is.
_KEYS: Final[Mapping[str, tuple[InstrumentedAttribute[int], InstrumentedAttribute[int] | None]]] = {
    "bot_id": (Bot.bot_id, None),
    "ex_id": (Exchange.ex_id, None),
    "order_id": (Order.order_id, None),
    "trade_id": (Trade.trade_id, None),
    "str_id": (Strategy.str_id, Strategy.bot_id),
    "simulation_id": (Simulation.simulation_id, Simulation.bot_id),
}
_NAMES: Final = {"uid": "uid", "bot_ids": "bot_id", **{name: name for name in _KEYS}}


@dataclass(frozen=True)
class Sender:
    """A login: what it may send, and about whom."""

    role: str
    uids: frozenset[int] | None = None
    """The users whose data it may name; None for everybody's."""


class Senders:
    """The logins that may send anything. Without any, everybody may who is let in by the broker."""

    def __init__(self, senders: Mapping[str, Sender] | None = None) -> None:
        self._senders = senders or {}

    @property
    def are_limited(self) -> bool:
        """Whether there is anything to judge."""
        return bool(self._senders)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Those of the setting ``SENDERS``; raises `SettingsError` for what is none."""
        senders = {}
        for number, entry in enumerate((settings.senders or "").replace(",", " ").split(), 1):
            login, _, rest = entry.partition(":")
            role, _, uids = rest.partition(":")
            if not login or login in senders or role not in ROLES or not (uids == "" or _are_ids(uids)):
                raise SettingsError(
                    f"SENDERS: entry {number} must be login:role or login:role:uid+uid, each login once; "
                    f"roles are {', '.join(ROLES)}"
                )
            senders[login] = Sender(role, frozenset(map(int, uids.split("+"))) if uids else None)
        return cls(senders)

    async def judge(
        self, session: AsyncSession, asked: Sequence[tuple[str | None, Request[Any]]]
    ) -> list[Refusal | None]:
        """Why each of these requests, with its login, is not let through; None for those that are.

        One query for all of them, and none if nobody is limited to some users.
        """
        if not self.are_limited:
            return [None] * len(asked)
        refusals = [self._by_role(login, request) for login, request in asked]
        named = {
            place: (sender.uids, dict(_named(request)))
            for place, (login, request) in enumerate(asked)
            if refusals[place] is None
            and (sender := self._senders[login or ""]).uids is not None
            and type(request) not in NOBODYS
        }
        owners = await _owners(session, [names for _, names in named.values()])
        for place, (uids, names) in named.items():
            refusals[place] = _by_owner(uids or frozenset(), names, owners)
        return refusals

    def _by_role(self, login: str | None, request: Request[Any]) -> Refusal | None:
        sender = self._senders.get(login or "")
        if login is None:
            reason = "is required: the login the message is sent with"
        elif sender is None:
            reason = "is a login that may send nothing"
        elif not ROLES[sender.role](type(request)):
            reason = f"is the login of a {sender.role}, which may not send {request.wire_name}"
        else:
            return None
        return Refusal(ErrorCode.FORBIDDEN, reason, field="user_id")


def _are_ids(text: str) -> bool:
    return all(part.isascii() and part.isdigit() for part in text.split("+"))


def _named(part: BaseModel, path: str = "") -> Iterator[tuple[tuple[str, str], frozenset[int]]]:
    """What of users' a request names: where it stands, what kind of thing it is, and the ids."""
    for name in type(part).model_fields:
        value = getattr(part, name)
        if name in _NAMES and value is not None:
            ids = value if isinstance(value, list) else [value]
            yield (f"{path}{name}", _NAMES[name]), frozenset(ids)
        elif isinstance(value, BaseModel):
            yield from _named(value, f"{path}{name}.")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from _named(item, f"{path}{name}.{index}.")


Names = Mapping[tuple[str, str], frozenset[int]]
Owners = Mapping[tuple[str, int], int]


async def _owners(session: AsyncSession, named: Iterable[Names]) -> Owners:
    ids: dict[str, set[int]] = {}
    for names in named:
        for (_, kind), some in names.items():
            ids.setdefault(kind, set()).update(some)
    owners = {("uid", uid): uid for uid in ids.pop("uid", ())}
    queries = [_owned(*_KEYS[kind]).where(_KEYS[kind][0].in_(some)) for kind, some in ids.items()]
    if queries:
        owners |= {(row.name, row.id): row.uid for row in await session.execute(union_all(*queries))}
    return owners


def _by_owner(uids: frozenset[int], names: Names, owners: Owners) -> Refusal | None:
    """What is not there is not told from what is another's."""
    for (path, kind), ids in names.items():
        if not {owners.get((kind, each)) for each in ids} <= uids:
            return Refusal(ErrorCode.FORBIDDEN, "is nothing that this login may name", field=path)
    if not any(names.values()):
        return Refusal(ErrorCode.FORBIDDEN, "may ask only about users of its own, and must name one", field="user_id")
    return None
