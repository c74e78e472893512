"""Runs of jobs."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Double, Identity, Index, String, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from service.base import Base


class JobRun(Base):
    """A run of a job that is due at some time: one that comes again by its schedule, or one that was asked for."""

    __tablename__ = "job_runs"

    run_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    job: Mapped[str] = mapped_column(String(20))
    recurs: Mapped[bool]
    """Whether it is the one of the schedule. It stays, with what became of its last run; the others go when done."""
    message_id: Mapped[UUID | None]
    """The command that asked for it."""
    parameters: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """What a run that was cut off had done, for the next attempt to add to."""
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    """Attempts that failed since the last success."""
    error: Mapped[str | None] = mapped_column(Text)
    succeeded_at: Mapped[datetime | None]
    seconds: Mapped[float | None] = mapped_column(Double)
    """How long the last success took."""
    rows: Mapped[int | None] = mapped_column(BigInteger)
    """How much it did."""

    __table_args__ = (
        Index("uq_job_runs_recurring", "job", unique=True, postgresql_where=text("recurs")),
        Index(None, "due_at"),
    )
