"""Everything is where the manual imports it from, with ``service`` in place of ``fullon_orm``."""

import inspect
from enum import Enum
from importlib import import_module
from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase

import service
from service import BaseRepository, BotRepository, RoleEnum, User, UserRepository, get_async_session, get_engine
from tests.manual.checklist import row
from tests.manual.conftest import Market

NOUNS = ("user", "bot", "exchange", "order", "trade", "symbol", "strategy", "feed")


@pytest.mark.parametrize(
    "modules",
    [
        row(
            "P1",
            [
                "models." + noun
                for noun in ("user", "bot", "exchange", "order", "trade", "symbol", "strategy", "feed")
            ],
        ),
        row(
            "P2",
            [
                "repositories." + noun
                for noun in ("base", "user", "bot", "symbol", "exchange", "order", "trade", "strategy")
            ],
        ),
        row(
            "P3", ["database", "cache", "types", "base"], differs="X17: without dogpile.cache, which knows no asyncio"
        ),
    ],
)
def test_there_is_a_module(modules: list[str]) -> None:
    assert all(import_module(f"service.{module}").__doc__ for module in modules)


@pytest.mark.parametrize(
    ("package", "names", "kind"),
    [
        row("P4", "service", "get_async_session get_async_session_maker get_engine", object),
        row(
            "P5",
            "service",
            "User Bot Exchange Order Trade Symbol Strategy Feed Balance Position DryTrade BotExchange BotLog "
            "CatExchange CatStrategy",
            DeclarativeBase,
        ),
        row("P6", "service.models", "Simulation ExchangeHistory Tick", DeclarativeBase),
        row(
            "P7",
            "service",
            "BaseRepository UserRepository BotRepository ExchangeRepository SymbolRepository OrderRepository "
            "TradeRepository StrategyRepository",
            BaseRepository,
        ),
        row("P8", "service", "RoleEnum", Enum),
        row("P9", "service", "UVLoopManager run_with_uvloop setup_uvloop", object),
    ],
)
def test_can_be_imported(package: str, names: str, kind: type[Any]) -> None:
    found = [getattr(import_module(package), name) for name in names.split()]

    assert all(callable(thing) for thing in found)
    assert kind is object or all(issubclass(thing, kind) for thing in found)
    assert package != "service" or set(names.split()) <= set(service.__all__)


@pytest.mark.manual("P10", "design principles")
async def test_the_principles_hold(market: Market) -> None:
    methods = [
        method
        for repository in (BaseRepository, UserRepository, BotRepository)
        for name, method in inspect.getmembers(repository, inspect.isfunction)
        if not name.startswith("_") and name != "error_print"
    ]
    async with get_async_session() as session:
        managed = await UserRepository(session).add_user({"mail": "m@company.com", "manager": market.user.uid})

    assert all(inspect.iscoroutinefunction(method) for method in methods)
    assert (get_engine().pool.size(), get_engine().pool._max_overflow) == (20, 10)  # type: ignore[attr-defined]
    assert (managed.manager, User.role.type.enums) == (market.user.uid, [role.value for role in RoleEnum])
