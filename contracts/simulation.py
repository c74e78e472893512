"""Simulations: what a bot would have earned."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from contracts.base import Command, Event, Lookup, View
from contracts.types import STORABLE, Amount, Count, ExactDecimal, Id, Instant, JsonObject, NonNegative, Statistic


class SimulationSummary(View):
    """A simulation without what it was fed with and what it gave in detail."""

    simulation_id: Id
    bot_id: Id
    name: str
    start_date: Instant
    end_date: Instant
    initial_balance: ExactDecimal
    final_balance: ExactDecimal
    total_trades: int
    win_rate: float | None
    """Share of the trades that won, from 0 to 1."""
    sharpe_ratio: float | None
    timestamp: Instant
    """When it was saved last."""
    row_version: int


class SimulationView(SimulationSummary):
    """A simulation with all its details."""

    params: dict[str, Any] | None
    results: dict[str, Any] | None


class SaveSimulation(Command[SimulationSummary], name="save_simulation"):
    """Keep the result of a simulation. One of the same name replaces the bot's earlier one as a whole.

    The same result again is answered with the stored one (``meta.duplicate``).
    """

    bot_id: Id
    name: Annotated[str, Field(min_length=1, max_length=100), STORABLE]
    start_date: Instant
    """The first moment that was simulated."""
    end_date: Instant
    initial_balance: NonNegative
    final_balance: Amount
    total_trades: Count
    win_rate: Annotated[Statistic, Field(ge=0, le=1)] | None = None
    """Share of the trades that won, from 0 to 1."""
    sharpe_ratio: Statistic | None = None
    params: JsonObject | None = None
    """What it was run with."""
    results: JsonObject | None = None
    """What it gave in detail."""

    @model_validator(mode="after")
    def _ends_after_it_starts(self) -> Self:
        if self.end_date < self.start_date:
            raise ValueError("end_date is before start_date")
        return self


class LoadSimulation(Lookup[SimulationView | None], name="load_simulation"):
    """A simulation with all its details; null if there is none."""

    simulation_id: Id


class LoadSimulationsCatalog(Lookup[list[SimulationSummary]], name="load_simulations_catalog"):
    """The simulations of a bot without their details, those saved last first."""

    bot_id: Id


class SimulationSaved(Event[SimulationSummary], name="simulation.saved", key=("simulation_id",)):
    """Simulations were saved, for the first time or again."""
