"""Commands about exchanges and accounts there."""

from contracts.exchange import AddExchange, CatExchangeView, ExchangeView, InstallExchange
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
