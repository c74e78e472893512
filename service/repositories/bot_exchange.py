"""The exchange accounts that bots may use, in the database."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.bot import BotExchangeAdded, BotExchangeRemoved, BotExchangeView
from contracts.errors import ErrorCode, Refusal
from contracts.feed import BotFeedsChanged, FeedView
from service.models import Bot, BotExchange, Exchange, Feed
from service.outbox import record
from service.repositories.base import check_version, differing, exact
from service.repositories.feed import feeds_where
from service.repositories.ownership import check_owner


class BotExchangeRepository:
    """Links of bots with accounts. Who changes some holds the bots' rows."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def allow(self, bot: Bot, exchange_data: dict[str, Any]) -> BotExchange:
        """What the bot may do on an account (``exchange_id`` is its ``ex_id``), set or changed.

        ``not_found`` without such an account, ``forbidden`` if it is another user's.
        """
        data = exact(exchange_data)
        values = {("exchange_id" if name == "ex_id" else name): value for name, value in data.items()}
        ex_id = values.pop("exchange_id")
        owner = await self.session.scalar(select(Exchange.uid).where(Exchange.ex_id == ex_id))
        check_owner("ex_id", f"exchange account {ex_id}", owner, bot.uid)
        link = await self.session.get(BotExchange, (bot.bot_id, ex_id))
        before = None
        if link is None:
            link = BotExchange(bot_id=bot.bot_id, exchange_id=ex_id, uid=bot.uid, **values)
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

    async def remove(self, bot: Bot, ex_id: int, *, expected_version: int | None = None) -> bool:
        """Whether the bot could use the account until now; its feeds stay, without an account.

        ``conflict`` if the bot is live and the account the last one it has credentials for.
        """
        links = await self.held(BotExchange.bot_id == bot.bot_id, BotExchange.exchange_id == ex_id)
        for link in links:
            check_version(link, expected_version)
        if links and await self.session.scalar(select(Exchange.has_credentials).where(Exchange.ex_id == ex_id)):
            await self.refuse_to_strand([bot], ex_id, field="ex_id")
        await self.remove_all(links)
        return bool(links)

    async def remove_all(self, links: Sequence[BotExchange]) -> None:
        """Let bots use accounts no more, and their feeds take prices from none of them in particular.

        As many statements for many links as for one.
        """
        if not links:
            return
        used = [and_(Feed.bot_id == link.bot_id, Feed.ex_id == link.exchange_id) for link in links]
        feeds = list(await self.session.scalars(feeds_where(or_(*used))))
        before = {feed.feed_id: FeedView.model_validate(feed) for feed in feeds}
        if feeds:
            await self.session.execute(
                update(Feed)
                .where(Feed.feed_id.in_(before))
                .values(ex_id=None, row_version=Feed.row_version + 1)
                .execution_options(synchronize_session=False)
            )
        for feed in await self.session.scalars(feeds_where(Feed.feed_id.in_(before))):
            record(self.session, BotFeedsChanged, before=before[feed.feed_id], after=FeedView.model_validate(feed))
        for link in links:
            record(self.session, BotExchangeRemoved, before=BotExchangeView.model_validate(link))
        gone = [(link.bot_id, link.exchange_id) for link in links]
        await self.session.execute(
            delete(BotExchange)
            .where(tuple_(BotExchange.bot_id, BotExchange.exchange_id).in_(gone))
            .execution_options(synchronize_session="fetch")
        )

    async def held(self, *which: ColumnElement[bool]) -> list[BotExchange]:
        """Links by bot and account, locked until the transaction ends."""
        return list(
            await self.session.scalars(
                select(BotExchange)
                .where(*which)
                .order_by(BotExchange.bot_id, BotExchange.exchange_id)
                .with_for_update()
                .execution_options(populate_existing=True)
            )
        )

    async def to_account(self, ex_id: int) -> tuple[list[BotExchange], list[int]]:
        """The links of bots with an account, and which of the bots are live; none of them changes meanwhile."""
        rows = (
            await self.session.execute(
                select(BotExchange, Bot)
                .join(Bot, Bot.bot_id == BotExchange.bot_id)
                .where(BotExchange.exchange_id == ex_id)
                .order_by(BotExchange.bot_id)
                .with_for_update(of=Bot, read=True)
                .execution_options(populate_existing=True)
            )
        ).all()
        return [link for link, _ in rows], [bot.bot_id for _, bot in rows if bot.is_live]

    async def of_bot(self, bot_id: int) -> list[BotExchange]:
        """The accounts that a bot may use."""
        return list(
            await self.session.scalars(
                select(BotExchange).where(BotExchange.bot_id == bot_id).order_by(BotExchange.exchange_id)
            )
        )

    async def trading_currency(self, bot_id: int, ex_id: int) -> str | None:
        """What the bot trades in on an account, or None."""
        return await self.session.scalar(
            select(BotExchange.trading_currency).where(BotExchange.bot_id == bot_id, BotExchange.exchange_id == ex_id)
        )

    async def with_credentials(self, bot_ids: Sequence[int], *, without: int | None = None) -> set[int]:
        """Which of these bots have an account with credentials, other than ``without``."""
        linked = (
            select(BotExchange.bot_id)
            .join(Exchange, Exchange.ex_id == BotExchange.exchange_id)
            .where(
                BotExchange.bot_id.in_(bot_ids), Exchange.has_credentials, Exchange.ex_id.is_distinct_from(without)
            )
        )
        return set(await self.session.scalars(linked))

    async def refuse_to_strand(self, bots: Sequence[Bot], ex_id: int, *, field: str) -> None:
        """``conflict`` if one of these bots is live and has credentials for no account but ``ex_id``.

        The caller has locked them, so that none is activated meanwhile.
        """
        live = [bot.bot_id for bot in bots if bot.is_live]
        stranded = set(live) - await self.with_credentials(live, without=ex_id) if live else set()
        if stranded:
            raise Refusal(
                ErrorCode.CONFLICT,
                f"bot {min(stranded)} is active and live, and has no other account with credentials",
                field=field,
            )

    async def bots_using(self, ex_id: int) -> list[Bot]:
        """The bots that may use an account, locked until the transaction ends."""
        return list(
            await self.session.scalars(
                select(Bot)
                .join(BotExchange, BotExchange.bot_id == Bot.bot_id)
                .where(BotExchange.exchange_id == ex_id)
                .order_by(Bot.bot_id)
                .with_for_update(of=Bot, key_share=True)
                .execution_options(populate_existing=True)
            )
        )
