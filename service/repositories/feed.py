"""Feeds of bots in the database."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Integer,
    Select,
    SmallInteger,
    and_,
    cast,
    column,
    delete,
    insert,
    select,
    update,
    values,
)
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.errors import ErrorCode, Refusal
from contracts.feed import BotFeedsChanged, FeedView
from service.models import Bot, BotExchange, Exchange, Feed, Strategy, Symbol
from service.outbox import record
from service.repositories.base import BaseRepository, differing, locked

_UNSAID: Final[dict[str, Any]] = {"str_id": None, "ex_id": None, "enabled": True}

Key = tuple[int | None, int, str]
"""What tells the feeds of a bot apart: strategy, symbol and timeframe."""


class FeedRepository(BaseRepository[Feed]):
    """Feeds by the bot that listens to them. Who changes some holds the bot's row, so that places stay unique."""

    view = FeedView
    updated = BotFeedsChanged
    deleted = BotFeedsChanged

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, Feed)

    async def create(self, data: dict[str, Any]) -> Feed:
        """The feed of the bot that ``data`` name. See `add`."""
        bot = await locked(self.session, Bot, data["bot_id"], "bot_id")
        feed, _ = await self.add(bot, {name: value for name, value in data.items() if name != "bot_id"})
        return feed

    async def update(self, id: int, updates: dict[str, Any], *, expected_version: int | None = None) -> Feed:  # noqa: A002
        """The feed enabled or not, or at another place; the rest tells it apart from others."""
        if others := sorted(updates.keys() - {"enabled", "order"}):
            raise Refusal(ErrorCode.VALIDATION, "is changed with edit_feeds", field=others[0])
        await self._hold_bot_of(id)
        return await super().update(id, updates, expected_version=expected_version)

    async def delete(self, id: int) -> None:  # noqa: A002 - the name callers know
        """Have the bot listen to it no more; ``not_found`` without such a feed."""
        await self._hold_bot_of(id)
        await super().delete(id)

    async def _hold_bot_of(self, feed_id: int) -> None:
        bot = select(Feed.bot_id).where(Feed.feed_id == feed_id).scalar_subquery()
        await self.session.execute(select(Bot.bot_id).where(Bot.bot_id == bot).with_for_update())

    async def add(self, bot: Bot, feed_data: dict[str, Any]) -> tuple[Feed, bool]:
        """The feed, and whether it is new; ``conflict`` if the bot has it with other content."""
        feed_data = dict(feed_data)
        await self._check(bot, [feed_data], path="")
        feeds = await self.of_bot(bot.bot_id)
        existing = next((feed for feed in feeds if _key(feed) == _key_of(feed_data)), None)
        said = {name: value for name, value in feed_data.items() if name != "order" or value is not None}
        if existing is not None:
            if fields := differing(existing, said):
                raise Refusal(
                    ErrorCode.CONFLICT, f"the bot has this feed with another {', '.join(fields)}", field="timeframe"
                )
            return existing, False
        last = max((feed.order for feed in feeds), default=0)
        feed = Feed(**{"order": last + 1, **said, "bot_id": bot.bot_id, "cat_ex_id": feed_data["cat_ex_id"]})
        self.session.add(feed)
        await self.session.flush()
        record(self.session, BotFeedsChanged, after=FeedView.model_validate(feed))
        return feed, True

    async def replace(self, bot: Bot, feeds_data: Sequence[dict[str, Any]]) -> tuple[list[Feed], bool]:
        """The bot's feeds once they are these and no others, by their order, and whether anything had to change.

        Feeds that stay keep their ids. A statement each for what goes, changes and comes.
        """
        wanted = _placed(feeds_data)
        await self._check(bot, list(wanted.values()), path="feeds.{}.")
        stored = {_key(feed): feed for feed in await self.of_bot(bot.bot_id)}
        before = {feed.feed_id: FeedView.model_validate(feed) for feed in stored.values()}
        gone = [feed.feed_id for key, feed in stored.items() if key not in wanted]
        changed = {
            stored[key].feed_id: data
            for key, data in wanted.items()
            if key in stored and differing(stored[key], data)
        }
        new = [{**data, "bot_id": bot.bot_id} for key, data in wanted.items() if key not in stored]
        if not (gone or changed or new):
            return list(stored.values()), False
        if gone:
            await self.session.execute(delete(Feed).where(Feed.feed_id.in_(gone)))
        if changed:
            await self.session.execute(_change(changed))
        if new:
            await self.session.execute(insert(Feed), new)
        feeds = await self.of_bot(bot.bot_id)
        for feed_id in gone:
            record(self.session, BotFeedsChanged, before=before[feed_id])
        for feed in feeds:
            if feed.feed_id in changed or feed.feed_id not in before:
                record(
                    self.session,
                    BotFeedsChanged,
                    before=before.get(feed.feed_id),
                    after=FeedView.model_validate(feed),
                )
        return feeds, True

    async def of_bot(self, bot_id: int) -> list[Feed]:
        """The feeds of a bot by their order."""
        return list(
            await self.session.scalars(
                select(Feed)
                .where(Feed.bot_id == bot_id)
                .order_by(Feed.order)
                .execution_options(populate_existing=True)
            )
        )

    async def _check(self, bot: Bot, feeds: Sequence[dict[str, Any]], *, path: str) -> None:
        """Give each feed the catalog exchange of its symbol, or refuse the first that names what does not belong.

        ``path`` leads to a feed in the message, with a gap for its place there.
        """
        listed = select(Symbol.id, Symbol.exchange_id).where(Symbol.id.in_({feed["symbol_id"] for feed in feeds}))
        catalogs = dict((await self.session.execute(listed)).all())
        bots = await self._bots_of_strategies({feed["str_id"] for feed in feeds if feed.get("str_id") is not None})
        accounts = await self._accounts(bot, {feed["ex_id"] for feed in feeds if feed.get("ex_id") is not None})
        for place, feed in enumerate(feeds):
            symbol_id, str_id, ex_id = feed["symbol_id"], feed.get("str_id"), feed.get("ex_id")
            at = path.format(place)
            if symbol_id not in catalogs:
                raise Refusal(ErrorCode.NOT_FOUND, f"there is no symbol {symbol_id}", field=f"{at}symbol_id")
            feed["cat_ex_id"] = catalogs[symbol_id]
            if str_id is not None and str_id not in bots:
                raise Refusal(ErrorCode.NOT_FOUND, f"there is no strategy {str_id}", field=f"{at}str_id")
            if str_id is not None and bots[str_id] != bot.bot_id:
                raise Refusal(
                    ErrorCode.FORBIDDEN, f"strategy {str_id} is not run by bot {bot.bot_id}", field=f"{at}str_id"
                )
            if ex_id is None:
                continue
            if ex_id not in accounts:
                raise Refusal(ErrorCode.NOT_FOUND, f"there is no exchange account {ex_id}", field=f"{at}ex_id")
            catalog, usable = accounts[ex_id]
            if not usable:
                raise Refusal(
                    ErrorCode.FORBIDDEN,
                    f"exchange account {ex_id} is not one that bot {bot.bot_id} may use",
                    field=f"{at}ex_id",
                )
            if catalog != feed["cat_ex_id"]:
                raise Refusal(
                    ErrorCode.FORBIDDEN,
                    f"symbol {symbol_id} is not listed on the exchange of account {ex_id}",
                    field=f"{at}symbol_id",
                )

    async def _bots_of_strategies(self, ids: set[int]) -> dict[int, int]:
        if not ids:
            return {}
        rows = await self.session.execute(select(Strategy.str_id, Strategy.bot_id).where(Strategy.str_id.in_(ids)))
        return dict(rows.all())

    async def _accounts(self, bot: Bot, ids: set[int]) -> dict[int, tuple[int, bool]]:
        """Of each account its catalog exchange, and whether the bot may use it."""
        if not ids:
            return {}
        link = and_(BotExchange.exchange_id == Exchange.ex_id, BotExchange.bot_id == bot.bot_id)
        rows = await self.session.execute(
            select(Exchange.ex_id, Exchange.cat_ex_id, BotExchange.bot_id)
            .outerjoin(BotExchange, link)
            .where(Exchange.ex_id.in_(ids))
        )
        return {ex_id: (catalog, linked is not None) for ex_id, catalog, linked in rows}


