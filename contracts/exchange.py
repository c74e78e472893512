"""Exchanges: the catalog of what exists (``cat_ex_id``), and users' accounts there (``ex_id``)."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from contracts import cache_keys
from contracts.base import Command, Event, View
from contracts.types import Flag, Id, Instant, Name, Text


class CatExchangeView(View):
    """An exchange that exists in the world, a template for accounts."""

    cat_ex_id: Id
    name: str
    ohlcv_view: str
    active: bool
    timestamp: Instant
    row_version: int


class ExchangeView(View):
    """A user's account on an exchange, without its credentials."""

    ex_id: Id
    uid: Id
    cat_ex_id: Id
    ex_name: str
    account: str
    sandbox: bool
    active: bool
    timestamp: Instant
    row_version: int


class InstallExchange(Command[CatExchangeView], name="install_exchange"):
    """Add an exchange to the catalog.

    The same exchange again is answered with the stored one (``meta.duplicate``); with other content it is a
    ``conflict``.
    """

    name: Name
    ohlcv_view: Text = ""
    params: dict[Annotated[Text, Field(min_length=1, max_length=50)], Text] = Field(default_factory=dict)
    """Settings that hold for every account there, by name."""


class AddExchange(Command[ExchangeView], name="add_exchange"):
    """Open a user's account on a catalog exchange. ``conflict`` if the user has one of that name there."""

    uid: Id
    cat_ex_id: Id
    ex_name: Name
    account: Annotated[Text, Field(max_length=50)] = ""
    sandbox: Flag = False
    active: Flag = True


class ExchangeInstalled(Event[CatExchangeView], name="catalog.exchange_installed", key=("cat_ex_id",)):
    """The catalog has a new exchange."""

    @classmethod
    def keys_of(cls, image: CatExchangeView) -> Iterable[str]:  # noqa: ARG003 - the catalog is one entry
        return (cache_keys.exchange_catalog(),)


class ExchangeCreated(Event[ExchangeView], name="exchange.created", key=("ex_id",)):
    """A user has a new account on an exchange."""

    @classmethod
    def keys_of(cls, image: ExchangeView) -> Iterable[str]:
        return (cache_keys.exchanges_of_user(image.uid),)
