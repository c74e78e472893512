"""Lookups of bots."""

from decimal import Decimal

from contracts import cache_keys
from contracts.bot import (
    BotDetailsPage,
    BotDetailsView,
    BotExchangeView,
    BotPage,
    BotParams,
    BotStats,
    BotView,
    GetBot,
    GetBotExchanges,
    GetBotFullList,
    GetBotList,
    GetBotParams,
    GetBotsByUser,
    GetBotStats,
    GetBotsWithDetails,
    GetBotWithDetails,
    GetDryMargin,
    GetTradingCurrency,
)
from service.cursor import next_after
from service.registry import LookupTable
from service.unit_of_work import UnitOfWork

lookups = LookupTable()


@lookups.answers(GetBotWithDetails, cached_under=lambda lookup: cache_keys.bot_details(lookup.bot_id))
async def get_bot_with_details(lookup: GetBotWithDetails, reads: UnitOfWork) -> BotDetailsView | None:
    bot = await reads.bots.get_bot_with_details(lookup.bot_id)
    return None if bot is None else BotDetailsView.model_validate(bot)


@lookups.derives(GetBot, lambda lookup: GetBotWithDetails(bot_id=lookup.bot_id))
def get_bot(bot: BotDetailsView | None) -> BotView | None:
    return None if bot is None else BotView(**bot.model_dump())


@lookups.derives(GetBotParams, lambda lookup: GetBotWithDetails(bot_id=lookup.bot_id))
def get_bot_params(bot: BotDetailsView | None) -> BotParams | None:
    return None if bot is None else BotParams(**bot.model_dump())


@lookups.derives(GetBotExchanges, lambda lookup: GetBotWithDetails(bot_id=lookup.bot_id))
def get_bot_exchanges(bot: BotDetailsView | None) -> list[BotExchangeView]:
    return [] if bot is None else bot.bot_exchanges


@lookups.answers(GetBotsWithDetails)
async def get_bots_with_details(lookup: GetBotsWithDetails, reads: UnitOfWork) -> list[BotDetailsView]:
    return [BotDetailsView.model_validate(bot) for bot in await reads.bots.get_bots_with_details(lookup.bot_ids)]


@lookups.answers(GetBotsByUser, cached_under=lambda lookup: cache_keys.bots_of_user(lookup.uid))
async def get_bots_by_user(lookup: GetBotsByUser, reads: UnitOfWork) -> list[BotView]:
    return [BotView.model_validate(bot) for bot in await reads.bots.get_bots_by_user(lookup.uid)]


@lookups.answers(GetBotList)
async def get_bot_list(lookup: GetBotList, reads: UnitOfWork) -> BotPage:
    bots = await reads.bots.get_bot_list(lookup.uid, active=lookup.active, limit=lookup.limit, cursor=lookup.cursor)
    return BotPage(
        bots=[BotView.model_validate(bot) for bot in bots], next_cursor=next_after(bots, lookup.limit, "bot_id")
    )


@lookups.answers(GetBotFullList)
async def get_bot_full_list(lookup: GetBotFullList, reads: UnitOfWork) -> BotDetailsPage:
    bots = await reads.bots.get_bot_full_list(limit=lookup.limit, cursor=lookup.cursor)
    return BotDetailsPage(
        bots=[BotDetailsView.model_validate(bot) for bot in bots],
        next_cursor=next_after(bots, lookup.limit, "bot_id"),
    )


@lookups.answers(
    GetTradingCurrency, cached_under=lambda lookup: cache_keys.trading_currency(lookup.bot_id, lookup.ex_id)
)
async def get_trading_currency(lookup: GetTradingCurrency, reads: UnitOfWork) -> str | None:
    return await reads.bots.get_trading_currency(lookup.bot_id, lookup.ex_id)


@lookups.answers(GetDryMargin)
async def get_dry_margin(lookup: GetDryMargin, reads: UnitOfWork) -> Decimal:
    return await reads.bots.get_dry_margin(lookup.bot_id)


@lookups.answers(GetBotStats)
async def get_bot_stats(lookup: GetBotStats, reads: UnitOfWork) -> BotStats | None:
    stats = await reads.bots.get_bot_stats(lookup.bot_id, lookup.days)
    return None if stats is None else BotStats.model_validate(stats)
