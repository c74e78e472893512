"""A request as it came over the wire, whoever brought it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from contracts.base import Request, decode
from contracts.errors import ErrorCode, Refusal
from contracts.topology import MAX_COMMAND_BYTES
from service.tolerant_amqp import UNREADABLE_HEADERS

KindOfRequest = type[Request[Any]]

SCHEMA_VERSION: Final = 1
_READABLE_ENCODINGS: Final = (None, "", "identity", "utf-8")
# A queue of the caller's own or its direct reply; FastStream's "queue|exchange" would let a caller publish anywhere.
_REPLY_TO: Final = re.compile(
    r"amq\.(rabbitmq\.reply-to\.|gen-)[\w.:=+/-]{1,200}|(?!persistence\.|amq\.)[\w.:=+/-]{1,200}"
)


@dataclass(slots=True)
class Received:
    """Body and properties of a message, not judged yet."""

    command: str
    """The routing key."""
    body: bytes
    message_id: str | None = None
    type: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    reply_to: str | None = None
    correlation_id: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    redelivered: bool = False
    headers: dict[str, Any] = field(default_factory=dict)

    @property
    def properties(self) -> dict[str, Any]:
        """What came beside the body, for the record."""
        names = ("type", "content_type", "content_encoding", "reply_to", "correlation_id", "user_id", "app_id")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value} | {"headers": self.headers}

    @property
    def answerable(self) -> str | None:
        """Where an answer may go, or None."""
        return self.reply_to if self.reply_to and _REPLY_TO.fullmatch(self.reply_to) else None

    def identity(self) -> UUID:
        """The message id; raises `Refusal` for one that is missing or no UUID."""
        if not self.message_id:
            raise Refusal(ErrorCode.VALIDATION, "is required: a UUID, the same for every resend", field="message_id")
        try:
            return UUID(self.message_id)
        except ValueError:
            raise Refusal(ErrorCode.VALIDATION, "is not a UUID", field="message_id") from None

    def read_as(self, kinds: Mapping[str, KindOfRequest], *, require_user: bool = False) -> Request[Any]:
        """The request in it; raises `Refusal` that names what is wrong."""
        if self.reply_to and self.answerable is None:
            raise Refusal(
                ErrorCode.VALIDATION, "must be amq.rabbitmq.reply-to or a queue of your own", field="reply_to"
            )
        kind = kinds.get(self.command)
        if kind is None:
            raise Refusal(ErrorCode.VALIDATION, f"nothing is called {self.command[:100]!r}", field="routing_key")
        if self.type not in (None, "", self.command):
            raise Refusal(ErrorCode.VALIDATION, f"is not the routing key {self.command!r}", field="type")
        if self.content_encoding not in _READABLE_ENCODINGS:
            raise Refusal(ErrorCode.VALIDATION, "must not be set: bodies are plain JSON", field="content_encoding")
        if self.content_type and self.content_type.partition(";")[0].strip().lower() != "application/json":
            raise Refusal(ErrorCode.VALIDATION, "must be application/json", field="content_type")
        if len(self.body) > MAX_COMMAND_BYTES:
            raise Refusal(
                ErrorCode.VALIDATION,
                f"is {len(self.body)} bytes; at most {MAX_COMMAND_BYTES} are taken",
                field="body",
            )
        if UNREADABLE_HEADERS in self.headers:
            raise Refusal(ErrorCode.VALIDATION, "cannot be decoded", field="headers")
        version = self.headers.get("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            raise Refusal(ErrorCode.UNSUPPORTED_VERSION, f"must be {SCHEMA_VERSION}", field="schema_version")
        if require_user and not self.user_id:
            raise Refusal(ErrorCode.FORBIDDEN, "is required: the login the message is sent with", field="user_id")
        request: Request[Any] = decode(kind, self.body)
        return request
