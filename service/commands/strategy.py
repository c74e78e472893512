"""Commands about strategies and their catalog."""

from contracts.strategy import (
    AddBotStrategy,
    CatStrategyView,
    DelBotStrategy,
    DelCatStrategy,
    EditStrategy,
    EditStrategyParams,
    InstallStrategy,
    StrategyView,
)
from service.registry import CommandTable, Existing
from service.unit_of_work import UnitOfWork

handlers = CommandTable()


@handlers.handles(InstallStrategy)
async def install_strategy(command: InstallStrategy, work: UnitOfWork) -> CatStrategyView | Existing[CatStrategyView]:
    values = command.model_dump(exclude_unset=True)
    params = values.pop("params", None)
    strategy, changed = await work.strategies.install_strategy(values, params)
    view = CatStrategyView.model_validate(strategy)
    return view if changed else Existing(view)


@handlers.handles(DelCatStrategy)
async def del_cat_strategy(command: DelCatStrategy, work: UnitOfWork) -> CatStrategyView:
    which = command.name if command.cat_str_id is None else command.cat_str_id
    assert which is not None  # noqa: S101 - the contract requires one of them
    strategy = await work.strategies.del_cat_strategy(which, expected_version=command.expected_version)
    return CatStrategyView.model_validate(strategy)


@handlers.handles(AddBotStrategy)
async def add_bot_strategy(command: AddBotStrategy, work: UnitOfWork) -> StrategyView:
    strategy = await work.strategies.add_bot_strategy(command.model_dump(exclude_unset=True))
    return StrategyView.model_validate(strategy)


@handlers.handles(EditStrategy)
async def edit_strategy(command: EditStrategy, work: UnitOfWork) -> StrategyView:
    strategy = await work.strategies.edit_base_strat_params(
        command.str_id, command.updates.values(), expected_version=command.expected_version
    )
    return StrategyView.model_validate(strategy)


@handlers.handles(EditStrategyParams)
async def edit_strategy_params(command: EditStrategyParams, work: UnitOfWork) -> StrategyView:
    strategy = await work.strategies.edit_strat_params(
        command.str_id, command.params, expected_version=command.expected_version
    )
    return StrategyView.model_validate(strategy)


@handlers.handles(DelBotStrategy)
async def del_bot_strategy(command: DelBotStrategy, work: UnitOfWork) -> int | Existing[int]:
    removed = await work.strategies.del_bot_strategy(command.bot_id, command.str_id)
    return removed or Existing(removed)
