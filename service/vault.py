"""Credentials: opened here and nowhere else, kept encrypted, given out sealed for who asks.

A secret comes in sealed for the service (contracts.sealing), is stored as ``v1:<key id>:<base64 of nonce, ciphertext
and tag>`` under a storage key (AES-256-GCM, a random nonce each time), and leaves sealed for the asker. What is
stored is bound to table, row, owner, field and key, so that it does not open in another place. Between coming in and
being stored, and again between being read and given out, it is plain for a moment in memory; in no return value,
exception or log.
"""

import base64
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.errors import ErrorCode, Refusal
from contracts.sealing import key_bytes, key_id_in, key_id_of, public_key_of, seal, unseal
from service.config import LibrarySettings, SettingsError

_IN_SESSION: Final = "vault"
_NONCE_BYTES: Final = 12
_KEY_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
_STORED: Final = re.compile(r"v1:([A-Za-z0-9_-]{1,32}):([A-Za-z0-9+/=]+)")


class Place(NamedTuple):
    """Where a secret is kept, and whose it is."""

    table: str
    row: int
    uid: int
    field: str


class Renewal(NamedTuple):
    """What became of some stored secrets when the storage key changed."""

    last: int | None
    """The id of the last row looked at; None if there was none."""
    seen: int
    renewed: int
    unreadable: list[int]
    """Ids of rows whose secrets could not be read."""


class NotReadable(Exception):  # noqa: N818 - what a caller makes of it is its own affair
    """A stored secret cannot be read: its key is not among the storage keys, or it was changed or moved."""


class Vault:
    """The keys of the service, and what can be done with them. Without keys it refuses, naming the setting."""

    def __init__(self, sealing_keys: Sequence[str] = (), storage_keys: Mapping[str, bytes] | None = None) -> None:
        """The first of each is the present one; the others still open what was made with them."""
        self._opening = {key_id_of(public_key_of(key)): key for key in sealing_keys}
        self._ciphers = {key_id: AESGCM(key) for key_id, key in (storage_keys or {}).items()}
        self._storage_key_ids = tuple(self._ciphers)
        self.public_key = public_key_of(sealing_keys[0]) if sealing_keys else None
        """What senders seal with."""

    @classmethod
    def of(cls, settings: LibrarySettings) -> Self:
        """The vault with the keys of these settings; raises `SettingsError` for keys that are none."""
        sealing = _lines("SEALING_KEY", settings.sealing_key, settings.sealing_key_file)
        storage = _lines("STORAGE_KEYS", settings.storage_keys, settings.storage_keys_file)
        keys: dict[str, bytes] = {}
        for number, line in enumerate(storage, 1):
            key_id, _, key = line.partition(":")
            if not key or not _KEY_ID.fullmatch(key_id) or key_id in keys:
                raise SettingsError(f"STORAGE_KEYS: entry {number} must be id:key, with an id of its own")
            keys[key_id] = _key("STORAGE_KEYS", number, key)
        for number, line in enumerate(sealing, 1):
            _key("SEALING_KEY", number, line)
        return cls(sealing, keys)

    @property
    def storage_key_id(self) -> str:
        """The id of the present storage key."""
        if not self._storage_key_ids:
            raise _missing("STORAGE_KEYS_FILE", "stored")
        return self._storage_key_ids[0]

    def take_in(self, sealed: str, place: Place) -> str:
        """What to store for a secret that came sealed; ``validation`` names the field if it is not sealed for us."""
        try:
            key_id = key_id_in(sealed)
        except (ValueError, TypeError) as error:
            raise Refusal(ErrorCode.VALIDATION, str(error), field=place.field) from None
        if not self._opening:
            raise _missing("SEALING_KEY_FILE", "opened", place.field)
        if key_id not in self._opening:
            raise Refusal(
                ErrorCode.VALIDATION, "is sealed for another key; ask get_sealing_key for ours", field=place.field
            )
        if not self._storage_key_ids:
            raise _missing("STORAGE_KEYS_FILE", "stored", place.field)
        try:
            secret = unseal(sealed, self._opening[key_id], uid=place.uid, field=place.field)
        except ValueError as error:
            raise Refusal(ErrorCode.VALIDATION, str(error), field=place.field) from None
        return self._encrypt(secret.encode(), place)

    def give_out(self, stored: str, place: Place, public_key: str) -> str:
        """A stored secret, sealed for the holder of ``public_key``."""
        if not self._storage_key_ids:
            raise _missing("STORAGE_KEYS_FILE", "read", place.field)
        try:
            secret = self._decrypt(stored, place).decode()
        except NotReadable as error:
            raise Refusal(ErrorCode.UNAVAILABLE, str(error), field=place.field) from None
        try:
            return seal(secret, public_key, uid=place.uid, field=place.field)
        except ValueError:
            # A public key that gives no shared secret with anybody.
            raise Refusal(ErrorCode.VALIDATION, "is no key that can be sealed for", field="public_key") from None

    def renew(self, stored: str, place: Place) -> str:
        """The same secret under the present storage key; raises `NotReadable`."""
        return stored if self.is_current(stored) else self._encrypt(self._decrypt(stored, place), place)

    def is_current(self, stored: str) -> bool:
        """Whether a secret is stored under the present storage key."""
        return stored.startswith(f"v1:{self.storage_key_id}:")

    def _encrypt(self, secret: bytes, place: Place) -> str:
        key_id = self.storage_key_id
        nonce = os.urandom(_NONCE_BYTES)
        data = nonce + self._ciphers[key_id].encrypt(nonce, secret, _associated(place, key_id))
        return f"v1:{key_id}:{base64.b64encode(data).decode()}"

    def _decrypt(self, stored: str, place: Place) -> bytes:
        parts = _STORED.fullmatch(stored)
        key_id = parts[1] if parts else ""
        if parts is None or key_id not in self._ciphers:
            raise NotReadable(f"is stored under the key {key_id!r}, which is not among STORAGE_KEYS")
        try:
            data = base64.b64decode(parts[2], validate=True)
            return self._ciphers[key_id].decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], _associated(place, key_id))
        except (InvalidTag, ValueError):
            raise NotReadable("was changed or moved outside of the service, or its key is another one now") from None


