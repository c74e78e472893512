"""Feeds: which prices a bot listens to."""

from typing import Annotated

from pydantic import Field

from contracts.base import Command, Event, Lookup, Part, View
from contracts.types import Flag, Id

Timeframe = Annotated[str, Field(pattern=r"^(tick|[1-9][0-9]{0,3}[smhdwM])$")]
"""The length of a bar, such as ``1m``, ``4h`` or ``1M`` (a month), or ``tick`` for every price."""
Place = Annotated[int, Field(strict=True, ge=0, le=32_767)]
"""Where a feed stands among those of its bot; no two stand at the same place."""


class FeedView(View):
    """A feed of a bot."""

    feed_id: Id
    bot_id: Id
    str_id: Id | None
    """The strategy it is for; null if it is for the bot as a whole."""
    symbol_id: Id
    ex_id: Id | None
    """The account whose prices it takes, if that matters."""
    timeframe: str
    order: int
    enabled: bool
    row_version: int


class FeedFields(Part):
    """What one says of a feed. Strategy, symbol and timeframe tell the feeds of a bot apart."""

    symbol_id: Id
    timeframe: Timeframe
    enabled: Flag = True
    str_id: Id | None = None
    """A strategy of the same bot that it is for."""
    order: Place | None = None
    ex_id: Id | None = None
    """An account that the bot may use, on an exchange that lists the symbol."""


class AddFeedToBot(FeedFields, Command[FeedView], name="add_feed_to_bot"):
    """Have a bot listen to a symbol; left out, ``order`` is the next one.

    The same feed again is answered with the stored one (``meta.duplicate``); with other content it is a
    ``conflict``. ``forbidden`` for a strategy of another bot, an account that the bot may not use, or one on an
    exchange that does not list the symbol.
    """

    bot_id: Id


class EditFeeds(Command[list[FeedView]], name="edit_feeds"):
    """Have a bot listen to these feeds and no others; left out, ``order`` is the place in the list, from 1.

    Feeds that stay keep their ids. Answered with all feeds by their order. All or nothing: a feed that is refused
    is named, and none is changed.
    """

    bot_id: Id
    feeds: Annotated[list[FeedFields], Field(max_length=500)]


class GetBotFeeds(Lookup[list[FeedView]], name="get_bot_feeds"):
    """The feeds of a bot by their order; empty if there is no such bot."""

    bot_id: Id


class BotFeedsChanged(Event[FeedView], name="bot.feeds_changed", key=("feed_id",)):
    """Feeds of bots came, changed or went: what has no ``before`` is new, what has no ``after`` is gone."""
