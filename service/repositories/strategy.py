"""The catalog of strategies, and what bots run of it, in the database."""

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from contracts.errors import ErrorCode, Refusal
from contracts.feed import BotFeedsChanged, FeedView
from contracts.strategy import BotStrategyChanged, CatStrategyView, StrategyCatalogChanged, StrategyView
from service.cursor import behind
from service.models import Bot, CatStrategy, CatStrategyParam, Feed, Strategy, StrategyParam
from service.outbox import record
from service.repositories.base import BaseRepository, check_version, differing, exact, locked, refuse_secret_names

# How much of its funds a bot puts into a position if nobody says.
_SIZE_PCT: Final = 10

# What a strategy has from its catalog row, by the names of both.
_COPIED: Final = {
    "take_profit": "take_profit",
    "stop_loss": "stop_loss",
    "trailing_stop": "trailing_stop",
    "timeout": "timeout",
    "pre_load_bars": "pre_load_bars",
    "feeds_count": "feeds",
    "pairs": "pairs",
}
_NEVER_NULL: Final = frozenset({"leverage", "size_currency", "pre_load_bars", "feeds_count", "pairs", "active"})


class StrategyRepository(BaseRepository[Strategy]):
    """Strategies by id, bot and user, and the catalog they are made from."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, Strategy)

    async def create(self, data: dict[str, Any]) -> Strategy:
        """What a bot runs from now on. See `add_bot_strategy`."""
        return await self.add_bot_strategy(data)

    async def update(self, id: int, updates: dict[str, Any], *, expected_version: int | None = None) -> Strategy:  # noqa: A002
        """The strategy with ``updates`` applied. See `edit_base_strat_params`."""
        return await self.edit_base_strat_params(id, self._changeable(updates), expected_version=expected_version)

    async def delete(self, id: int) -> None:  # noqa: A002 - the name callers know
        """Have the bot run it no more. See `del_bot_strategy`."""
        bot_id = await self.session.scalar(select(Strategy.bot_id).where(Strategy.str_id == id))
        if bot_id is None:
            raise Refusal(ErrorCode.NOT_FOUND, f"there is no strategy {id}", field="str_id")
        await self.del_bot_strategy(bot_id, id)

    async def install_strategy(
        self, cat_strategy: dict[str, Any], params: dict[str, str] | None = None
    ) -> tuple[CatStrategy, bool]:
        """The catalog's strategy of that name with these values, and whether anything had to change.

        Values that are not given stay as they are; ``params`` are replaced as a whole where they are given.
        """
        refuse_secret_names(params or {})
        data = exact(cat_strategy)
        new = await self.session.scalar(
            insert(CatStrategy)
            .values(data)
            .on_conflict_do_nothing(index_elements=["name"])
            .returning(CatStrategy.cat_str_id)
        )
        row = await self._installed(CatStrategy.name == data["name"])
        assert row is not None  # noqa: S101 - it was there, or it is now
        before = None if new is not None else CatStrategyView.model_validate(row)
        other_params = params is not None and row.params != params
        if before is not None and not differing(row, data) and not other_params:
            return row, False
        for name in differing(row, data):
            setattr(row, name, data[name])
        if params is not None and other_params:
            row.params = params
            if before is not None:
                _count_up(row)
        await self.session.flush()
        record(self.session, StrategyCatalogChanged, before=before, after=CatStrategyView.model_validate(row))
        return row, True

    async def del_cat_strategy(self, cat_strategy: int | str, *, expected_version: int | None = None) -> CatStrategy:
        """What was in the catalog under this id or name; ``conflict`` while bots run it."""
        by_name = isinstance(cat_strategy, str)
        field = "name" if by_name else "cat_str_id"
        row = await self._installed(
            CatStrategy.name == cat_strategy if by_name else CatStrategy.cat_str_id == cat_strategy, whole=True
        )
        if row is None:
            raise Refusal(ErrorCode.NOT_FOUND, f"the catalog has no strategy {cat_strategy}", field=field)
        check_version(row, expected_version)
        if await self.session.scalar(select(exists().where(Strategy.cat_str_id == row.cat_str_id))):
            raise Refusal(ErrorCode.CONFLICT, "bots run this strategy", field=field)
        before = CatStrategyView.model_validate(row)
        await self.session.execute(delete(CatStrategy).where(CatStrategy.cat_str_id == row.cat_str_id))
        record(self.session, StrategyCatalogChanged, before=before)
        return row

    async def add_bot_strategy(self, strategy: dict[str, Any]) -> Strategy:
        """What a bot runs from now on: values not given are the catalog's, ``params`` are laid over the catalog's.

        ``not_found`` without such a bot or strategy.
        """
        given = exact(strategy)
        params: dict[str, str] = given.pop("params", {})
        refuse_secret_names(params)
        given = {name: value for name, value in given.items() if value is not None or name not in _NEVER_NULL}
        bot_id, cat_str_id = given["bot_id"], given["cat_str_id"]
        if not await self.session.scalar(select(exists().where(Bot.bot_id == bot_id))):
            raise Refusal(ErrorCode.NOT_FOUND, f"there is no bot {bot_id}", field="bot_id")
        template = await self.get_cat_strategy(cat_str_id)
        if template is None:
            raise Refusal(ErrorCode.NOT_FOUND, f"the catalog has no strategy {cat_str_id}", field="cat_str_id")
        values = {name: getattr(template, source) for name, source in _COPIED.items()} | given
        if "size" not in given and "size_pct" not in given:
            values["size_pct"] = _SIZE_PCT
        settings = {**template.params, **params}
        rows = {name: StrategyParam(name=name, value=value) for name, value in settings.items()}
        row = Strategy(**values, param_rows=rows)
        self.session.add(row)
        await self.session.flush()
        record(self.session, BotStrategyChanged, after=StrategyView.model_validate(row))
        return row

    async def edit_base_strat_params(
        self, str_id: int, updates: dict[str, Any], *, expected_version: int | None = None
    ) -> Strategy:
        """The strategy with ``updates`` applied; no new version and no event if nothing differs.

        Of ``size`` and ``size_pct``, setting one empties the other.
        """
        row = await self._held(str_id, expected_version)
        values = exact(updates)
        for said, other in (("size", "size_pct"), ("size_pct", "size")):
            if values.get(said) is not None:
                values.setdefault(other, None)
        if not differing(row, values):
            return row
        before = StrategyView.model_validate(row)
        for name, value in values.items():
            setattr(row, name, value)
        return await self._changed(row, before)

    async def edit_strat_params(
        self, str_id: int, params: dict[str, str | None], *, expected_version: int | None = None
    ) -> Strategy:
        """The strategy with these settings; None removes one, those not named stay as they are."""
        refuse_secret_names(params)
        row = await self._held(str_id, expected_version)
        wanted = {name: value for name, value in {**row.params, **params}.items() if value is not None}
        if row.params == wanted:
            return row
        before = StrategyView.model_validate(row)
        row.params = wanted
        _count_up(row)
        return await self._changed(row, before)

    async def del_bot_strategy(self, bot_id: int, str_id: int | None = None) -> int:
        """How many strategies the bot runs no more: all of them, or the one named; their feeds go too.

        ``not_found`` without such a bot, ``forbidden`` for a strategy that another one runs.
        """
        await locked(self.session, Bot, bot_id, "bot_id")
        going = Strategy.bot_id == bot_id if str_id is None else Strategy.str_id == str_id
        strategies = list(await self.session.scalars(_with_params(going).with_for_update()))
        if any(strategy.bot_id != bot_id for strategy in strategies):
            raise Refusal(ErrorCode.FORBIDDEN, f"strategy {str_id} is not run by bot {bot_id}", field="str_id")
        ids = [strategy.str_id for strategy in strategies]
        if ids:
            feeds = list(await self.session.scalars(select(Feed).where(Feed.str_id.in_(ids)).order_by(Feed.feed_id)))
            for feed in feeds:
                record(self.session, BotFeedsChanged, before=FeedView.model_validate(feed))
            self.record_removal(strategies)
            await self.session.execute(delete(Feed).where(Feed.str_id.in_(ids)))
            await self.session.execute(delete(Strategy).where(Strategy.str_id.in_(ids)))
        return len(ids)

    def record_removal(self, strategies: Iterable[Strategy]) -> None:
        """Announce that bots run these no more."""
        for strategy in strategies:
            record(self.session, BotStrategyChanged, before=StrategyView.model_validate(strategy))

    async def get_by_id(self, id: int) -> Strategy | None:  # noqa: A002 - the name callers know
        """What a bot runs under this id, with its settings, or None."""
        return await self.session.scalar(_with_params(Strategy.str_id == id))

    async def get_bot_strategies(self, bot_id: int) -> list[Strategy]:
        """All that a bot runs, oldest first."""
        return list(await self.session.scalars(_with_params(Strategy.bot_id == bot_id)))

    async def get_base_str_params(self, bot_id: int) -> list[dict[str, Any]]:
        """The values of all that a bot runs, without its authors' settings."""
        rows = await self.session.scalars(select(Strategy).where(Strategy.bot_id == bot_id).order_by(Strategy.str_id))
        return [row.to_dict() for row in rows]

    async def get_str_params(self, bot_id: int, str_id: int | None = None) -> dict[int, dict[str, str]]:
        """The settings of all that a bot runs, or of one of them, by ``str_id``."""
        wanted = [Strategy.bot_id == bot_id, *([] if str_id is None else [Strategy.str_id == str_id])]
        return {row.str_id: dict(row.params) for row in await self.session.scalars(_with_params(*wanted))}

    async def get_user_strategies(
        self, uid: int, *, limit: int | None = None, cursor: str | None = None
    ) -> list[Strategy]:
        """What the bots of a user run, oldest first."""
        bots = select(Bot.bot_id).where(Bot.uid == uid)
        return await self._page(Strategy.bot_id.in_(bots), limit=limit, cursor=cursor)

    async def get_bots_strategies(
        self, name: str, *, limit: int | None = None, cursor: str | None = None
    ) -> list[Strategy]:
        """What bots run of the catalog's strategy of that name, oldest first."""
        template = select(CatStrategy.cat_str_id).where(CatStrategy.name == name).scalar_subquery()
        return await self._page(Strategy.cat_str_id == template, limit=limit, cursor=cursor)

    async def get_cat_strategies(self) -> list[CatStrategy]:
        """The whole catalog by name."""
        return list(await self.session.scalars(_catalog().order_by(CatStrategy.name)))

    async def get_cat_strategy(self, cat_str_id: int) -> CatStrategy | None:
        """The catalog's strategy with this id, or None."""
        return await self.session.scalar(_catalog().where(CatStrategy.cat_str_id == cat_str_id))

    async def get_cat_str_id(self, name: str) -> int | None:
        """The id of the catalog's strategy of that name, or None."""
        return await self.session.scalar(select(CatStrategy.cat_str_id).where(CatStrategy.name == name))

    async def get_cat_strategies_params(self, cat_str_id: int) -> dict[str, str]:
        """The settings that the catalog's strategy comes with."""
        rows = await self.session.execute(
            select(CatStrategyParam.name, CatStrategyParam.value)
            .where(CatStrategyParam.cat_str_id == cat_str_id)
            .order_by(CatStrategyParam.name)
        )
        return dict(rows.all())

    async def _installed(self, which: ColumnElement[bool], *, whole: bool = False) -> CatStrategy | None:
        return await self.session.scalar(_catalog().where(which).with_for_update(key_share=not whole))

    async def _held(self, str_id: int, expected_version: int | None) -> Strategy:
        row = await self.session.scalar(_with_params(Strategy.str_id == str_id).with_for_update(key_share=True))
        if row is None:
            raise Refusal(ErrorCode.NOT_FOUND, f"there is no strategy {str_id}", field="str_id")
        check_version(row, expected_version)
        return row

    async def _changed(self, row: Strategy, before: StrategyView) -> Strategy:
        await self.session.flush()
        record(self.session, BotStrategyChanged, before=before, after=StrategyView.model_validate(row))
        return row

    async def _page(self, which: ColumnElement[bool], *, limit: int | None, cursor: str | None) -> list[Strategy]:
        page = _with_params(which, behind(cursor, Strategy.str_id)).limit(limit)
        return list(await self.session.scalars(page))


def _with_params(*which: ColumnElement[bool]) -> Select[Strategy]:
    return (
        select(Strategy)
        .where(*which)
        .order_by(Strategy.str_id)
        .options(selectinload(Strategy.param_rows))
        .execution_options(populate_existing=True)
    )


def _catalog() -> Select[CatStrategy]:
    return select(CatStrategy).options(selectinload(CatStrategy.param_rows)).execution_options(populate_existing=True)


def _count_up(row: CatStrategy | Strategy) -> None:
    """Settings are rows of their own; this makes them part of the version of what they are settings of."""
    row.updated_at = func.now()
