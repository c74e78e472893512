"""Bots, the exchange accounts they may use, and what they say in their logs."""

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field

from contracts import cache_keys
from contracts.base import Command, Event, Lookup, View
from contracts.topology import Lane
from contracts.types import (
    Amount,
    Count,
    ExactDecimal,
    Flag,
    Id,
    Instant,
    JsonObject,
    LedgerId,
    LogLevel,
    Name,
    NonNegative,
    Text,
)

MAX_LOG_CHARACTERS = 8_192


class BotView(View):
    """A trading bot."""

    bot_id: Id
    uid: Id
    name: str
    dry_run: bool
    active: bool
    timestamp: Instant
    row_version: int


class BotExchangeView(View):
    """An exchange account that a bot may use."""

    bot_id: Id
    ex_id: Id
    trading_currency: str | None
    max_exposure: ExactDecimal | None
    row_version: int


class BotDetailsView(BotView):
    """A bot with everything attached to it."""

    bot_exchanges: list[BotExchangeView]


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


class AddBot(Command[BotView], name="add_bot"):
    """Create a bot. ``conflict`` if the user has one of that name. Mind that ``dry_run`` is off unless you say so."""

    uid: Id
    name: Name
    dry_run: Flag = False
    active: Flag = False


class AddExchangeToBot(Command[BotExchangeView], name="add_exchange_to_bot"):
    """Let a bot use an exchange account of the same user, or change how it may.

    ``forbidden`` if bot and account belong to different users.
    """

    bot_id: Id
    ex_id: Id
    trading_currency: Annotated[Text, Field(min_length=1, max_length=15)] | None = None
    max_exposure: NonNegative | None = None


class SaveBotLog(Command[BotLogRef], name="save_bot_log", lane=Lane.BOT_LOGS):
    """Append an entry to a bot's log."""

    bot_id: Id
    message: Annotated[Text, Field(max_length=MAX_LOG_CHARACTERS)]
    level: LogLevel = "INFO"
    action: Annotated[Text, Field(min_length=1, max_length=20)] | None = None
    timestamp: Instant | None = None
    """When it happened; the time of storing if left out."""
    feed_num: Annotated[Count, Field(le=32_767)] | None = None
    ex_id: Id | None = None
    symbol: Annotated[Text, Field(max_length=40)] | None = None
    position: Amount | None = None
    data: JsonObject | None = None


class GetBotWithDetails(Lookup[BotDetailsView | None], name="get_bot_with_details"):
    """A bot with the exchange accounts it may use; null if there is none."""

    bot_id: Id


class GetLastBotLog(Lookup[BotLogView | None], name="get_last_bot_log"):
    """The newest entry of a bot's log; null if it has none."""

    bot_id: Id


class GetLastActions(Lookup[list[BotLogView]], name="get_last_actions"):
    """The newest entries of a bot's log, newest first."""

    bot_id: Id
    limit: Annotated[int, Field(strict=True, ge=1, le=1_000)] = 10


class BotCreated(Event[BotView], name="bot.created", key=("bot_id",)):
    """A bot was created."""

    @classmethod
    def keys_of(cls, image: BotView) -> Iterable[str]:
        return (cache_keys.bot_details(image.bot_id), cache_keys.bots_of_user(image.uid))


class BotExchangeAdded(Event[BotExchangeView], name="bot.exchange_added", key=("bot_id", "ex_id")):
    """A bot may use an exchange account, or may use it differently."""

    @classmethod
    def keys_of(cls, image: BotExchangeView) -> Iterable[str]:
        return (cache_keys.bot_details(image.bot_id), cache_keys.trading_currency(image.bot_id, image.ex_id))


class BotExchangeRemoved(Event[BotExchangeView], name="bot.exchange_removed", key=("bot_id", "ex_id")):
    """A bot may use an exchange account no more."""

    @classmethod
    def keys_of(cls, image: BotExchangeView) -> Iterable[str]:
        return (cache_keys.bot_details(image.bot_id), cache_keys.trading_currency(image.bot_id, image.ex_id))


class BotDeleted(Event[BotView], name="bot.deleted", key=("bot_id",)):
    """A bot is gone, with its logs."""

    @classmethod
    def keys_of(cls, image: BotView) -> Iterable[str]:
        return (
            cache_keys.bot_details(image.bot_id),
            cache_keys.bots_of_user(image.uid),
            cache_keys.trading_summary(image.uid),
        )


class BotLogSaved(Event[BotLogRef], name="bot_log.saved", key=("log_id",)):
    """Entries were appended to bots' logs."""

    @classmethod
    def keys_of(cls, image: BotLogRef) -> Iterable[str]:  # noqa: ARG003 - logs are not cached
        return ()
