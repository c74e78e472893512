"""Results of simulations in the database."""

from collections.abc import Mapping
from typing import Any, ClassVar

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer

from contracts.simulation import SimulationSaved, SimulationSummary
from service.models import Bot, Simulation
from service.outbox import record
from service.repositories.base import BaseRepository, differing, exact, locked


class SimulationRepository(BaseRepository[Simulation]):
    """Simulations by id and by the bot that was simulated."""

    never: ClassVar[Mapping[str, str]] = {
        "update": "a simulation is saved again under its name",
        "delete": "a simulation goes with its bot, or once it is old",
    }

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, Simulation)

    async def create(self, data: dict[str, Any]) -> Simulation:
        """The simulation, in place of an earlier one of the bot that had its name."""
        simulation, _ = await self.save(await locked(self.session, Bot, data["bot_id"], "bot_id"), data)
        return simulation

    async def save(self, bot: Bot, simulation_data: dict[str, Any]) -> tuple[Simulation, bool]:
        """The simulation, in place of an earlier one of that name, and whether it tells anything new.

        Who saves one holds the bot's row, so that two of one name come one after the other.
        """
        statistics = {name: simulation_data.get(name) for name in ("win_rate", "sharpe_ratio")}
        details = {name: simulation_data.get(name) for name in ("params", "results")}
        data = {**exact(simulation_data), **statistics, **details}
        existing = await self.session.scalar(
            select(Simulation)
            .where(Simulation.bot_id == bot.bot_id, Simulation.name == data["name"])
            .execution_options(populate_existing=True)
        )
        before = None
        if existing is None:
            simulation = Simulation(**data)
            self.session.add(simulation)
        elif differing(existing, data):
            simulation, before = existing, SimulationSummary.model_validate(existing)
            for name, value in data.items():
                setattr(simulation, name, value)
            simulation.timestamp = func.now()
        else:
            return existing, False
        await self.session.flush()
        record(self.session, SimulationSaved, before=before, after=SimulationSummary.model_validate(simulation))
        return simulation, True

    async def catalog(self, bot_id: int) -> list[Simulation]:
        """The simulations of a bot without params and results, those saved last first."""
        return list(
            await self.session.scalars(
                select(Simulation)
                .where(Simulation.bot_id == bot_id)
                .order_by(Simulation.timestamp.desc(), Simulation.simulation_id.desc())
                .options(defer(Simulation.params, raiseload=True), defer(Simulation.results, raiseload=True))
            )
        )
