"""Commands about exchanges and accounts there."""

from contracts.exchange import (
    AddExchange,
    CatExchangeView,
    DeleteExchange,
    ExchangeDeletion,
    ExchangeParamsView,
    ExchangeView,
    InstallExchange,
    SetExchangeParams,
    UpdateExchange,
)
from service.registry import CommandTable, Existing
from service.unit_of_work import UnitOfWork

handlers = CommandTable()


@handlers.handles(InstallExchange)
async def install_exchange(command: InstallExchange, work: UnitOfWork) -> CatExchangeView | Existing[CatExchangeView]:
    exchange, is_new = await work.exchanges.install_exchange(
        command.name, ohlcv_view=command.ohlcv_view, params=command.params
    )
    view = CatExchangeView.model_validate(exchange)
    return view if is_new else Existing(view)


@handlers.handles(AddExchange)
async def add_exchange(command: AddExchange, work: UnitOfWork) -> ExchangeView:
    return ExchangeView.model_validate(await work.exchanges.create(command.model_dump()))


@handlers.handles(UpdateExchange)
async def update_exchange(command: UpdateExchange, work: UnitOfWork) -> ExchangeView:
    exchange = await work.exchanges.update(
        command.ex_id, command.updates.values(), expected_version=command.expected_version
    )
    return ExchangeView.model_validate(exchange)


@handlers.handles(DeleteExchange)
async def delete_exchange(command: DeleteExchange, work: UnitOfWork) -> ExchangeDeletion:
    return await work.exchanges.remove_user_exchange(
        command.ex_id, force=command.force, expected_version=command.expected_version
    )


@handlers.handles(SetExchangeParams)
async def set_exchange_params(command: SetExchangeParams, work: UnitOfWork) -> ExchangeParamsView:
    change = await work.exchanges.set_exchange_params(
        command.params,
        cat_ex_id=command.cat_ex_id,
        ex_id=command.ex_id,
        expected_version=command.expected_version,
    )
    return ExchangeParamsView.model_validate(change)
