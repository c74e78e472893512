"""Lookups of bots and their logs."""

from contracts.bot import BotDetailsView, BotLogView, GetBotWithDetails, GetLastActions, GetLastBotLog
from service.registry import LookupTable
from service.unit_of_work import UnitOfWork

lookups = LookupTable()


@lookups.answers(GetBotWithDetails)
async def get_bot_with_details(lookup: GetBotWithDetails, reads: UnitOfWork) -> BotDetailsView | None:
    bot = await reads.bots.get_bot_with_details(lookup.bot_id)
    return None if bot is None else BotDetailsView.model_validate(bot)


@lookups.answers(GetLastBotLog)
async def get_last_bot_log(lookup: GetLastBotLog, reads: UnitOfWork) -> BotLogView | None:
    entry = await reads.bots.get_last_bot_log(lookup.bot_id)
    return None if entry is None else BotLogView.model_validate(entry)


@lookups.answers(GetLastActions)
async def get_last_actions(lookup: GetLastActions, reads: UnitOfWork) -> list[BotLogView]:
    return [
        BotLogView.model_validate(entry)
        for entry in await reads.bots.get_last_actions(lookup.bot_id, limit=lookup.limit)
    ]
