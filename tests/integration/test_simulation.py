"""A simulation is kept digit by digit, and one of the same name replaces it."""

import json
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import (
    ErrorCode,
    LoadSimulation,
    LoadSimulationsCatalog,
    SaveSimulation,
    SimulationSummary,
)
from service.database import SessionMaker
from service.executor import Executor
from service.repositories import BotRepository
from tests.builders import Desk, Direct, received
from tests.observe import answer, events, refusal, statements


def a_simulation(desk: Desk, **changes: Any) -> SaveSimulation:
    fields = {
        "bot_id": desk.bot.bot_id,
        "name": "Backtest 2024-01",
        "start_date": "2024-01-01T00:00:00Z",
        "end_date": "2024-01-31T23:59:59.999999Z",
        "initial_balance": "10000.00",
        "final_balance": "11250.000000000000000001",
        "total_trades": 156,
        "win_rate": 0.67,
        "sharpe_ratio": -1.43,
        "params": {"period": [14, {"é": None}]},
        "results": {"trades": [{"roi": "0.1"}]},
    }
    return SaveSimulation(**{**fields, **changes})


class TestSaveSimulation:
    async def test_keeps_what_was_sent(self, direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
        command = a_simulation(desk)

        saved = await direct.call(command)

        loaded = await answer(sessions, LoadSimulation(simulation_id=saved.simulation_id))
        assert {name: getattr(loaded, name) for name in SaveSimulation.model_fields} == command.model_dump()
        assert str(loaded.initial_balance) == "10000.00"
        assert saved == SimulationSummary(**loaded.model_dump())
        [change] = await events(sessions, "simulation.saved")
        assert (change["before"], change["version"], change["stale_keys"]) == (None, 1, set())
        assert "results" not in change["after"]

    async def test_replaces_the_one_of_that_name_as_a_whole(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        first = await direct.call(a_simulation(desk))

        second = await direct.call(a_simulation(desk, total_trades=157, win_rate=None, results=None))

        assert (second.simulation_id, second.row_version) == (first.simulation_id, 2)
        assert second.timestamp > first.timestamp
        loaded = await answer(sessions, LoadSimulation(simulation_id=first.simulation_id))
        assert (loaded.total_trades, loaded.win_rate, loaded.results) == (157, None, None)
        changes = await events(sessions, "simulation.saved")
        assert [change["version"] for change in changes] == [1, 2]
        assert changes[1]["before"]["total_trades"] == 156

    async def test_of_the_same_result_is_a_duplicate(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        first = await direct.call(a_simulation(desk))

        [again] = await executor.execute([received(a_simulation(desk))])

        assert again.meta.duplicate
        assert again.data == first.model_dump(mode="json")
        assert len(await events(sessions, "simulation.saved")) == 1

    @pytest.mark.parametrize(
        ("wrong", "field"),
        [
            ({"total_trades": -1}, "total_trades"),
            ({"win_rate": 1.5}, "win_rate"),
            ({"win_rate": "0.5"}, "win_rate"),
            ({"win_rate": True}, "win_rate"),
            ({"sharpe_ratio": "NaN"}, "sharpe_ratio"),
            ({"initial_balance": "-1"}, "initial_balance"),
            ({"final_balance": "NaN"}, "final_balance"),
            ({"start_date": "2024-01-01T00:00:00"}, "start_date"),
            ({"end_date": "2023-01-01T00:00:00Z"}, "body"),
            ({"name": ""}, "name"),
            ({"name": "x" * 101}, "name"),
            ({"params": []}, "params"),
            ({"bogus": 1}, "bogus"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    async def test_refuses_what_is_no_result(
        self, executor: Executor, desk: Desk, wrong: dict[str, Any], field: str
    ) -> None:
        message = received(a_simulation(desk))
        message.body = _with(message.body, wrong)

        error = await refusal(executor, message)

        assert (error.code, error.field) == (ErrorCode.VALIDATION, field)

    async def test_refuses_numbers_that_no_double_holds(self, executor: Executor, desk: Desk) -> None:
        for number in (b"NaN", b"1e400", b"1" + b"0" * 400):
            message = received(a_simulation(desk))
            message.body = message.body.replace(b"-1.43", number)
            error = await refusal(executor, message)
            assert (error.code, error.field) == (ErrorCode.VALIDATION, "sharpe_ratio"), number

    async def test_refuses_a_bot_that_is_not_there(self, executor: Executor, desk: Desk) -> None:
        error = await refusal(executor, a_simulation(desk, bot_id=999))

        assert (error.code, error.field) == (ErrorCode.NOT_FOUND, "bot_id")


class TestCatalog:
    async def test_lists_those_saved_last_first_without_details_in_one_statement(
        self, direct: Direct, desk: Desk, sessions: SessionMaker, engine: AsyncEngine
    ) -> None:
        saved = [await direct.call(a_simulation(desk, name=name)) for name in ("a", "b", "c")]
        saved[0] = await direct.call(a_simulation(desk, name="a", total_trades=1))

        with statements(engine) as sent:
            catalog = await answer(sessions, LoadSimulationsCatalog(bot_id=desk.bot.bot_id))

        assert catalog == [saved[0], saved[2], saved[1]]
        [statement] = sent
        assert "results" not in statement
        assert await answer(sessions, LoadSimulation(simulation_id=999)) is None


class TestManualsExample:
    async def test_runs(self, desk: Desk, sessions: SessionMaker) -> None:
        async with sessions.begin() as session:
            bots = BotRepository(session)
            data = {
                "bot_id": desk.bot.bot_id,
                "name": "Backtest 2024-01",
                "start_date": datetime(2024, 1, 1),  # noqa: DTZ001 - as the manual has it
                "end_date": datetime(2024, 1, 31),  # noqa: DTZ001
                "initial_balance": 10000.0,
                "final_balance": 11250.0,
                "total_trades": 156,
                "win_rate": 0.67,
                "sharpe_ratio": 1.43,
            }
            simulation = await bots.save_simulation(data)
            again = await bots.save_simulation(data)
            loaded = await bots.load_simulation(simulation.simulation_id)
            [listed] = await bots.load_simulations_catalog(desk.bot.bot_id)

        assert loaded is again is simulation
        assert (simulation.row_version, simulation.win_rate, str(simulation.final_balance)) == (1, 0.67, "11250.0")
        assert simulation.to_dict()["start_date"] == "2024-01-01T00:00:00+00:00"
        assert listed.simulation_id == simulation.simulation_id


def _with(body: bytes, fields: dict[str, Any]) -> bytes:
    return json.dumps({**json.loads(body), **fields}).encode()
