"""Commands about bots."""

from contracts.bot import (
    AddBot,
    AddExchangeToBot,
    BotExchangeView,
    BotRemoval,
    BotView,
    DeleteBot,
    EditBot,
    RemoveExchangeFromBot,
)
from service.registry import CommandTable, Existing
from service.unit_of_work import UnitOfWork

handlers = CommandTable()


@handlers.handles(AddBot)
async def add_bot(command: AddBot, work: UnitOfWork) -> BotView:
    return BotView.model_validate(await work.bots.add_bot(command.model_dump()))


@handlers.handles(EditBot)
async def edit_bot(command: EditBot, work: UnitOfWork) -> BotView:
    bot = await work.bots.edit_bot(
        command.bot_id, command.updates.values(), expected_version=command.expected_version
    )
    return BotView.model_validate(bot)


@handlers.handles(DeleteBot)
async def delete_bot(command: DeleteBot, work: UnitOfWork) -> BotRemoval:
    return await work.bots.delete_bot(command.bot_id, force=command.force, expected_version=command.expected_version)


@handlers.handles(AddExchangeToBot)
async def add_exchange_to_bot(command: AddExchangeToBot, work: UnitOfWork) -> BotExchangeView:
    values = command.model_dump(exclude_unset=True, exclude={"bot_id"})
    return BotExchangeView.model_validate(await work.bots.add_exchange_to_bot(command.bot_id, values))


@handlers.handles(RemoveExchangeFromBot)
async def remove_exchange_from_bot(command: RemoveExchangeFromBot, work: UnitOfWork) -> bool | Existing[bool]:
    removed = await work.bots.remove_exchange_from_bot(
        command.bot_id, command.ex_id, expected_version=command.expected_version
    )
    return removed or Existing(removed)
