"""What the service keeps for itself: messages handled, events to publish, messages refused."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from service.base import Base


class InboxMessage(Base):
    """A command that was handled, with the answer it got; partitioned by range of its time-ordered id."""

    __tablename__ = "inbox"

    message_id: Mapped[UUID] = mapped_column(primary_key=True)
    command: Mapped[str] = mapped_column(Text)
    payload_hash: Mapped[bytes] = mapped_column(LargeBinary)
    """SHA-256 of command name and body: the same id with another content is a conflict."""
    refused: Mapped[bool] = mapped_column(server_default=text("false"))
    reply: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    """The answer, unless ``row_id`` stands for it."""
    row_id: Mapped[int | None] = mapped_column(BigInteger)
    """The row that the command made, out of which its answer can be made again."""
    received_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = ({"postgresql_partition_by": "RANGE (message_id)"},)


class OutboxEvent(Base):
    """An event that waits for the relay: changes of one type that one transaction made."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    """Given when a transaction has all its row locks, so it orders the events of each row."""
    event_id: Mapped[UUID] = mapped_column(server_default=func.gen_random_uuid())
    type: Mapped[str] = mapped_column(Text)
    transaction_id: Mapped[int] = mapped_column(
        BigInteger, server_default=text("(pg_current_xact_id())::text::bigint")
    )
    occurred_at: Mapped[datetime] = mapped_column(server_default=func.now())
    causation_ids: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid))
    changes: Mapped[str] = mapped_column(Text)
    """A JSON array, written once and published as it is."""
    stale_keys: Mapped[list[str]] = mapped_column(ARRAY(Text))
    keys: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    """Of each change the key of its row, values separated by commas; see `PublishedEvent`."""
    versions: Mapped[list[int]] = mapped_column(ARRAY(Integer), server_default=text("'{}'"))
    """Of each change the version it made; below 0 if it is the one with which the row went."""


class PublishedEvent(Base):
    """What is kept of an event that was published: which it was and what it was about, not what it said.

    By it an audit tells that every row was announced. Partitioned by range of time.
    """

    __tablename__ = "published_events"

    published_at: Mapped[datetime] = mapped_column(server_default=func.now(), primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    """The one it had in the outbox."""
    event_id: Mapped[UUID]
    type: Mapped[str] = mapped_column(Text)
    sequence: Mapped[int] = mapped_column(BigInteger)
    transaction_id: Mapped[int] = mapped_column(BigInteger)
    occurred_at: Mapped[datetime]
    keys: Mapped[list[str]] = mapped_column(ARRAY(Text))
    versions: Mapped[list[int]] = mapped_column(ARRAY(Integer))

    __table_args__ = ({"postgresql_partition_by": "RANGE (published_at)"},)


class EventStream(Base):
    """The sequence number of the last event of a type that was published."""

    __tablename__ = "event_streams"

    type: Mapped[str] = mapped_column(Text, primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger)


class Producer(Base):
    """A sender that numbers its commands, and up to which number all have arrived or were given up."""

    __tablename__ = "producers"

    producer: Mapped[UUID] = mapped_column(primary_key=True)
    complete_to: Mapped[int] = mapped_column(BigInteger)


class ProducerNumber(Base):
    """A number that has arrived, until all before it have."""

    __tablename__ = "producer_numbers"

    producer: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    received_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Lease(Base):
    """Who does at present what one instance at a time may do. Times are the database's, not a host's."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(20), primary_key=True)
    holder: Mapped[UUID]
    term: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[datetime]


class DeadLetter(Base):
    """A command that was refused. Its body is kept with secrets redacted."""

    __tablename__ = "dead_letters"

    dead_letter_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    message_id: Mapped[str | None] = mapped_column(Text)
    """As it was received, so perhaps no UUID at all."""
    command: Mapped[str] = mapped_column(Text)
    """The routing key."""
    code: Mapped[str] = mapped_column(String(30))
    field: Mapped[str | None] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    body_size: Mapped[int]
    body_hash: Mapped[bytes] = mapped_column(LargeBinary)
    complete: Mapped[bool]
    """Whether ``body`` is the very body received, neither redacted nor cut, so that it can be replayed."""
    properties: Mapped[dict[str, Any]] = mapped_column(JSONB)
    received_at: Mapped[datetime] = mapped_column(server_default=func.now())
    state: Mapped[str] = mapped_column(String(12), server_default="open")
    attempts: Mapped[int] = mapped_column(server_default=text("1"))
    resolved_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("state IN ('open', 'replayed', 'discarded')", name="state"),
        # A redelivery of a refused message, also of one without an id, finds its entry instead of making another.
        UniqueConstraint("message_id", "body_hash", postgresql_nulls_not_distinct=True),
        Index("ix_dead_letters_open", "dead_letter_id", postgresql_where=text("state = 'open'")),
        Index("ix_dead_letters_resolved", "resolved_at", postgresql_where=text("state <> 'open'")),
    )
