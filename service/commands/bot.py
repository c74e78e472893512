"""Commands about bots and their logs."""

from collections.abc import Mapping, Sequence
from uuid import UUID

from contracts.bot import (
    AddBot,
    AddExchangeToBot,
    BotExchangeView,
    BotLogRef,
    BotView,
    SaveBotLog,
)
from service.registry import CommandTable
from service.unit_of_work import UnitOfWork

handlers = CommandTable()


@handlers.handles(AddBot)
async def add_bot(command: AddBot, work: UnitOfWork) -> BotView:
    return BotView.model_validate(await work.bots.add_bot(command.model_dump()))


@handlers.handles(AddExchangeToBot)
async def add_exchange_to_bot(command: AddExchangeToBot, work: UnitOfWork) -> BotExchangeView:
    values = command.model_dump(exclude_unset=True, exclude={"bot_id"})
    return BotExchangeView.model_validate(await work.bots.add_exchange_to_bot(command.bot_id, values))


@handlers.handles(SaveBotLog)
async def save_bot_log(command: SaveBotLog, work: UnitOfWork) -> BotLogRef:
    return BotLogRef.model_validate(await work.bots.save_bot_log(command.model_dump(exclude_none=True)))


async def recall_bot_log(log_id: int, work: UnitOfWork) -> BotLogRef | None:
    entry = await work.bots.get_bot_log(log_id)
    return None if entry is None else BotLogRef.model_validate(entry)


@handlers.handles_many(SaveBotLog, recall=recall_bot_log)
async def save_bot_logs(
    commands: Sequence[SaveBotLog], causes: Sequence[UUID], work: UnitOfWork
) -> Mapping[int, int]:
    return await work.bots.save_new_logs(commands, causes)
