"""Commands about logs of bots."""

from collections.abc import Mapping, Sequence

from contracts.bot_log import BotLogRef, LogsSaved, SaveBotLog, SaveBotLogs
from service.inbox import Sent
from service.registry import CommandTable
from service.unit_of_work import UnitOfWork

handlers = CommandTable()


@handlers.handles(SaveBotLog)
async def save_bot_log(command: SaveBotLog, work: UnitOfWork) -> BotLogRef:
    return BotLogRef.model_validate(await work.bot_logs.save(command.model_dump(exclude_none=True)))


async def recall_bot_log(log_id: int, work: UnitOfWork) -> BotLogRef | None:
    entry = await work.bot_logs.get(log_id)
    return None if entry is None else BotLogRef.model_validate(entry)


@handlers.handles_many(SaveBotLog, recall=recall_bot_log)
async def save_logs_together(commands: Sequence[SaveBotLog], sent: Sent, work: UnitOfWork) -> Mapping[int, int]:
    return await work.bot_logs.save_new(commands, sent)


@handlers.handles(SaveBotLogs)
async def save_bot_logs(command: SaveBotLogs, work: UnitOfWork) -> LogsSaved:
    log_ids = await work.bot_logs.save_list(command.logs)
    return LogsSaved(count=len(log_ids), log_ids=log_ids)
