"""A user with an account and a bot that may trade there, all at once or not at all."""

from typing import Any

import structlog

from service.database import get_async_session
from service.errors import sentence
from service.repositories import BotRepository, ExchangeRepository, UserRepository

log = structlog.get_logger()


async def create_complete_trading_setup(
    user_data: dict[str, Any],
    bot_data: dict[str, Any],
    exchange_data: dict[str, Any],
    *,
    trading_currency: str = "USDT",
) -> dict[str, Any]:
    """The user, the account and the bot that may trade there: ``{user, bot, exchange, success}``.

    Otherwise ``{error, success}``, and nothing was stored.
    """
    try:
        async with get_async_session() as session:
            bots = BotRepository(session)
            user = await UserRepository(session).add_user(user_data)
            exchange = await ExchangeRepository(session).create({**exchange_data, "uid": user.uid})
            bot = await bots.add_bot({**bot_data, "uid": user.uid})
            await bots.add_exchange_to_bot(
                bot.bot_id, {"exchange_id": exchange.ex_id, "trading_currency": trading_currency}
            )
    except Exception as error:  # noqa: BLE001 - the caller is told, not interrupted
        return {"error": sentence(error), "success": False}
    return {"user": user, "bot": bot, "exchange": exchange, "success": True}


async def complex_operation_with_cleanup(data: dict[str, Any]) -> dict[str, Any]:
    """A user, an account and a bot, as ``data`` say: ``{success, entities, user_id}``, with an id for each entity.

    Otherwise ``{success, error, attempted_entities}``, and nothing was stored. With ``simulate_error`` it fails
    before the commit.
    """
    entities: list[tuple[str, int]] = []
    try:
        async with get_async_session() as session:
            user = await UserRepository(session).add_user(data["user"])
            entities.append(("user", user.uid))
            exchange = await ExchangeRepository(session).create({**data["exchange"], "uid": user.uid})
            entities.append(("exchange", exchange.ex_id))
            bot = await BotRepository(session).add_bot({**data["bot"], "uid": user.uid})
            entities.append(("bot", bot.bot_id))
            if data.get("simulate_error"):
                raise ValueError("Simulated error for testing")  # noqa: TRY301 - it is to be caught here
    except Exception as error:  # noqa: BLE001 - the caller is told, not interrupted
        log.warning("rolled_back", error=sentence(error), entities=entities)
        return {"success": False, "error": sentence(error), "attempted_entities": entities}
    return {"success": True, "entities": entities, "user_id": user.uid}
