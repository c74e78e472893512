"""Users: who owns accounts and bots."""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from contracts.base import Command, Event, Lookup, Part, Updates, View
from contracts.bot import BotView
from contracts.sealing import PublicKey, Sealed
from contracts.types import STORABLE, Cursor, Flag, Id, Instant, Limit, Mail, Page, Role, Text

_HASH_SHAPES = re.compile(r"(\$argon2id\$\S+|\$2[aby]\$\d{2}\$\S{53}|[0-9a-f]{64})\Z")


def is_password_hash(value: str) -> bool:
    """Whether a text looks like a password that was hashed."""
    return _HASH_SHAPES.match(value) is not None


def _is_a_hash(value: str) -> str:
    if not is_password_hash(value):
        raise ValueError("must be a password hash (argon2id, bcrypt, or 64 hex digits); never send a password itself")
    return value


PasswordHash = Annotated[str, Field(max_length=255), AfterValidator(_is_a_hash)]
"""A password as argon2id, bcrypt or (legacy) SHA-256 in hex left it."""
PersonName = Annotated[str, Field(max_length=50), STORABLE]
Phone = Annotated[str, Field(max_length=20), STORABLE]
IdNumber = Annotated[str, Field(max_length=15), STORABLE]
ExternalId = Annotated[str, Field(min_length=1, max_length=64), STORABLE]


class UserView(View):
    """A user without password and second factor."""

    uid: Id
    mail: str
    role: Role
    name: str
    lastname: str
    phone: str
    id_num: str
    note: str | None
    manager: Id | None
    """The user who manages this one."""
    external_id: str | None
    """The user's id in another system."""
    active: bool
    timestamp: Instant
    row_version: int


class UserWithBotsView(UserView):
    """A user with the bots that belong to them."""

    bots: list[BotView]


class UserRef(View):
    """Which user, and nothing about them."""

    uid: Id
    row_version: int


class UserCredentials(View):
    """What is needed to let a user in. It is handed out by one lookup, and is part of no event and no cache."""

    uid: Id
    password_hash: str | None = Field(repr=False)
    """Null for a user who cannot log in with a password."""
    f2a: Sealed | None
    """The secret of the second factor, sealed for the public key of the question; null without either."""
    role: Role
    active: bool


class UsersPage(View):
    """Some users of a list."""

    users: list[UserView]
    next_cursor: str | None
    """Where the list goes on; null at its end."""


class UserDeletion(View):
    """What went with a user."""

    uid: Id
    bots: int
    exchanges: int
    orders: int
    trades: int


class UserFields(Part):
    """What one says of a user to register one."""

    mail: Mail
    password_hash: PasswordHash | None = Field(default=None, repr=False)
    role: Role = "USER"
    name: PersonName = ""
    lastname: PersonName = ""
    phone: Phone = ""
    id_num: IdNumber = ""
    note: Text | None = None
    manager: Id | None = None
    external_id: ExternalId | None = None
    active: Flag = True


class AddUser(UserFields, Command[UserView], name="add_user"):
    """Register a user. ``conflict`` if the mail address (in any case) or the external id is taken."""


class UserUpdates(Updates):
    """The fields to change; those left out stay as they are."""

    never_null = frozenset({"mail", "role", "name", "lastname", "phone", "id_num", "active"})

    mail: Mail | None = None
    role: Role | None = None
    name: PersonName | None = None
    lastname: PersonName | None = None
    phone: Phone | None = None
    id_num: IdNumber | None = None
    note: Text | None = None
    manager: Id | None = None
    external_id: ExternalId | None = None
    f2a: Sealed | None = None
    """The secret of the second factor, sealed for the service as field ``f2a`` of this user; null takes it away."""
    active: Flag | None = None


class ModifyUser(Command[UserView], name="modify_user"):
    """Change a user.

    ``conflict`` if the mail address or external id is taken or ``expected_version`` is not the user's version;
    ``not_found`` without such a user or manager.
    """

    uid: Id
    updates: UserUpdates
    expected_version: Id | None = None


class UpdatePassword(Command[UserView], name="update_password"):
    """Give a user another password, hashed by the sender. ``not_found`` without such a user."""

    uid: Id
    password_hash: PasswordHash = Field(repr=False)
    expected_version: Id | None = None


class SetUserActive(Command[UserView], name="set_user_active"):
    """Allow or forbid a user to do anything. ``not_found`` without such a user."""

    uid: Id
    active: Flag
    """What the user shall be; sending it again changes nothing."""
    expected_version: Id | None = None


class ToggleActive(SetUserActive, Command[UserView], name="toggle_active"):
    """The same as ``set_user_active``, under the name of the library's method. It sets and does not flip."""


class DeleteUser(Command[UserDeletion], name="delete_user"):
    """Delete a user with all accounts, bots, orders and trades.

    ``conflict`` while the user has open orders or an active bot that trades for real, unless ``force``; mostly
    ``set_user_active`` is what is wanted. Users managed by this one are managed by nobody then.
    """

    uid: Id
    force: Flag = False
    expected_version: Id | None = None


class GetUser(Lookup[UserView | None], name="get_user"):
    """A user by id; null if there is none."""

    uid: Id


class GetUserByEmail(Lookup[UserView | None], name="get_user_by_email"):
    """A user by mail address, in any case; null if there is none."""

    mail: Mail


class GetUserId(Lookup[int | None], name="get_user_id"):
    """A user's id by mail address, in any case; null if there is none."""

    mail: Mail


class GetUserCredentials(Lookup[UserCredentials | None], name="get_user_credentials", restricted=True):
    """What is needed to let the user with this mail address in; null if there is none. Never cached.

    Where the service wants to know its senders, it answers only with the property ``user_id``.
    """

    mail: Mail
    public_key: PublicKey | None = None
    """The asker's own, for the second factor to be sealed with; without one it is null in the answer."""


class SearchUsers(Lookup[list[UserView]], name="search_users"):
    """Users who have the words of ``query`` somewhere in name, mail address, external id, phone or id number."""

    query: Annotated[str, Field(min_length=1, max_length=100), STORABLE]
    """Taken as it stands, in any case: ``%`` and ``_`` mean themselves."""
    limit: Limit = 100


class _ListOfUsers(Lookup[UsersPage]):
    page: Page = 1
    page_size: Limit = 100
    cursor: Cursor | None = None
    """Goes on where the answer before ended, whatever was added or deleted meanwhile; instead of ``page``."""

    @model_validator(mode="after")
    def _names_one_place(self) -> Self:
        if self.cursor is not None and self.page != 1:
            raise ValueError("page and cursor cannot be given together")
        return self


class GetUserList(_ListOfUsers, name="get_user_list"):
    """Users by id, a page at a time."""

    manager_id: Id | None = None
    """Only those managed by this user."""


class GetActiveUsers(_ListOfUsers, name="get_active_users"):
    """Users who are active by id, a page at a time."""


class GetUserWithBots(Lookup[UserWithBotsView | None], name="get_user_with_bots"):
    """A user with all bots; null if there is no such user."""

    uid: Id


class UserCreated(Event[UserView], name="user.created", key=("uid",)):
    """A user was registered."""


class UserUpdated(Event[UserView], name="user.updated", key=("uid",)):
    """What is known of a user changed."""


class UserPasswordChanged(Event[UserRef], name="user.password_changed", key=("uid",)):
    """A user has another password; sessions that were opened with the old one should end."""


class UserDeleted(Event[UserView], name="user.deleted", key=("uid",)):
    """A user is gone, with orders and trades; accounts and bots, and what is theirs, have events of their own."""
