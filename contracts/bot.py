"""Bots, the exchange accounts they may use, and what they say in their logs."""

from collections.abc import Iterable
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from contracts import cache_keys
from contracts.base import Command, Event, Lookup, Part, Updates, View
from contracts.feed import FeedView
from contracts.strategy import StrategyView
from contracts.topology import Lane
from contracts.types import (
    Amount,
    Count,
    Cursor,
    ExactDecimal,
    Flag,
    Id,
    Instant,
    JsonObject,
    LedgerId,
    Limit,
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
    strategies: list[StrategyView]
    feeds: list[FeedView]


class BotParams(View):
    """What a bot is configured with."""

    bot_id: Id
    uid: Id
    name: str
    dry_run: bool
    active: bool
    bot_exchanges: list[BotExchangeView]
    strategies: list[StrategyView]


class BotPage(View):
    """Some bots."""

    bots: list[BotView]
    next_cursor: str | None
    """Give it as ``cursor`` to get what follows; null once there is nothing more."""


class BotDetailsPage(View):
    """Some bots with everything attached to them."""

    bots: list[BotDetailsView]
    next_cursor: str | None
    """Give it as ``cursor`` to get what follows; null once there is nothing more."""


class BotRemoval(View):
    """What went with a bot. Its orders and trades stay, without a bot."""

    bot_id: Id
    bot_exchanges: int
    strategies: int
    feeds: int
    simulations: int
    logs: int


class BotStats(View):
    """What the real trades of a bot add up to over some days. Volumes are in quote currency."""

    bot_id: Id
    days: int
    total_trades: int
    total_volume: ExactDecimal
    buy_volume: ExactDecimal
    sell_volume: ExactDecimal
    total_roi: ExactDecimal
    """Sum of the roi that was recorded with the trades."""
    open_orders: int
    """How many of its orders are open now, however old."""
    last_trade: Instant | None
    """When it traded last within these days."""


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


class BotUpdates(Updates):
    """The fields to change; those left out stay as they are."""

    never_null = frozenset({"uid", "name", "dry_run", "active"})

    uid: Id | None = None
    """Another owner, for a bot without exchange accounts, orders and trades."""
    name: Name | None = None
    dry_run: Flag | None = None
    active: Flag | None = None


class EditBot(Command[BotView], name="edit_bot"):
    """Change a bot. ``conflict`` if its owner has a bot of that name or ``expected_version`` is not its version.

    Also a ``conflict``: to make it active and live while it has no exchange account, and to give it to another
    owner while it has exchange accounts, orders or trades of the present one.
    """

    bot_id: Id
    updates: BotUpdates
    expected_version: Id | None = None


class DeleteBot(Command[BotRemoval], name="delete_bot"):
    """Delete a bot with its feeds, strategies, simulations and logs; orders and trades stay, without a bot.

    ``conflict`` while it has open orders, or is active and not a dry run, unless ``force``.
    """

    bot_id: Id
    force: Flag = False
    expected_version: Id | None = None


class AddExchangeToBot(Command[BotExchangeView], name="add_exchange_to_bot"):
    """Let a bot use an exchange account of the same user, or change how it may.

    ``forbidden`` if bot and account belong to different users.
    """

    bot_id: Id
    ex_id: Id
    trading_currency: Annotated[Text, Field(min_length=1, max_length=15)] | None = None
    max_exposure: NonNegative | None = None


class RemoveExchangeFromBot(Command[bool], name="remove_exchange_from_bot"):
    """Let a bot use an exchange account no more; its feeds stay, without an account.

    Answered with whether it could before. ``not_found`` if there is no such bot.
    """

    bot_id: Id
    ex_id: Id
    expected_version: Id | None = None


class LogFields(Part):
    """What one says of an entry of a bot's log."""

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


class GetBot(Lookup[BotView | None], name="get_bot"):
    """A bot; null if there is none."""

    bot_id: Id


class GetBotWithDetails(Lookup[BotDetailsView | None], name="get_bot_with_details"):
    """A bot with its exchange accounts, strategies and feeds; null if there is none."""

    bot_id: Id


class GetBotsWithDetails(Lookup[list[BotDetailsView]], name="get_bots_with_details"):
    """Bots with everything attached to them, in the order asked for; those that do not exist are left out."""

    bot_ids: Annotated[list[Id], Field(max_length=1_000)]


class GetBotsByUser(Lookup[list[BotView]], name="get_bots_by_user"):
    """All bots of a user, oldest first."""

    uid: Id


class GetBotList(Lookup[BotPage], name="get_bot_list"):
    """Bots, oldest first: all, or those of a user, or only active ones."""

    uid: Id | None = None
    active: Flag | None = None
    limit: Limit = 100
    cursor: Cursor | None = None


class GetBotFullList(Lookup[BotDetailsPage], name="get_bot_full_list"):
    """All bots with everything attached to them, oldest first."""

    limit: Limit = 100
    cursor: Cursor | None = None


class GetBotParams(Lookup[BotParams | None], name="get_bot_params"):
    """What a bot is configured with; null if there is none."""

    bot_id: Id


class GetBotExchanges(Lookup[list[BotExchangeView]], name="get_bot_exchanges"):
    """The exchange accounts that a bot may use; empty if there is no such bot."""

    bot_id: Id


class GetTradingCurrency(Lookup[str | None], name="get_trading_currency"):
    """What a bot trades in on an exchange account; null if it may not use the account, or nothing was said."""

    bot_id: Id
    ex_id: Id


class GetBotStats(Lookup[BotStats | None], name="get_bot_stats"):
    """What the real trades of a bot of the last days add up to; null if there is no such bot."""

    bot_id: Id
    days: Annotated[int, Field(strict=True, ge=1, le=3_650)] = 30


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


def _keys(image: BotView) -> Iterable[str]:
    return (
        cache_keys.bot_details(image.bot_id),
        cache_keys.bots_of_user(image.uid),
        cache_keys.trading_summary(image.uid),
    )


class BotCreated(Event[BotView], name="bot.created", key=("bot_id",)):
    """A bot was created."""

    @classmethod
    def keys_of(cls, image: BotView) -> Iterable[str]:
        return _keys(image)


class BotUpdated(Event[BotView], name="bot.updated", key=("bot_id",)):
    """A bot was changed; with another ``uid`` it went from one owner to another."""

    @classmethod
    def keys_of(cls, image: BotView) -> Iterable[str]:
        return _keys(image)


class BotDeleted(Event[BotView], name="bot.deleted", key=("bot_id",)):
    """A bot is gone, with its logs and simulations; orders and trades that named it name no bot now."""

    @classmethod
    def keys_of(cls, image: BotView) -> Iterable[str]:
        return _keys(image)


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


class BotLogSaved(Event[BotLogRef], name="bot_log.saved", key=("log_id",)):
    """Entries were appended to bots' logs."""

    @classmethod
    def keys_of(cls, image: BotLogRef) -> Iterable[str]:  # noqa: ARG003 - logs are not cached
        return ()