def vault_of(session: AsyncSession) -> Vault:
    """The vault that was given to whoever made the session; one without keys if none was."""
    vault: Vault = session.info.get(_IN_SESSION) or Vault()
    return vault


def with_vault(vault: Vault | None) -> dict[str, object]:
    """The ``info`` of sessions that shall have this vault."""
    return {} if vault is None else {_IN_SESSION: vault}


def _associated(place: Place, key_id: str) -> bytes:
    return "|".join(("v1", place.table, str(place.row), str(place.uid), place.field, key_id)).encode()


def _missing(setting: str, what: str, field: str | None = None) -> Refusal:
    return Refusal(
        ErrorCode.UNAVAILABLE,
        f"secrets cannot be {what} here: {setting} is not set (`persistence keygen` makes keys)",
        field=field,
        retryable=True,
    )


def _lines(setting: str, value: SecretStr | None, file: Path | None) -> list[str]:
    """The keys of a setting, from the environment or from its file: one a line, or separated by commas."""
    if value is not None and file is not None:
        raise SettingsError(f"{setting}: is set, and so is {setting}_FILE; set one of them")
    if file is not None:
        try:
            text = file.read_text()
        except (OSError, ValueError) as error:
            raise SettingsError(f"{setting}_FILE: cannot be read: {type(error).__name__}") from None
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        if not any(line.strip() for line in lines):
            raise SettingsError(f"{setting}_FILE: holds no key; make some with `persistence keygen`")
        return " ".join(lines).replace(",", " ").split()
    return value.get_secret_value().replace(",", " ").split() if value is not None else []


def _key(setting: str, number: int, key: str) -> bytes:
    try:
        return key_bytes(key)
    except ValueError as error:
        raise SettingsError(f"{setting}: key {number} {error}") from None
