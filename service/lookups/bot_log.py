"""Lookups of logs of bots."""

from contracts.bot_log import BotLogPage, BotLogView, GetBotLogs, GetLastActions, GetLastBotLog
from service.cursor import next_after
from service.registry import LookupTable
from service.unit_of_work import UnitOfWork

lookups = LookupTable()


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


@lookups.answers(GetBotLogs)
async def get_bot_logs(lookup: GetBotLogs, reads: UnitOfWork) -> BotLogPage:
    entries = await reads.bots.get_logs(**lookup.model_dump())
    return BotLogPage(
        logs=[BotLogView.model_validate(entry) for entry in entries],
        next_cursor=next_after(entries, lookup.limit, "timestamp", "log_id"),
    )
