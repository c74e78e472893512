"""Bots and the exchange accounts they may use."""

from typing import Annotated

from pydantic import Field

from contracts.base import Command, Event, Lookup, Part, Updates, View
from contracts.feed import FeedView
from contracts.strategy import StrategyView
from contracts.types import STORABLE, Cursor, ExactDecimal, Flag, Id, Instant, Limit, Name, NonNegative

TradingCurrency = Annotated[str, Field(min_length=1, max_length=15), STORABLE]


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
    dry_trades: int
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


class BotFields(Part):
    """What one says of a bot to create one. Mind that ``dry_run`` is off unless you say so."""

    name: Name
    dry_run: Flag = False
    active: Flag = False


class AddBot(BotFields, Command[BotView], name="add_bot"):
    """Create a bot. ``conflict`` if the user has one of that name. Mind that ``dry_run`` is off unless you say so."""

    uid: Id


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

    Also a ``conflict``: to make it active and live while it has no exchange account with credentials, and to give
    it to another owner while it has exchange accounts, orders or trades of the present one.
    """

    bot_id: Id
    updates: BotUpdates
    expected_version: Id | None = None


class DeleteBot(Command[BotRemoval], name="delete_bot"):
    """Delete a bot with its feeds, strategies, dry trades, simulations and logs; orders and trades stay, without it.

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
    trading_currency: TradingCurrency | None = None
    max_exposure: NonNegative | None = None


class RemoveExchangeFromBot(Command[bool], name="remove_exchange_from_bot"):
    """Let a bot use an exchange account no more; its feeds stay, without an account.

    Answered with whether it could before. ``not_found`` if there is no such bot, ``conflict`` if it is active and
    live and this is its last account with credentials.
    """

    bot_id: Id
    ex_id: Id
    expected_version: Id | None = None


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


class GetDryMargin(Lookup[ExactDecimal], name="get_dry_margin"):
    """What the dry trades of a bot gained together, in quote currency; zero without any."""

    bot_id: Id


class GetBotStats(Lookup[BotStats | None], name="get_bot_stats"):
    """What the real trades of a bot of the last days add up to; null if there is no such bot."""

    bot_id: Id
    days: Annotated[int, Field(strict=True, ge=1, le=3_650)] = 30


class BotCreated(Event[BotView], name="bot.created", key=("bot_id",)):
    """A bot was created."""


class BotUpdated(Event[BotView], name="bot.updated", key=("bot_id",)):
    """A bot was changed; with another ``uid`` it went from one owner to another."""


class BotDeleted(Event[BotView], name="bot.deleted", key=("bot_id",)):
    """A bot is gone, with its logs and simulations; orders, trades and positions that named it name no bot now.

    Its feeds, strategies, accounts and dry trades are announced by events of their own.
    """


class BotExchangeAdded(Event[BotExchangeView], name="bot.exchange_added", key=("bot_id", "ex_id")):
    """A bot may use an exchange account, or may use it differently."""


class BotExchangeRemoved(Event[BotExchangeView], name="bot.exchange_removed", key=("bot_id", "ex_id")):
    """A bot may use an exchange account no more."""
