"""Exchanges: the catalog of what exists (``cat_ex_id``), and users' accounts there (``ex_id``)."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from contracts.base import Command, Event, Lookup, Part, Updates, View
from contracts.sealing import ParamName, PublicKey, Sealed
from contracts.types import STORABLE, Flag, Id, Instant, Name, Text

CREDENTIAL_FIELDS = ("api_key", "api_secret", "passphrase")
"""What an account's credentials consist of."""


AccountName = Annotated[str, Field(max_length=50), STORABLE]
ParamValue = Annotated[str, Field(max_length=4_096), STORABLE]


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
    has_credentials: bool
    """Whether credentials are stored for it; `GetExchangeCredentials` gives them out."""
    timestamp: Instant
    row_version: int


class ExchangeParamsView(View):
    """The settings of a catalog exchange, or those that one account sets for itself."""

    cat_ex_id: Id
    ex_id: Id | None
    """The account; null for the settings of the catalog exchange."""
    params: dict[str, str]
    row_version: int
    """The version of the catalog exchange, or of the account."""


class ExchangeParamsChange(ExchangeParamsView):
    """Settings, and whom they concern."""

    uid: Id | None
    """The owner of the account; null for a catalog exchange."""
    accounts: list[Id]
    """The accounts whose settings these are part of."""


class ExchangeCredentials(View):
    """The credentials of an account, each sealed for the asker. They are part of no event and no cache."""

    ex_id: Id
    uid: Id
    """The owner, as whose field each of them is sealed."""
    api_key: Sealed | None
    api_secret: Sealed | None
    passphrase: Sealed | None


class SealingKeyView(View):
    """What secrets are to be sealed with."""

    key_id: str
    """How sealed secrets name the key."""
    public_key: str


class ExchangeDeletion(View):
    """What went with an account."""

    ex_id: Id
    orders: int
    trades: int


class InstallExchange(Command[CatExchangeView], name="install_exchange"):
    """Add an exchange to the catalog.

    The same exchange again is answered with the stored one (``meta.duplicate``); with other content it is a
    ``conflict``.
    """

    name: Name
    ohlcv_view: Text = ""
    params: dict[ParamName, ParamValue] = Field(default_factory=dict)
    """Settings that hold for every account there, by name."""


class AccountFields(Part):
    """What one says of an account to open one, apart from whose it is and its credentials."""

    cat_ex_id: Id
    ex_name: Name
    account: AccountName = ""
    sandbox: Flag = False
    active: Flag = True


class AddExchange(AccountFields, Command[ExchangeView], name="add_exchange"):
    """Open a user's account on a catalog exchange.

    ``conflict`` if the user has one of that name there, ``not_found`` without such a user or exchange. Credentials
    are sealed as fields of the user ``uid``; a plain one is refused.
    """

    uid: Id
    api_key: Sealed | None = None
    api_secret: Sealed | None = None
    passphrase: Sealed | None = None


class ExchangeUpdates(Updates):
    """The fields to change; those left out stay as they are."""

    never_null = frozenset({"uid", "ex_name", "account", "sandbox", "active"})

    uid: Id | None = None
    """Another owner. Credentials that are not sent anew, sealed for the new owner, are forgotten."""
    ex_name: Name | None = None
    account: AccountName | None = None
    api_key: Sealed | None = None
    """Sealed as a field of the owner, like the other two; null takes it away."""
    api_secret: Sealed | None = None
    passphrase: Sealed | None = None
    sandbox: Flag | None = None
    active: Flag | None = None


class UpdateExchange(Command[ExchangeView], name="update_exchange"):
    """Change an account.

    ``conflict`` if the user has another one of that name there, if ``expected_version`` is not the account's
    version, if an account with orders, trades or bots should change its owner, or if a bot that is active and live
    would be left without credentials.
    """

    ex_id: Id
    updates: ExchangeUpdates
    expected_version: Id | None = None


class DeleteExchange(Command[ExchangeDeletion], name="delete_exchange"):
    """Delete an account with its credentials, settings, orders and trades.

    ``conflict`` while it has open orders or an active bot trades there for real, unless ``force``.
    """

    ex_id: Id
    force: Flag = False
    expected_version: Id | None = None


class SetExchangeParams(Command[ExchangeParamsView], name="set_exchange_params"):
    """Set some settings of a catalog exchange, for all accounts there, or of one account, for itself alone.

    What is not named stays as it is; null takes a setting away, and an account's way to the catalog's value back.
    """

    cat_ex_id: Id | None = None
    ex_id: Id | None = None
    params: Annotated[dict[ParamName, ParamValue | None], Field(min_length=1, max_length=200)]
    expected_version: Id | None = None

    @model_validator(mode="after")
    def _names_one_thing(self) -> Self:
        if (self.cat_ex_id is None) == (self.ex_id is None):
            raise ValueError("one of cat_ex_id and ex_id is required")
        return self


class GetExchange(Lookup[ExchangeView | None], name="get_exchange"):
    """An account by id; null if there is none."""

    ex_id: Id


class GetExchangesByUser(Lookup[list[ExchangeView]], name="get_exchanges_by_user"):
    """A user's accounts, oldest first; empty if there are none."""

    uid: Id


class GetExchangeParams(Lookup[dict[str, str] | None], name="get_exchange_params"):
    """The settings of an account: its catalog exchange's, and over them its own; null without such an account."""

    ex_id: Id


class GetExchangeCatalog(Lookup[list[CatExchangeView]], name="get_exchange_catalog"):
    """All exchanges of the catalog by name."""


class GetActiveExchanges(Lookup[list[ExchangeView]], name="get_active_exchanges"):
    """All accounts that are active, of all users, oldest first."""


class GetExchangeCredentials(Lookup[ExchangeCredentials | None], name="get_exchange_credentials", restricted=True):
    """The credentials of an account, sealed for the asker; null if it has none. Never cached.

    Where the service wants to know its senders, it answers only with the property ``user_id``.
    """

    ex_id: Id
    public_key: PublicKey
    """The asker's own. Only its private key opens the answer."""


class GetSealingKey(Lookup[SealingKeyView | None], name="get_sealing_key"):
    """The public key that secrets for the service are sealed with; null if it takes none.

    Whoever can answer lookups in the service's place could give another one: take it from the configuration where
    the broker is not trusted that far.
    """


class ExchangeInstalled(Event[CatExchangeView], name="catalog.exchange_installed", key=("cat_ex_id",)):
    """The catalog has a new exchange."""


class ExchangeCreated(Event[ExchangeView], name="exchange.created", key=("ex_id",)):
    """A user has a new account on an exchange."""


class ExchangeUpdated(Event[ExchangeView], name="exchange.updated", key=("ex_id",)):
    """An account changed, or its credentials did."""


class ExchangeDeleted(Event[ExchangeView], name="exchange.deleted", key=("ex_id",)):
    """An account is gone, with its orders, trades, balances, positions and history.

    That bots used it, that feeds took its prices, and its dry trades are announced by events of their own.
    """


class ExchangeParamsChanged(Event[ExchangeParamsChange], name="exchange.params_changed", key=("cat_ex_id", "ex_id")):
    """Settings changed, of one account or of all accounts of a catalog exchange.

    For very many accounts there are several changes, each naming some of them.
    """
