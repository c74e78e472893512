"""Commands about symbols."""

from contracts.errors import Refusal
from contracts.symbol import (
    AddSymbol,
    AddSymbols,
    DeleteSymbol,
    SymbolFailure,
    SymbolsAdded,
    SymbolsSynced,
    SymbolSyncError,
    SymbolView,
    SyncExchangeSymbols,
    UpdateSymbol,
)
from service.registry import CommandTable, Existing
from service.unit_of_work import UnitOfWork

handlers = CommandTable()


@handlers.handles(AddSymbol)
async def add_symbol(command: AddSymbol, work: UnitOfWork) -> SymbolView | Existing[SymbolView]:
    [outcome] = await work.symbols.add_symbols([command.model_dump(exclude_unset=True)])
    if isinstance(outcome, Refusal):
        raise outcome
    symbol, is_new = outcome
    view = SymbolView.model_validate(symbol)
    return view if is_new else Existing(view)


@handlers.handles(AddSymbols)
async def add_symbols(command: AddSymbols, work: UnitOfWork) -> SymbolsAdded:
    outcomes = await work.symbols.add_symbols([symbol.model_dump(exclude_unset=True) for symbol in command.symbols])
    listed = [outcome for outcome in outcomes if not isinstance(outcome, Refusal)]
    created = sum(is_new for _, is_new in listed)
    return SymbolsAdded(
        created=created,
        existing=len(listed) - created,
        failed=len(outcomes) - len(listed),
        failures=[
            SymbolFailure(index=index, symbol=command.symbols[index].symbol, code=outcome.code, message=str(outcome))
            for index, outcome in enumerate(outcomes)
            if isinstance(outcome, Refusal)
        ],
        symbols=[SymbolView.model_validate(symbol) for symbol, _ in listed],
    )


@handlers.handles(UpdateSymbol)
async def update_symbol(command: UpdateSymbol, work: UnitOfWork) -> SymbolView:
    symbol = await work.symbols.update_symbol(
        command.symbol_id, command.updates.values(), expected_version=command.expected_version
    )
    return SymbolView.model_validate(symbol)


@handlers.handles(DeleteSymbol)
async def delete_symbol(command: DeleteSymbol, work: UnitOfWork) -> SymbolView:
    symbol = await work.symbols.delete_symbol(command.symbol_id, expected_version=command.expected_version)
    return SymbolView.model_validate(symbol)


@handlers.handles(SyncExchangeSymbols)
async def sync_exchange_symbols(command: SyncExchangeSymbols, work: UnitOfWork) -> SymbolsSynced:
    done = await work.symbols.sync_exchange_symbols(
        command.ex_id, [symbol.model_dump(exclude_unset=True) for symbol in command.symbols]
    )
    return SymbolsSynced(
        created=done.created,
        updated=done.updated,
        unchanged=done.unchanged,
        errors=[
            SymbolSyncError(
                index=index, symbol=command.symbols[index].symbol, code=refusal.code, error=refusal.message
            )
            for index, refusal in done.errors.items()
        ],
    )
