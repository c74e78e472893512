"""Users: who owns accounts and bots."""

import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, Field

from contracts import cache_keys
from contracts.base import Command, Event, View
from contracts.types import Flag, Id, Instant, Mail, Role, Text

_HASH_SHAPES = re.compile(r"(\$argon2id\$\S+|\$2[aby]\$\d{2}\$\S{53}|[0-9a-f]{64})\Z")


def _is_a_hash(value: str) -> str:
    if not _HASH_SHAPES.match(value):
        raise ValueError("must be a password hash (argon2id, bcrypt, or 64 hex digits); never send a password itself")
    return value


PasswordHash = Annotated[str, Field(max_length=255), AfterValidator(_is_a_hash)]
"""A password as argon2id, bcrypt or (legacy) SHA-256 in hex left it."""


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
    external_id: str | None
    active: bool
    timestamp: Instant
    row_version: int


class AddUser(Command[UserView], name="add_user"):
    """Register a user. ``conflict`` if the mail address (in any case) or the external id is taken."""

    mail: Mail
    password_hash: PasswordHash | None = None
    role: Role = "USER"
    name: Annotated[Text, Field(max_length=50)] = ""
    lastname: Annotated[Text, Field(max_length=50)] = ""
    phone: Annotated[Text, Field(max_length=20)] = ""
    id_num: Annotated[Text, Field(max_length=15)] = ""
    note: Text | None = None
    manager: Id | None = None
    external_id: Annotated[Text, Field(min_length=1, max_length=64)] | None = None
    active: Flag = True


class UserCreated(Event[UserView], name="user.created", key=("uid",)):
    """A user was registered."""

    @classmethod
    def keys_of(cls, image: UserView) -> Iterable[str]:
        return (cache_keys.user(image.uid), cache_keys.user_id(image.mail))
