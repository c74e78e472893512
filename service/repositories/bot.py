"""Bots and their exchange accounts in the database, and what hangs on a bot under the manual's names."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import compress
from typing import Any

import structlog
from sqlalchemy import (
    Row,
    Select,
    and_,
    case,
    delete,
    exists,
    func,
    literal,
    select,
    true,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import joinedload, selectinload

from contracts.bot import (
    BotCreated,
    BotDeleted,
    BotExchangeRemoved,
    BotExchangeView,
    BotRemoval,
    BotUpdated,
    BotView,
)
from contracts.bot_log import LogFields
from contracts.errors import ErrorCode, Refusal
from contracts.feed import BotFeedsChanged, FeedView
from service.cursor import behind
from service.models import (
    OPEN_STATUSES,
    Bot,
    BotExchange,
    BotLog,
    DryTrade,
    Feed,
    Order,
    Simulation,
    Strategy,
    Trade,
)
from service.outbox import record
from service.repositories.base import BaseRepository, check_version, delete_by_owner, differing, fitting, moves_key
from service.repositories.bot_exchange import BotExchangeRepository
from service.repositories.bot_log import BotLogRepository
from service.repositories.feed import FeedRepository, feeds_where
from service.repositories.simulation import SimulationRepository
from service.repositories.strategy import StrategyRepository
from service.repositories.trade import TradeRepository

log = structlog.get_logger()


class BotRepository(BaseRepository[Bot]):
    """Bots with what is attached to them."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, Bot)

    async def create(self, data: dict[str, Any]) -> Bot:
        """A new bot. See `add_bot`."""
        return await self.add_bot(data)

    async def update(self, id: int, updates: dict[str, Any], *, expected_version: int | None = None) -> Bot:  # noqa: A002
        """The bot with ``updates`` applied. See `edit_bot`."""
        return await self.edit_bot(id, updates, expected_version=expected_version)

    async def delete(self, id: int) -> None:  # noqa: A002 - the name callers know
        """Delete the bot with what hangs on it. See `delete_bot`."""
        await self.delete_bot(id)

    async def add_bot(self, bot_data: dict[str, Any]) -> Bot:
        """A new bot. Raises IntegrityError if the owner has one of that name or does not exist.

        It may be active and live from the start, before any account is attached to it, which a log entry tells.
        """
        bot = Bot(**fitting(Bot, bot_data))
        self.session.add(bot)
        await self.session.flush()
        if bot.is_live:
            log.warning("live_bot_without_account", bot_id=bot.bot_id, uid=bot.uid)
        record(self.session, BotCreated, after=BotView.model_validate(bot))
        return bot

    async def edit_bot(self, bot_id: int, updates: dict[str, Any], *, expected_version: int | None = None) -> Bot:
        """The bot with ``updates`` applied; no new version and no event if nothing differs.

        ``conflict`` for a live bot that is to become active without credentials for any exchange account, and for
        another owner while accounts, orders or trades of the present one are attached.
        """
        bot = await self._locked(bot_id, "bot_id", whole=moves_key(Bot, updates))
        check_version(bot, expected_version)
        updates = self._changeable(updates)
        changing = differing(bot, updates)
        if not changing:
            return bot
        if "uid" in changing:
            await self._refuse_if_attached(bot)
        becomes_live = updates.get("active", bot.active) and not updates.get("dry_run", bot.dry_run)
        if becomes_live and {"active", "dry_run"} & set(changing):
            await self._refuse_without_credentials(bot_id)
        before = BotView.model_validate(bot)
        for name, value in updates.items():
            setattr(bot, name, value)
        await self.session.flush()
        record(self.session, BotUpdated, before=before, after=BotView.model_validate(bot))
        return bot

    async def _refuse_without_credentials(self, bot_id: int) -> None:
        if not await BotExchangeRepository(self.session).with_credentials([bot_id]):
            raise Refusal(
                ErrorCode.CONFLICT, "a live bot needs an exchange account with credentials first", field="active"
            )

    async def _refuse_if_attached(self, bot: Bot) -> None:
        attached = (
            await self.session.execute(
                select(
                    *(exists().where(model.bot_id == bot.bot_id) for model in (BotExchange, Order, Trade)),
                )
            )
        ).one()
        what = next(compress(("exchange accounts", "orders", "trades"), attached), None)
        if what is not None:
            raise Refusal(ErrorCode.CONFLICT, f"the bot has {what} of its present owner", field="uid")

    async def delete_bot(
        self, bot_id: int, *, force: bool = False, expected_version: int | None = None
    ) -> BotRemoval:
        """What went with the bot: feeds, strategies, dry trades, simulations, logs. Orders and trades stay.

        ``conflict`` while it has open orders or is active and live, unless ``force``.
        """
        bot = await self._locked(bot_id, "bot_id", whole=True)
        check_version(bot, expected_version)
        if not force:
            if bot.is_live:
                raise Refusal(ErrorCode.CONFLICT, "the bot is active and live", field="force")
            if await self.session.scalar(
                select(exists().where(Order.bot_id == bot_id, Order.status.in_(OPEN_STATUSES)))
            ):
                raise Refusal(ErrorCode.CONFLICT, "the bot has open orders", field="force")
        [removal] = await self.remove([bot])
        return removal

    async def remove(self, bots: Sequence[Bot]) -> list[BotRemoval]:
        """Delete bots that the caller has locked as a whole, and announce all that goes with each; in that order.

        Asks nothing: who may go is the caller's to know. As many statements for many bots as for one.
        """
        if not bots:
            return []
        ids = [bot.bot_id for bot in bots]
        links = await BotExchangeRepository(self.session).held(BotExchange.bot_id.in_(ids))
        strategies = list(
            await self.session.scalars(
                select(Strategy)
                .where(Strategy.bot_id.in_(ids))
                .order_by(Strategy.str_id)
                .options(selectinload(Strategy.param_rows))
                .with_for_update()
                .execution_options(populate_existing=True)
            )
        )
        feeds = list(await self.session.scalars(feeds_where(Feed.bot_id.in_(ids))))
        for feed in feeds:
            record(self.session, BotFeedsChanged, before=FeedView.model_validate(feed))
        StrategyRepository(self.session).record_removal(strategies)
        for link in links:
            record(self.session, BotExchangeRemoved, before=BotExchangeView.model_validate(link))
        dry_trades = await TradeRepository(self.session).clear_dry_trades(DryTrade.bot_id.in_(ids))
        for bot in bots:
            record(self.session, BotDeleted, before=BotView.model_validate(bot))
        logs = await delete_by_owner(self.session, BotLog.log_id, BotLog.bot_id, BotLog.bot_id.in_(ids))
        simulations = await delete_by_owner(
            self.session, Simulation.simulation_id, Simulation.bot_id, Simulation.bot_id.in_(ids)
        )
        for model in (Feed, Strategy, BotExchange, Bot):
            await self.session.execute(delete(model).where(model.bot_id.in_(ids)))
        return [
            BotRemoval(
                bot_id=bot_id,
                bot_exchanges=sum(link.bot_id == bot_id for link in links),
                strategies=sum(strategy.bot_id == bot_id for strategy in strategies),
                feeds=sum(feed.bot_id == bot_id for feed in feeds),
                dry_trades=dry_trades.get(bot_id, 0),
                simulations=simulations[bot_id].number if bot_id in simulations else 0,
                logs=logs[bot_id].number if bot_id in logs else 0,
            )
            for bot_id in ids
        ]

    async def add_exchange_to_bot(self, bot_id: int, exchange_data: dict[str, Any]) -> BotExchange:
        """What the bot may do on an account (``exchange_id`` is its ``ex_id``), set or changed.

        ``not_found`` without such a bot or account, ``forbidden`` if they belong to different users.
        """
        return await BotExchangeRepository(self.session).allow(await self._locked(bot_id, "bot_id"), exchange_data)

    async def remove_exchange_from_bot(self, bot_id: int, ex_id: int, *, expected_version: int | None = None) -> bool:
        """Whether the bot could use the account until now; its feeds stay, without an account.

        ``conflict`` if the bot is live and the account the last one it has credentials for.
        """
        bot = await self._locked(bot_id, "bot_id")
        return await BotExchangeRepository(self.session).remove(bot, ex_id, expected_version=expected_version)

    async def add_feed_to_bot(self, bot_id: int, feed_data: dict[str, Any]) -> Feed:
        """The bot's feed of this symbol and timeframe, added if it was not there.

        ``not_found`` or ``forbidden`` for a symbol, strategy or account that does not exist or belong; ``conflict``
        if the bot has this feed with other content.
        """
        feed, _ = await self.place_feed(bot_id, feed_data)
        return feed

    async def place_feed(self, bot_id: int, feed_data: dict[str, Any]) -> tuple[Feed, bool]:
        """The feed, and whether it is new. See `add_feed_to_bot`."""
        return await FeedRepository(self.session).add(await self._locked(bot_id, "bot_id"), feed_data)

    async def edit_feeds(self, bot_id: int, feeds_data: Sequence[dict[str, Any]]) -> list[Feed]:
        """The bot's feeds once they are these and no others. See `FeedRepository.replace`."""
        feeds, _ = await self.replace_feeds(bot_id, feeds_data)
        return feeds

    async def replace_feeds(self, bot_id: int, feeds_data: Sequence[dict[str, Any]]) -> tuple[list[Feed], bool]:
        """The feeds, and whether anything had to change. See `edit_feeds`."""
        return await FeedRepository(self.session).replace(await self._locked(bot_id, "bot_id"), feeds_data)

    async def get_bot_feeds(self, bot_id: int) -> list[Feed]:
        """The feeds of a bot by their order."""
        return await FeedRepository(self.session).of_bot(bot_id)

    async def get_feed_id(self, bot_id: int, symbol_id: int, timeframe: str, str_id: int | None = None) -> int | None:
        """The id of the bot's feed of this symbol and timeframe, of the whole bot or of a strategy; None without."""
        return await self.session.scalar(
            select(Feed.feed_id).where(
                Feed.bot_id == bot_id,
                Feed.symbol_id == symbol_id,
                Feed.timeframe == timeframe,
                Feed.str_id.is_not_distinct_from(str_id),
            )
        )

    async def get_bot_exchanges(self, bot_id: int) -> list[BotExchange]:
        """The exchange accounts that a bot may use."""
        return await BotExchangeRepository(self.session).of_bot(bot_id)

    async def get_bot_strategies(self, bot_id: int) -> list[Strategy]:
        """All that a bot runs, oldest first."""
        return await StrategyRepository(self.session).get_bot_strategies(bot_id)

    async def get_bot_with_details(self, bot_id: int) -> Bot | None:
        """The bot with exchange accounts, strategies and feeds loaded, or None."""
        return await self.session.scalar(_with_details().where(Bot.bot_id == bot_id))

    async def get_bots_with_details(self, bot_ids: Sequence[int], *, with_user: bool = False) -> list[Bot]:
        """Bots with everything loaded, in the order asked for, without those that do not exist."""
        wanted = _with_details().where(Bot.bot_id.in_(bot_ids))
        if with_user:
            wanted = wanted.options(joinedload(Bot.user))
        bots = {bot.bot_id: bot for bot in await self.session.scalars(wanted)}
        return [bots[bot_id] for bot_id in dict.fromkeys(bot_ids) if bot_id in bots]

    async def get_bots_by_user(self, uid: int) -> list[Bot]:
        """All bots of a user, oldest first."""
        return await self.get_bot_list(uid)

    async def get_bot_list(
        self,
        uid: int | None = None,
        *,
        active: bool | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> list[Bot]:
        """Bots, oldest first: all, those of a user, or only active or inactive ones."""
        bots = select(Bot).where(behind(cursor, Bot.bot_id)).order_by(Bot.bot_id).limit(limit)
        if uid is not None:
            bots = bots.where(Bot.uid == uid)
        if active is not None:
            bots = bots.where(Bot.active.is_(active))
        return list(await self.session.scalars(bots))

    async def get_bot_full_list(self, *, limit: int | None = None, cursor: str | None = None) -> list[Bot]:
        """All bots with everything loaded, oldest first."""
        page = _with_details().where(behind(cursor, Bot.bot_id)).order_by(Bot.bot_id).limit(limit)
        return list(await self.session.scalars(page))

    async def get_bot_params(self, bot_id: int) -> dict[str, Any]:
        """What the bot is configured with, ready for ``json.dumps``; empty if there is no such bot."""
        bot = await self.get_bot_with_details(bot_id)
        if bot is None:
            return {}
        return {
            **bot.to_dict(),
            "bot_exchanges": [link.to_dict() for link in bot.bot_exchanges],
            "strategies": [{**row.to_dict(), "params": dict(row.params)} for row in bot.strategies],
        }

    async def get_trading_currency(self, bot_id: int, exchange_id: int) -> str | None:
        """What the bot trades in on an account (``exchange_id`` is its ``ex_id``), or None."""
        return await BotExchangeRepository(self.session).trading_currency(bot_id, exchange_id)

    async def get_bot_stats(self, bot_id: int, days: int = 30) -> Row[Any] | None:
        """What the bot's real trades of the last days add up to, in one query; None if there is no such bot."""
        bought = func.coalesce(func.sum(case((Trade.side == "buy", Trade.cost), else_=0)), 0)
        sold = func.coalesce(func.sum(case((Trade.side == "sell", Trade.cost), else_=0)), 0)
        recent = and_(Trade.bot_id == Bot.bot_id, Trade.timestamp >= datetime.now(UTC) - timedelta(days=days))
        open_orders = (
            select(func.count()).where(Order.bot_id == Bot.bot_id, Order.status.in_(OPEN_STATUSES)).scalar_subquery()
        )
        return (
            await self.session.execute(
                select(
                    Bot.bot_id,
                    literal(days).label("days"),
                    func.count(Trade.trade_id).label("total_trades"),
                    (bought + sold).label("total_volume"),
                    bought.label("buy_volume"),
                    sold.label("sell_volume"),
                    func.coalesce(func.sum(Trade.roi), 0).label("total_roi"),
                    open_orders.label("open_orders"),
                    func.max(Trade.timestamp).label("last_trade"),
                )
                .outerjoin(Trade, recent)
                .where(Bot.bot_id == bot_id)
                .group_by(Bot.bot_id)
            )
        ).one_or_none()

    async def get_active_bots_summary(self, uid: int | None = None, days: int = 30) -> list[dict[str, Any]]:
        """How each active bot does, of all users or of one, oldest first; one query.

        Open orders are those it has now; trades and what they gained are those of the last ``days``.
        """
        since = datetime.now(UTC) - timedelta(days=days)
        trades = (
            select(
                func.count().label("total_trades"),
                func.coalesce(func.sum(Trade.roi), 0).label("total_roi"),
                func.max(Trade.timestamp).label("last_trade"),
            )
            .where(Trade.bot_id == Bot.bot_id, Trade.timestamp >= since)
            .lateral("recent")
        )
        open_orders = (
            select(func.count()).where(Order.bot_id == Bot.bot_id, Order.status.in_(OPEN_STATUSES)).scalar_subquery()
        )
        bots = (
            select(Bot.bot_id, Bot.uid, Bot.name, Bot.dry_run, open_orders.label("open_orders"), trades)
            .join(trades, true())
            .where(Bot.active)
            .order_by(Bot.bot_id)
        )
        if uid is not None:
            bots = bots.where(Bot.uid == uid)
        return [dict(row) for row in (await self.session.execute(bots)).mappings()]

    async def get_dry_margin(self, bot_id: int) -> Decimal:
        """What the bot's dry trades gained together, in quote currency; zero without any."""
        margin = await self.session.scalar(select(func.sum(DryTrade.roi)).where(DryTrade.bot_id == bot_id))
        return margin or Decimal(0)

    async def save_bot_log(self, log_data: dict[str, Any]) -> BotLog:
        """A new entry. ``not_found`` without such a bot."""
        return await BotLogRepository(self.session).save(log_data)

    async def save_bot_logs(self, logs: Sequence[LogFields | dict[str, Any]]) -> list[int]:
        """The ids of new entries, in the order of the list. See `BotLogRepository.save_list`."""
        return await BotLogRepository(self.session).save_list(logs)

    async def get_last_bot_log(self, bot_id: int) -> BotLog | None:
        """The newest entry of the bot's log, or None."""
        return next(iter(await self.get_last_actions(bot_id, limit=1)), None)

    async def get_last_actions(self, bot_id: int, limit: int = 10) -> list[BotLog]:
        """The newest entries of the bot's log, newest first."""
        return await self.get_logs(bot_id, limit=limit)

    async def get_logs(
        self,
        bot_id: int,
        level: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        limit: int = 100,
        *,
        cursor: str | None = None,
    ) -> list[BotLog]:
        """Entries of the bot's log, newest first: of a level, from ``start_date`` on, before ``end_date``."""
        return await BotLogRepository(self.session).newest_first(
            bot_id, level=level, start_date=start_date, end_date=end_date, limit=limit, cursor=cursor
        )

    async def save_simulation(self, simulation_data: dict[str, Any]) -> Simulation:
        """The simulation, in place of an earlier one of the bot that had its name."""
        simulation, _ = await self.replace_simulation(simulation_data)
        return simulation

    async def replace_simulation(self, simulation_data: dict[str, Any]) -> tuple[Simulation, bool]:
        """The simulation, and whether it tells anything new. See `save_simulation`."""
        bot = await self._locked(simulation_data["bot_id"], "bot_id")
        return await SimulationRepository(self.session).save(bot, simulation_data)

    async def load_simulation(self, simulation_id: int) -> Simulation | None:
        """The simulation with all its details, or None."""
        return await SimulationRepository(self.session).get_by_id(simulation_id)

    async def load_simulations_catalog(self, bot_id: int) -> list[Simulation]:
        """The simulations of the bot without params and results, those saved last first."""
        return await SimulationRepository(self.session).catalog(bot_id)


def _with_details() -> Select[Bot]:
    return (
        select(Bot)
        .options(
            selectinload(Bot.bot_exchanges),
            selectinload(Bot.strategies).selectinload(Strategy.param_rows),
            selectinload(Bot.feeds),
        )
        .execution_options(populate_existing=True)
    )
