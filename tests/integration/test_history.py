"""Rows and the record of their events: what fits is taken for fitting, and whatever does not is found."""

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from contracts import BalanceFields, RemoveExchangeFromBot, SaveBotLog, SymbolUpdates, UpdateSymbol, UpsertBalances
from contracts.base import EVENT_TYPES, Command
from service import history
from service.announced import ABOUT_NO_ROW, ANNOUNCED
from service.base import Base
from service.database import SessionMaker
from service.executor import Executor
from service.history import Comparison, Reading, compare
from tests.builders import Desk, Direct, a_desk, publish_everything, received, with_credentials
from tests.cases import Scene, a_scene, commands
from tests.integration.test_stale_keys import NAMES, Observed

YESTERDAY = datetime.now(UTC) - timedelta(days=1)


@pytest.fixture
async def desk(sessions: SessionMaker) -> Desk:
    """A desk with trades, logs, a balance and a symbol that was changed twice, all announced."""
    executor = Executor(sessions)
    desk = await a_desk(Direct(executor))
    many: list[Command[Any]] = [desk.trade() for _ in range(5)]
    many += [SaveBotLog(bot_id=desk.bot.bot_id, message=str(number)) for number in range(3)]
    await executor.execute([received(command, reply_to=None) for command in many])
    for n in (1, 2):
        await executor.execute(
            [received(UpdateSymbol(symbol_id=desk.symbol.symbol_id, updates=SymbolUpdates(decimals=n)))]
        )
        balance = BalanceFields(currency="ETH", free=str(n), used="0")
        at = datetime.now(UTC)
        await executor.execute([received(UpsertBalances(ex_id=desk.account.ex_id, timestamp=at, balances=[balance]))])
    await publish_everything(sessions)
    return desk


async def compared(sessions: SessionMaker, since: datetime = YESTERDAY) -> Comparison:
    return await compare(partial(Reading, sessions), since, lambda *_: None)


async def do(sessions: SessionMaker, *statements: str) -> None:
    async with sessions.begin() as session:
        for statement in statements:
            await session.execute(text(statement))


def problems(found: Comparison) -> list[str]:
    return [*found.gaps, *(problem for table in found.tables for problem in table.problems)]


def test_every_event_is_about_a_row_or_known_not_to_be() -> None:
    about = [event for table in ANNOUNCED for event in table.events]

    assert len(about) == len(set(about))
    assert set(about) | ABOUT_NO_ROW == set(EVENT_TYPES)
    assert set(about) & ABOUT_NO_ROW == set()


def test_every_table_whose_rows_have_versions_is_compared() -> None:
    versioned = {table.name for table in Base.metadata.tables.values() if "row_version" in table.columns}

    assert versioned <= {table.table for table in ANNOUNCED}


