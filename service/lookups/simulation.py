"""Lookups of simulations."""

from contracts.simulation import LoadSimulation, LoadSimulationsCatalog, SimulationSummary, SimulationView
from service.registry import LookupTable
from service.unit_of_work import UnitOfWork

lookups = LookupTable()


@lookups.answers(LoadSimulation)
async def load_simulation(lookup: LoadSimulation, reads: UnitOfWork) -> SimulationView | None:
    simulation = await reads.bots.load_simulation(lookup.simulation_id)
    return None if simulation is None else SimulationView.model_validate(simulation)


@lookups.answers(LoadSimulationsCatalog)
async def load_simulations_catalog(lookup: LoadSimulationsCatalog, reads: UnitOfWork) -> list[SimulationSummary]:
    simulations = await reads.bots.load_simulations_catalog(lookup.bot_id)
    return [SimulationSummary.model_validate(simulation) for simulation in simulations]
