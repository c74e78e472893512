"""What bots say in their logs."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from contracts.base import Command, Event, Lookup, Part, View
from contracts.topology import Lane
from contracts.types import (
    STORABLE,
    Amount,
    Count,
    Cursor,
    ExactDecimal,
    Id,
    Instant,
    JsonObject,
    LedgerId,
    Limit,
    LogLevel,
)

MAX_LOG_CHARACTERS = 8_192


class BotLogView(View):
    """One entry of a bot's log."""

    log_id: LedgerId
    bot_id: Id
    level: LogLevel
    action: str | None
    message: str
    feed_num: int | None
    ex_id: Id | None
    symbol: str | None
    position: ExactDecimal | None
    data: dict[str, Any] | None
    timestamp: Instant
    """When the bot says it happened."""
    recorded_at: Instant
    """When it was stored."""


class BotLogRef(View):
    """Which log entry, and whose: events do not carry the text."""

    log_id: LedgerId
    bot_id: Id


class LogFields(Part):
    """What one says of an entry of a bot's log."""

    bot_id: Id
    message: Annotated[str, Field(max_length=MAX_LOG_CHARACTERS), STORABLE]
    level: LogLevel = "INFO"
    action: Annotated[str, Field(min_length=1, max_length=20), STORABLE] | None = None
    timestamp: Instant | None = None
    """When it happened; the time of storing if left out."""
    feed_num: Annotated[Count, Field(le=32_767)] | None = None
    ex_id: Id | None = None
    symbol: Annotated[str, Field(max_length=40), STORABLE] | None = None
    position: Amount | None = None
    data: JsonObject | None = None


class SaveBotLog(LogFields, Command[BotLogRef], name="save_bot_log", lane=Lane.BOT_LOGS):
    """Append an entry to a bot's log."""


class LogsSaved(View):
    """What became of a list of log entries."""

    count: int
    log_ids: list[LedgerId]
    """In the order of the list."""


class SaveBotLogs(Command[LogsSaved], name="save_bot_logs", lane=Lane.BOT_LOGS):
    """Append entries to logs, of one bot or of several. All or nothing: ``not_found`` names the first one amiss."""

    logs: Annotated[list[LogFields], Field(min_length=1, max_length=1_000)]


class GetLastBotLog(Lookup[BotLogView | None], name="get_last_bot_log"):
    """The newest entry of a bot's log; null if it has none."""

    bot_id: Id


class GetLastActions(Lookup[list[BotLogView]], name="get_last_actions"):
    """The newest entries of a bot's log, newest first."""

    bot_id: Id
    limit: Limit = 10


class BotLogPage(View):
    """Some entries of a bot's log, newest first."""

    logs: list[BotLogView]
    next_cursor: str | None
    """Give it as ``cursor`` to get older ones; null once there is nothing more."""


class GetBotLogs(Lookup[BotLogPage], name="get_bot_logs"):
    """The log of a bot, newest first: all of it, or one level, or a stretch of time."""

    bot_id: Id
    level: LogLevel | None = None
    start_date: Instant | None = None
    """Nothing older than this."""
    end_date: Instant | None = None
    """Only what is older than this."""
    limit: Limit = 100
    cursor: Cursor | None = None

    @model_validator(mode="after")
    def _ends_after_it_starts(self) -> Self:
        if self.start_date is not None and self.end_date is not None and self.end_date < self.start_date:
            raise ValueError("end_date is before start_date")
        return self


class BotLogSaved(Event[BotLogRef], name="bot_log.saved", key=("log_id",)):
    """Entries were appended to bots' logs."""