def _key(feed: Feed) -> Key:
    return feed.str_id, feed.symbol_id, feed.timeframe


def _key_of(data: dict[str, Any]) -> Key:
    return data.get("str_id"), data["symbol_id"], data["timeframe"]


def _placed(feeds_data: Sequence[dict[str, Any]]) -> dict[Key, dict[str, Any]]:
    """The feeds by their key, each with its place: the one it names, or where it stands in the list, from 1."""
    wanted: dict[Key, dict[str, Any]] = {}
    places: set[int] = set()
    for index, data in enumerate(feeds_data):
        order = data.get("order")
        feed = {**_UNSAID, **data, "order": index + 1 if order is None else order}
        if _key_of(feed) in wanted:
            raise Refusal(ErrorCode.VALIDATION, "is there twice", field=f"feeds.{index}")
        if feed["order"] in places:
            raise Refusal(
                ErrorCode.VALIDATION, f"another feed stands at place {feed['order']}", field=f"feeds.{index}.order"
            )
        wanted[_key_of(feed)] = feed
        places.add(feed["order"])
    return wanted


def _change(changed: dict[int, dict[str, Any]]) -> Any:
    """One statement for all, because two feeds that change places cannot do it one after the other."""
    columns = (
        column("feed_id", Integer),
        column("order", SmallInteger),
        column("enabled", Boolean),
        column("ex_id", Integer),
    )
    wanted = values(*columns, name="wanted").data(
        [(feed_id, data["order"], data["enabled"], data["ex_id"]) for feed_id, data in changed.items()]
    )
    return (
        update(Feed)
        .where(Feed.feed_id == wanted.c.feed_id)
        .values(
            order=wanted.c.order,
            enabled=wanted.c.enabled,
            # A column of nothing but nulls would be taken for text.
            ex_id=cast(wanted.c.ex_id, Integer),
            row_version=Feed.row_version + 1,
        )
        .execution_options(synchronize_session=False)
    )


def feeds_where(which: ColumnElement[bool]) -> Select[Feed]:
    """Feeds by id, as they are now."""
    return select(Feed).where(which).order_by(Feed.feed_id).execution_options(populate_existing=True)
