"""Lookups of strategies and their catalog."""

from contracts import cache_keys
from contracts.bot import BotDetailsView, GetBotWithDetails
from contracts.strategy import (
    BaseStrategyView,
    CatStrategyView,
    GetBaseStrParams,
    GetBotsStrategies,
    GetBotStrategies,
    GetCatStrategies,
    GetCatStrategiesParams,
    GetCatStrategy,
    GetCatStrId,
    GetStrategy,
    GetStrParams,
    GetUserStrategies,
    StrategyPage,
    StrategyParamsView,
    StrategyView,
)
from service.cursor import next_after
from service.registry import LookupTable
from service.unit_of_work import UnitOfWork

lookups = LookupTable()


@lookups.answers(GetCatStrategies, cached_under=lambda _: cache_keys.strategy_catalog())
async def get_cat_strategies(_: GetCatStrategies, reads: UnitOfWork) -> list[CatStrategyView]:
    return [CatStrategyView.model_validate(row) for row in await reads.strategies.get_cat_strategies()]


@lookups.answers(GetCatStrategy)
async def get_cat_strategy(lookup: GetCatStrategy, reads: UnitOfWork) -> CatStrategyView | None:
    row = await reads.strategies.get_cat_strategy(lookup.cat_str_id)
    return None if row is None else CatStrategyView.model_validate(row)


@lookups.answers(GetCatStrId)
async def get_cat_str_id(lookup: GetCatStrId, reads: UnitOfWork) -> int | None:
    return await reads.strategies.get_cat_str_id(lookup.name)


@lookups.answers(GetCatStrategiesParams)
async def get_cat_strategies_params(lookup: GetCatStrategiesParams, reads: UnitOfWork) -> dict[str, str]:
    return await reads.strategies.get_cat_strategies_params(lookup.cat_str_id)


@lookups.answers(GetStrategy)
async def get_strategy(lookup: GetStrategy, reads: UnitOfWork) -> StrategyView | None:
    row = await reads.strategies.get_by_id(lookup.str_id)
    return None if row is None else StrategyView.model_validate(row)


@lookups.derives(GetBotStrategies, lambda lookup: GetBotWithDetails(bot_id=lookup.bot_id))
def get_bot_strategies(bot: BotDetailsView | None) -> list[StrategyView]:
    return [] if bot is None else bot.strategies


@lookups.derives(GetBaseStrParams, lambda lookup: GetBotWithDetails(bot_id=lookup.bot_id))
def get_base_str_params(bot: BotDetailsView | None) -> list[BaseStrategyView]:
    return [] if bot is None else [BaseStrategyView(**strategy.model_dump()) for strategy in bot.strategies]


@lookups.answers(GetStrParams)
async def get_str_params(lookup: GetStrParams, reads: UnitOfWork) -> list[StrategyParamsView]:
    found = await reads.strategies.get_str_params(lookup.bot_id, lookup.str_id)
    return [StrategyParamsView(str_id=str_id, params=params) for str_id, params in found.items()]


@lookups.answers(GetUserStrategies)
async def get_user_strategies(lookup: GetUserStrategies, reads: UnitOfWork) -> StrategyPage:
    rows = await reads.strategies.get_user_strategies(lookup.uid, limit=lookup.limit, cursor=lookup.cursor)
    return StrategyPage(
        strategies=[StrategyView.model_validate(row) for row in rows],
        next_cursor=next_after(rows, lookup.limit, "str_id"),
    )


@lookups.answers(GetBotsStrategies)
async def get_bots_strategies(lookup: GetBotsStrategies, reads: UnitOfWork) -> StrategyPage:
    rows = await reads.strategies.get_bots_strategies(lookup.name, limit=lookup.limit, cursor=lookup.cursor)
    return StrategyPage(
        strategies=[StrategyView.model_validate(row) for row in rows],
        next_cursor=next_after(rows, lookup.limit, "str_id"),
    )