@pytest.fixture(params=[None, 2], ids=["at once", "in pages of two"])
def pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read much at once, or so little that everything goes over many pages."""
    if request.param is not None:
        for name in ("_EVENTS_AT_ONCE", "_ROWS_AT_ONCE", "_OUT_OF_ORDER"):
            monkeypatch.setattr(history, name, request.param)


@pytest.mark.usefixtures("pages")
class TestComparing:
    async def test_finds_nothing_where_everything_was_announced(self, sessions: SessionMaker, desk: Desk) -> None:
        await Executor(sessions).execute([received(desk.trade())])

        found = await compared(sessions)

        assert problems(found) == []
        rows = {table.table: table.rows for table in found.tables}
        assert (rows["trades"], rows["bot_logs"], rows["balances"], rows["symbols"]) == (6, 3, 1, 1)

    @pytest.mark.parametrize(
        ("deed", "says"),
        [
            pytest.param(
                "INSERT INTO trades (bot_id, uid, ex_id, cat_ex_id, symbol_id, side, size, price, cost) "
                "SELECT bot_id, uid, ex_id, cat_ex_id, symbol_id, side, size, price, cost FROM trades LIMIT 1",
                "trades 6: was not announced",
                id="a trade that was never announced",
            ),
            pytest.param(
                "INSERT INTO symbols (cat_ex_id, symbol, base, quote) "
                "SELECT cat_ex_id, 'NEW/ONE', 'NEW', 'ONE' FROM symbols LIMIT 1",
                "symbols 2: was not announced",
                id="a symbol that was never announced",
            ),
            pytest.param(
                "UPDATE published_events SET keys = keys[2:], versions = versions[2:] WHERE type = 'trade.recorded'",
                "trades 1: was not announced",
                id="one of many trades that was left out",
            ),
            pytest.param(
                "INSERT INTO published_events SELECT clock_timestamp(), id + 1000, event_id, type, sequence + 1, "
                "transaction_id, occurred_at, keys, versions FROM published_events WHERE type = 'trade.recorded'",
                "trades 1: version 1 was announced after version 1",
                id="trades that were announced twice",
            ),
            pytest.param(
                "DELETE FROM trades WHERE trade_id = 5",
                "trades 5: was announced, and is not there",
                id="a trade that is gone",
            ),
            pytest.param(
                "DELETE FROM balances", "balances 1,ETH: was announced, and is not there", id="a balance that is gone"
            ),
            pytest.param(
                "UPDATE symbols SET row_version = row_version + 1, updated_at = now()",
                "symbols 1: is at version 4, and version 3 was announced last",
                id="a change that was not announced",
            ),
            pytest.param(
                "UPDATE symbols SET row_version = row_version - 1",
                "symbols 1: is at version 2, and version 3 was announced last",
                id="a version that is not there",
            ),
            pytest.param(
                "DELETE FROM published_events WHERE type = 'symbol.updated' AND versions = '{2}'",
                "symbols 1: version 3 was announced after version 1",
                id="a version between that was not announced",
            ),
            pytest.param(
                "UPDATE published_events SET versions = '{-4}' WHERE type = 'symbol.updated' AND sequence = 2",
                "symbols 1: version 4 was announced after version 2",
                id="an end that is announced out of order",
            ),
            pytest.param(
                "UPDATE published_events SET versions = '{-3}' WHERE type = 'symbol.updated' AND sequence = 2",
                "symbols 1: was announced as deleted, and is there",
                id="a row that was announced as deleted",
            ),
            pytest.param(
                "UPDATE published_events SET sequence = 7 WHERE type = 'symbol.updated' AND sequence = 2",
                "symbol.updated: number 7 after 1",
                id="a gap in the numbers",
            ),
            pytest.param(
                "UPDATE event_streams SET sequence = 3 WHERE type = 'symbol.updated'",
                "symbol.updated: numbers up to 3 were given, the record ends with 2",
                id="an event that is not on record",
            ),
        ],
    )
    async def test_finds(self, sessions: SessionMaker, desk: Desk, deed: str, says: str) -> None:
        await do(sessions, deed)

        assert says in problems(await compared(sessions))

    async def test_takes_what_came_before_the_record_as_it_is(self, sessions: SessionMaker, desk: Desk) -> None:
        await do(
            sessions,
            "DELETE FROM published_events WHERE id <= "
            "(SELECT id FROM published_events WHERE type = 'trade.recorded')",
            "UPDATE trades SET recorded_at = now() - interval '1 day'",
        )

        assert problems(await compared(sessions)) == []

    async def test_looks_no_further_back_than_asked(self, sessions: SessionMaker, desk: Desk) -> None:
        since = datetime.now(UTC)
        await do(sessions, "DELETE FROM published_events WHERE type = 'trade.recorded'")
        await Executor(sessions).execute([received(desk.trade())])

        assert problems(await compared(sessions, since)) == []

    async def test_follows_a_row_that_goes_and_comes_again(self, sessions: SessionMaker, desk: Desk) -> None:
        await do(sessions, "UPDATE bots SET active = false")
        direct = Direct(Executor(sessions))
        link = {"bot_id": desk.bot.bot_id, "ex_id": desk.account.ex_id}
        await direct.call(RemoveExchangeFromBot(**link))
        await publish_everything(sessions)
        await direct.call(RemoveExchangeFromBot(**link))

        assert problems(await compared(sessions)) == []


async def test_finds_nothing_while_much_is_written_and_published(sessions: SessionMaker, desk: Desk) -> None:
    """Rows and events move while they are read."""
    executor, over = Executor(sessions), asyncio.Event()

    async def write(own: Desk) -> None:
        n = 0
        while not over.is_set():
            n += 1
            trades = [received(own.trade(), reply_to=None) for _ in range(20)]
            update = UpdateSymbol(symbol_id=own.symbol.symbol_id, updates=SymbolUpdates(decimals=n % 9))
            await executor.execute([*trades, received(update)])

    async def publish() -> None:
        while not over.is_set():
            await publish_everything(sessions)

    async with asyncio.TaskGroup() as group:
        for task in (write(desk), write(desk), publish()):
            group.create_task(task)
        for _ in range(5):
            assert problems(await compared(sessions)) == []
            await asyncio.sleep(0.2)
        over.set()


@pytest.fixture
async def scene(direct: Direct, vault: Any) -> Scene:
    """Two desks, with credentials, so that bots can go live."""
    scene = await a_scene(direct, vault)
    await with_credentials(direct, vault, scene.own.account)
    return scene


async def test_every_good_write_is_announced(sessions: SessionMaker, scene: Scene) -> None:
    executor = Executor(sessions)
    for command in commands(scene).values():
        await executor.execute([received(command)])
    await publish_everything(sessions)

    assert problems(await compared(sessions)) == []


@settings(max_examples=max(settings().max_examples // 20, 1))
@given(data=st.data())
async def test_whatever_is_written_each_version_is_announced(
    sessions: SessionMaker, scene: Scene, data: st.DataObject
) -> None:
    observed = Observed(sessions, scene.vault)
    for _ in range(data.draw(st.integers(1, 6))):
        await observed.begin()
        names = data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3))
        await Executor(sessions).execute(observed.random_batch(names, data.draw))
    await publish_everything(sessions)

    assert problems(await compared(sessions)) == []
