"""Lookups of feeds."""

from contracts.bot import BotDetailsView, GetBotWithDetails
from contracts.feed import FeedView, GetBotFeeds
from service.registry import LookupTable

lookups = LookupTable()


@lookups.derives(GetBotFeeds, lambda lookup: GetBotWithDetails(bot_id=lookup.bot_id))
def get_bot_feeds(bot: BotDetailsView | None) -> list[FeedView]:
    return [] if bot is None else bot.feeds
