"""Logs of bots in the database."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Final

from pydantic import ValidationError
from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.base import refusal_of
from contracts.bot_log import BotLogRef, BotLogSaved, LogFields, SaveBotLog
from contracts.errors import ErrorCode, Refusal
from contracts.topology import MAX_CHANGES_PER_EVENT
from service.cursor import behind
from service.inbox import SENT, Sent, remembered
from service.models import BotLog
from service.outbox import announced_as, cause, change_as_json, record
from service.repositories.base import BaseRepository, exact, in_utc

# One round trip: read the rows, see that their bots exist, insert, announce, remember the messages they came in.
_SAVE_NEW_LOGS: Final = text(f"""
WITH given AS MATERIALIZED (
    SELECT nextval('bot_logs_log_id_seq') AS log_id, row.*
    FROM ROWS FROM (
        json_to_recordset(CAST(:rows AS json)) AS (
            bot_id int, message text, level text, action text, "timestamp" timestamptz, feed_num smallint, ex_id int,
            symbol text, position numeric, data jsonb
        ),
        {SENT}
    ) WITH ORDINALITY AS row (
        bot_id, message, level, action, "timestamp", feed_num, ex_id, symbol, position, data,
        message_id, payload_hash, place
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
    INSERT INTO outbox (type, causation_ids, changes, stale_keys, keys, versions)
    SELECT 'bot_log.saved', array_remove(array_agg(message_id ORDER BY place), NULL),
        '[' || string_agg({change_as_json(BotLogSaved, "given")}, ',' ORDER BY place) || ']', '{{}}',
        {announced_as(BotLogSaved, "given", order_by="place")}
    FROM given
    HAVING count(*) > 0
), {remembered(SaveBotLog, "log_id")}
SELECT place - 1 AS position, log_id FROM given
""")  # noqa: S608 - put together from the contracts, nothing of it comes from outside


class BotLogRepository(BaseRepository[BotLog]):
    """Entries of logs by bot and time."""

    never: ClassVar[Mapping[str, str]] = {
        "update": "what a log says is never changed",
        "delete": "an entry goes with its bot, or once it is old",
    }

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, BotLog)

    async def create(self, data: dict[str, Any]) -> BotLog:
        """A new entry. See `save`."""
        return await self.save(data)

    async def save(self, log_data: dict[str, Any]) -> BotLog:
        """A new entry. ``not_found`` without such a bot."""
        entry = (await self.session.scalars(insert(BotLog).values(exact(log_data)).returning(BotLog))).one()
        record(self.session, BotLogSaved, after=BotLogRef.model_validate(entry))
        return entry

    async def save_new(self, entries: Sequence[LogFields], sent: Sent) -> dict[int, int]:
        """Store and announce those of ``entries`` whose bot exists, in one statement and one event.

        Gives the id of each by its position. ``sent`` are the messages they came in.
        """
        rows = f"[{','.join(entry.model_dump_json(exclude_none=True) for entry in entries)}]"
        stored = await self.session.execute(_SAVE_NEW_LOGS, sent.parameters(rows))
        return {row[0]: row[1] for row in stored}

    async def save_list(self, logs: Sequence[LogFields | dict[str, Any]]) -> list[int]:
        """The ids of new entries, in the order of the list; a statement and an event for every 500.

        All or nothing: ``not_found`` names the first whose bot does not exist, and none is stored.
        """
        entries = [_log_fields(place, entry) for place, entry in enumerate(logs)]
        log_ids: list[int] = []
        async with self.session.begin_nested():
            for start in range(0, len(entries), MAX_CHANGES_PER_EVENT):
                some = entries[start : start + MAX_CHANGES_PER_EVENT]
                # An event names its cause once, so the first entry brings it.
                stored = await self.save_new(some, Sent([cause(self.session), *[None] * (len(some) - 1)]))
                for place, entry in enumerate(some):
                    if place not in stored:
                        raise Refusal(
                            ErrorCode.NOT_FOUND,
                            f"there is no bot {entry.bot_id}",
                            field=f"logs.{start + place}.bot_id",
                        )
                    log_ids.append(stored[place])
        return log_ids

    async def get(self, log_id: int) -> BotLog | None:
        """The entry with this id, or None."""
        return await self.session.scalar(select(BotLog).where(BotLog.log_id == log_id))

    async def newest_first(
        self,
        bot_id: int,
        *,
        level: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> list[BotLog]:
        """Entries of the bot's log, newest first: of a level, from ``start_date`` on, before ``end_date``."""
        logs = select(BotLog).where(
            BotLog.bot_id == bot_id, behind(cursor, BotLog.timestamp, BotLog.log_id, newest_first=True)
        )
        if level is not None:
            logs = logs.where(BotLog.level == level)
        if start_date is not None:
            logs = logs.where(BotLog.timestamp >= in_utc(start_date))
        if end_date is not None:
            logs = logs.where(BotLog.timestamp < in_utc(end_date))
        newest_first = logs.order_by(BotLog.timestamp.desc(), BotLog.log_id.desc())
        return list(await self.session.scalars(newest_first.limit(limit)))


def _log_fields(place: int, entry: LogFields | dict[str, Any]) -> LogFields:
    if isinstance(entry, LogFields):
        return entry
    try:
        return LogFields.model_validate(exact(entry))
    except ValidationError as error:
        refusal = refusal_of(error)
        raise Refusal(refusal.code, refusal.message, field=f"logs.{place}.{refusal.field}") from None
