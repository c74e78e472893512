"""Bots, their exchange accounts and their logs in the database."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from contracts.bot import BotCreated, BotExchangeAdded, BotExchangeView, BotLogRef, BotLogSaved, BotView, SaveBotLog
from service.models import Bot, BotExchange, BotLog, Exchange
from service.outbox import change_as_json, record
from service.repositories.base import BaseRepository, differing
from service.repositories.ownership import check_owner

# One round trip: read the rows, see that their bots exist, insert, announce.
_SAVE_NEW_LOGS: Final = text(f"""
WITH given AS MATERIALIZED (
    SELECT nextval('bot_logs_log_id_seq') AS log_id, row.*
    FROM ROWS FROM (
        json_to_recordset(CAST(:rows AS json)) AS (
            bot_id int, message text, level text, action text, "timestamp" timestamptz, feed_num smallint, ex_id int,
            symbol text, position numeric, data jsonb
        ),
        unnest(CAST(:causes AS uuid[]))
    ) WITH ORDINALITY AS row (
        bot_id, message, level, action, "timestamp", feed_num, ex_id, symbol, position, data, cause, place
    )
    JOIN bots AS bot ON bot.bot_id = row.bot_id
    ORDER BY row.place
), stored AS (
    INSERT INTO bot_logs (
        log_id, bot_id, level, action, message, feed_num, ex_id, symbol, position, data, "timestamp"
    ) OVERRIDING SYSTEM VALUE
    SELECT log_id, bot_id, coalesce(level, 'INFO'), action, message, feed_num, ex_id, symbol, position, data,
        coalesce("timestamp", now())
    FROM given
), announced AS (
    INSERT INTO outbox (type, causation_ids, changes, stale_keys)
    SELECT 'bot_log.saved', array_agg(cause ORDER BY place),
        '[' || string_agg({change_as_json(BotLogSaved, "given")}, ',' ORDER BY place) || ']', '{{}}'
    FROM given
    HAVING count(*) > 0
)
SELECT place - 1 AS position, log_id FROM given
""")  # noqa: S608 - put together from the contracts, nothing of it comes from outside


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

    async def save_new_logs(self, entries: Sequence[SaveBotLog], causes: Sequence[UUID]) -> dict[int, int]:
        """Store and announce those of ``entries`` whose bot exists, in one statement and one event.

        Gives the id of each by its position. ``causes`` are the ids of the messages they came in.
        """
        rows = f"[{','.join(entry.model_dump_json(exclude_none=True) for entry in entries)}]"
        stored = await self.session.execute(_SAVE_NEW_LOGS, {"rows": rows, "causes": list(causes)})
        return {row.position: row.log_id for row in stored}

    async def get_bot_log(self, log_id: int) -> BotLog | None:
        """The entry with this id, or None."""
        return await self.session.scalar(select(BotLog).where(BotLog.log_id == log_id))

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
