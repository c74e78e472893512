"""Secrets on their way: sealed by who sends them, readable only for whom they are meant (extra ``seal``).

A sealed secret is the text ``sealed.v1.<key id>.<data>``: the key id is the first 16 hex digits of the SHA-256 of the
recipient's public key, the data is URL-safe base64 without padding of an ephemeral X25519 public key (32 bytes) and
after it ciphertext and tag of AES-256-GCM, where

    shared      = X25519(ephemeral private key, recipient's public key)
    key, nonce  = HKDF-SHA256(shared, salt = ephemeral public key + recipient's public key,
                              info = "fullon-persistence seal v1"), 32 and 12 bytes
    associated data = "<uid>:<field>", for example "7:api_key"

The associated data is why a sealed secret that somebody saw on its way cannot be passed off as another user's own.
Keys travel as standard base64 of their 32 bytes.
"""

import base64
import hashlib
import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from contracts.types import Name

MAX_SECRET_BYTES: Final = 4_096
_MAX_SEALED_CHARACTERS: Final = 8_192
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_INFO: Final = b"fullon-persistence seal v1"
# 32 bytes of ephemeral key, 16 of tag and at least one of secret are 66 characters.
_SHAPE: Final = re.compile(r"sealed\.v1\.([0-9a-f]{16})\.([A-Za-z0-9_-]{66,})")
_SECRET_WORDS: Final = (
    *("password", "passwd", "passphrase", "secret", "apikey", "privatekey", "storagekey", "sealingkey"),
    *("f2a", "token", "credential"),
)
_SECRET_NAMES: Final = frozenset({"key", "pass", "pwd", "pin", "otp", "totp", "mfa", "auth", "authorization"})


def _is_sealed(value: str) -> str:
    if not _SHAPE.fullmatch(value):
        raise ValueError("must be sealed with contracts.seal(); never send a secret itself")
    return value


def _is_public_key(value: str) -> str:
    key_bytes(value)
    return value


Sealed = Annotated[str, Field(max_length=_MAX_SEALED_CHARACTERS), AfterValidator(_is_sealed)]
"""A secret sealed by `seal`; anything else is refused."""

PublicKey = Annotated[str, Field(max_length=44), AfterValidator(_is_public_key)]
"""An X25519 public key: 32 bytes in standard base64."""


def key_bytes(key: str) -> bytes:
    """The 32 bytes of a key in base64; raises ValueError without saying what it was given."""
    try:
        raw = base64.b64decode(key, validate=True)
    except ValueError:
        raw = b""
    if len(raw) != _KEY_BYTES:
        raise ValueError("must be 32 bytes in base64")
    return raw


def new_key_pair() -> tuple[str, str]:
    """A fresh private key and its public key, both in base64."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey  # noqa: PLC0415 - see `seal`

    private = base64.b64encode(X25519PrivateKey.generate().private_bytes_raw()).decode()
    return private, public_key_of(private)


def public_key_of(private_key: str) -> str:
    """The public key that belongs to a private one."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey  # noqa: PLC0415 - see `seal`

    public = X25519PrivateKey.from_private_bytes(key_bytes(private_key)).public_key()
    return base64.b64encode(public.public_bytes_raw()).decode()


def key_id_of(public_key: str) -> str:
    """How sealed secrets name the key they are for."""
    return hashlib.sha256(key_bytes(public_key)).hexdigest()[:16]


def key_id_in(sealed: str) -> str:
    """The id of the key that a secret is sealed for; raises ValueError for what is not sealed."""
    _is_sealed(sealed)
    return sealed.split(".")[2]


def seal(plaintext: str, public_key: str, *, uid: int, field: str) -> str:
    """A secret that only the holder of the private key can read, as ``field`` of user ``uid`` and nothing else.

    ``uid`` is the owner of the exchange account (or the user with the second factor), ``field`` is ``api_key``,
    ``api_secret``, ``passphrase`` or ``f2a``. Sealing twice gives two different texts.
    """
    # Here and not above: the messages need pydantic only, sealing needs the extra ``seal``.
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    secret = plaintext.encode()
    if not 1 <= len(secret) <= MAX_SECRET_BYTES:
        raise ValueError(f"a secret has 1 to {MAX_SECRET_BYTES} bytes")
    recipient = key_bytes(public_key)
    ephemeral = X25519PrivateKey.generate()
    ephemeral_public = ephemeral.public_key().public_bytes_raw()
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(recipient))
    key, nonce = _derive(shared, ephemeral_public + recipient)
    data = ephemeral_public + AESGCM(key).encrypt(nonce, secret, _associated(uid, field))
    return f"sealed.v1.{key_id_of(public_key)}.{base64.urlsafe_b64encode(data).rstrip(b'=').decode()}"


def unseal(sealed: str, private_key: str, *, uid: int, field: str) -> str:
    """The secret in ``sealed``; raises ValueError if it is not for this key, this user and this field."""
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - see `seal`
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    if key_id_in(sealed) != key_id_of(public_key_of(private_key)):
        raise ValueError("is sealed for another key")
    encoded = sealed.split(".")[3]
    data = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    ephemeral_public, ciphertext = data[:_KEY_BYTES], data[_KEY_BYTES:]
    own = X25519PrivateKey.from_private_bytes(key_bytes(private_key))
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(ephemeral_public))
        key, nonce = _derive(shared, ephemeral_public + own.public_key().public_bytes_raw())
        return AESGCM(key).decrypt(nonce, ciphertext, _associated(uid, field)).decode()
    except (InvalidTag, ValueError):
        # ValueError: a key that gives no shared secret, or a secret that is no text.
        raise ValueError("is damaged, or sealed for another user or field") from None


def is_secret_name(name: str) -> bool:
    """Whether a field of this name can be expected to hold a secret: ``apiKey``, ``new-password``, ``f2a``."""
    plain = re.sub(r"[\W_]", "", name).lower()
    return plain in _SECRET_NAMES or any(word in plain for word in _SECRET_WORDS)


def _is_no_secret(name: str) -> str:
    if is_secret_name(name):
        raise ValueError("is the name of a secret; secrets are sealed and sent as credentials of an account")
    return name


ParamName = Annotated[Name, AfterValidator(_is_no_secret)]
"""The name of a setting, which everybody may see."""


def _derive(shared: bytes, salt: bytes) -> tuple[bytes, bytes]:
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415 - see `seal`
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

    both = HKDF(algorithm=SHA256(), length=_KEY_BYTES + _NONCE_BYTES, salt=salt, info=_INFO).derive(shared)
    return both[:_KEY_BYTES], both[_KEY_BYTES:]


def _associated(uid: int, field: str) -> bytes:
    return f"{uid}:{field}".encode()
