"""Why a request was refused, in words a program and a person can act on."""

from enum import StrEnum


class ErrorCode(StrEnum):
    """The closed set of reasons a request can be refused for."""

    VALIDATION = "validation"
    """The request itself is wrong; sending it again cannot help."""
    NOT_FOUND = "not_found"
    """Something the request names does not exist."""
    CONFLICT = "conflict"
    """It contradicts what is stored: the key is taken, the version has moved on."""
    INVALID_TRANSITION = "invalid_transition"
    """The order cannot go from its present status to the one asked for."""
    FORBIDDEN = "forbidden"
    """The sender may not do this, or the things named do not belong together."""
    UNAVAILABLE = "unavailable"
    """A server behind the service is away; the same request may succeed later."""
    TIMEOUT = "timeout"
    """No answer within the time given; the outcome is unknown."""
    UNSUPPORTED_VERSION = "unsupported_version"
    """The schema version is not one this service speaks."""
    INTERNAL = "internal"
    """A defect of the service."""


class Refusal(Exception):  # noqa: N818 - a refusal is an answer, not an error
    """A request that was answered with no.

    ``field`` names the part of the request that is at fault, dotted for nested ones, or is None.
    """

    def __init__(self, code: ErrorCode, message: str, *, field: str | None = None, retryable: bool = False) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.code = code
        self.message = message
        self.field = field
        self.retryable = retryable


class NotConfirmed(Exception):  # noqa: N818
    """The broker did not confirm a publish in time: the outcome is unknown, and sending the same id again is safe."""


class Unroutable(Exception):  # noqa: N818
    """The broker knows no queue for the message: the service has never been started there."""


class LoginRefused(ConnectionError):  # noqa: N818
    """The broker refuses user or password; waiting does not help, unless somebody changes them there."""
