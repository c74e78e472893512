"""Bots."""

from collections.abc import Sequence

from service.database import get_async_session
from service.models import Bot
from service.repositories import BotRepository


async def get_bots_with_details_batch(bot_ids: Sequence[int]) -> list[Bot]:
    """Bots with owner, strategies, exchange accounts and feeds loaded, in the order asked for.

    As many statements for many bots as for one.
    """
    async with get_async_session() as session:
        return await BotRepository(session).get_bots_with_details(bot_ids, with_user=True)
