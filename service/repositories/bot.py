"""Bots, their exchange accounts and their logs in the database."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from contracts.bot import BotCreated, BotExchangeAdded, BotExchangeView, BotLogRef, BotLogSaved, BotView
from service.models import Bot, BotExchange, BotLog, Exchange
from service.outbox import record
from service.repositories.base import BaseRepository, differing
from service.repositories.ownership import check_owner


class BotRepository(BaseRepository[Bot]):
    """Bots with what is attached to them."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, Bot)

    async def add_bot(self, bot_data: dict[str, Any]) -> Bot:
        """A new bot. Raises IntegrityError if the owner has one of that name or does not exist."""
        bot = Bot(**bot_data)
        self.session.add(bot)
        await self.session.flush()
        record(self.session, BotCreated, after=BotView.model_validate(bot))
        return bot

    async def add_exchange_to_bot(self, bot_id: int, exchange_data: dict[str, Any]) -> BotExchange:
        """What the bot may do on an account (``exchange_id`` is its ``ex_id``), set or changed.

        ``not_found`` without such a bot or account, ``forbidden`` if they belong to different users.
        """
        bot = await self._locked(bot_id, "bot_id")
        values = {("exchange_id" if name == "ex_id" else name): value for name, value in exchange_data.items()}
        ex_id = values.pop("exchange_id")
        owner = await self.session.scalar(select(Exchange.uid).where(Exchange.ex_id == ex_id))
        check_owner("ex_id", f"exchange account {ex_id}", owner, bot.uid)
        link = await self.session.get(BotExchange, (bot_id, ex_id))
        before = None
        if link is None:
            link = BotExchange(bot_id=bot_id, exchange_id=ex_id, uid=bot.uid, **values)
            self.session.add(link)
        elif differing(link, values):
            before = BotExchangeView.model_validate(link)
            for name, value in values.items():
                setattr(link, name, value)
        else:
            return link
        await self.session.flush()
        record(self.session, BotExchangeAdded, before=before, after=BotExchangeView.model_validate(link))
        return link

    async def get_bot_with_details(self, bot_id: int) -> Bot | None:
        """The bot with its exchange accounts loaded, or None."""
        return await self.session.scalar(
            select(Bot).where(Bot.bot_id == bot_id).options(selectinload(Bot.bot_exchanges))
        )

    async def save_bot_log(self, log_data: dict[str, Any]) -> BotLog:
        """A new entry. ``not_found`` without such a bot."""
        entry = (await self.session.scalars(insert(BotLog).values(log_data).returning(BotLog))).one()
        record(self.session, BotLogSaved, after=BotLogRef.model_validate(entry))
        return entry

    async def get_last_bot_log(self, bot_id: int) -> BotLog | None:
        """The newest entry of the bot's log, or None."""
        return next(iter(await self.get_last_actions(bot_id, limit=1)), None)

    async def get_last_actions(self, bot_id: int, limit: int = 10) -> list[BotLog]:
        """The newest entries of the bot's log, newest first."""
        return list(
            await self.session.scalars(
                select(BotLog)
                .where(BotLog.bot_id == bot_id)
                .order_by(BotLog.timestamp.desc(), BotLog.log_id.desc())
                .limit(limit)
            )
        )
