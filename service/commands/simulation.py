"""Commands about simulations."""

from contracts.simulation import SaveSimulation, SimulationSummary
from service.registry import CommandTable, Existing
from service.unit_of_work import UnitOfWork

handlers = CommandTable()


@handlers.handles(SaveSimulation)
async def save_simulation(
    command: SaveSimulation, work: UnitOfWork
) -> SimulationSummary | Existing[SimulationSummary]:
    simulation, tells_new = await work.bots.replace_simulation(command.model_dump())
    view = SimulationSummary.model_validate(simulation)
    return view if tells_new else Existing(view)
