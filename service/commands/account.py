"""Commands about what users have on exchanges."""

from contracts.account import SnapshotTaken, UpsertBalances, UpsertPositions
from service.registry import CommandTable
from service.unit_of_work import UnitOfWork

handlers = CommandTable()


@handlers.handles(UpsertBalances)
async def upsert_balances(command: UpsertBalances, work: UnitOfWork) -> SnapshotTaken:
    updated = await work.accounts.upsert_balances(
        command.ex_id,
        [balance.model_dump(exclude_none=True) for balance in command.balances],
        command.timestamp,
        comment=command.comment,
        uid=command.uid,
    )
    return SnapshotTaken(updated=len(updated), outdated=len(command.balances) - len(updated))


@handlers.handles(UpsertPositions)
async def upsert_positions(command: UpsertPositions, work: UnitOfWork) -> SnapshotTaken:
    updated = await work.accounts.upsert_positions(
        command.ex_id,
        [position.model_dump(exclude={"side"}) for position in command.positions],
        command.timestamp,
        uid=command.uid,
    )
    return SnapshotTaken(updated=len(updated), outdated=len(command.positions) - len(updated))
