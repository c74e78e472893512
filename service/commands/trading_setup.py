"""The command that sets up all that a user needs to trade."""

from collections.abc import Iterator
from contextlib import contextmanager

from contracts.errors import Refusal
from contracts.trading_setup import CreateTradingSetup, TradingSetup
from service.commands.user import columns_of
from service.errors import refusal_for
from service.registry import CommandTable
from service.unit_of_work import UnitOfWork

handlers = CommandTable()


@handlers.handles(CreateTradingSetup)
async def create_trading_setup(command: CreateTradingSetup, work: UnitOfWork) -> TradingSetup:
    with _blaming("user"):
        uid = (await work.users.add_user(columns_of(command.user))).uid
    with _blaming("exchange"):
        ex_id = (await work.exchanges.create({**command.exchange.model_dump(), "uid": uid})).ex_id
    with _blaming("bot"):
        bot_id = (await work.bots.add_bot({**command.bot.model_dump(), "uid": uid})).bot_id
    link = {"exchange_id": ex_id, "trading_currency": command.trading_currency}
    await work.bots.add_exchange_to_bot(bot_id, link)
    return TradingSetup(uid=uid, ex_id=ex_id, bot_id=bot_id)


@contextmanager
def _blaming(part: str) -> Iterator[None]:
    """Say of a refusal which part of the command it is about."""
    try:
        yield
    except Exception as error:
        refusal = refusal_for(error)
        if refusal is None:
            raise
        field = part if refusal.field is None else f"{part}.{refusal.field}"
        raise Refusal(refusal.code, refusal.message, field=field, retryable=refusal.retryable) from None
