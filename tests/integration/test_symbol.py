"""Symbols are listed, synchronized, found and taken off the list."""

import asyncio
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import (
    AddFeedToBot,
    AddSymbol,
    DeleteSymbol,
    ErrorCode,
    GetAllSymbols,
    GetIdBySymbol,
    GetSymbol,
    GetSymbolById,
    GetSymbolsByExchange,
    RecordTicks,
    SearchSymbols,
    SymbolRules,
    SyncExchangeSymbols,
    TickFields,
    UpsertPositions,
)
from contracts.account import PositionFields
from service.database import SessionMaker
from service.executor import Executor
from service.repositories import SymbolRepository
from tests.builders import Desk, Direct, a_desk, received
from tests.observe import answer, events, refusal, statements


def keys_of(desk: Desk, name: str, symbol_id: int) -> set[str]:
    catalog = desk.catalog.cat_ex_id
    return {
        f"symbol:{name}:{catalog}",
        f"symbols:exchange:{catalog}",
        f"symbol:decimals:{symbol_id}",
        f"symbol:by_id:{symbol_id}",
        "symbols:all",
    }


class TestDelete:
    async def test_takes_the_symbol_and_its_ticks(self, direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
        tick = TickFields(symbol_id=desk.symbol.symbol_id, price="1", timestamp="2026-01-01T00:00:00Z")
        await direct.call(RecordTicks(ticks=[tick]))

        gone = await direct.call(DeleteSymbol(symbol_id=desk.symbol.symbol_id))

        assert gone == desk.symbol
        assert await answer(sessions, GetSymbolById(symbol_id=desk.symbol.symbol_id)) is None
        [change] = await events(sessions, "symbol.deleted")
        assert change["after"] is None
        assert change["before"]["symbol"] == "XRP/ETH"
        assert change["version"] == 2
        assert change["stale_keys"] == keys_of(desk, "XRP/ETH", desk.symbol.symbol_id)

    @pytest.mark.parametrize("needed_by", ["orders", "trades", "dry trades", "positions", "bots that listen to it"])
    async def test_is_a_conflict_while_something_is_about_it(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker, needed_by: str
    ) -> None:
        holding = PositionFields(symbol_id=desk.symbol.symbol_id, volume="1")
        needs: dict[str, Any] = {
            "orders": desk.order(),
            "trades": desk.trade(),
            "dry trades": desk.dry_trade(),
            "positions": UpsertPositions(
                ex_id=desk.account.ex_id, positions=[holding], timestamp="2026-01-01T00:00:00Z"
            ),
            "bots that listen to it": AddFeedToBot(
                bot_id=desk.bot.bot_id, symbol_id=desk.symbol.symbol_id, timeframe="1m"
            ),
        }
        await direct.call(needs[needed_by])

        error = await refusal(executor, DeleteSymbol(symbol_id=desk.symbol.symbol_id))

        assert (error.code, error.field) == (ErrorCode.CONFLICT, "symbol_id")
        assert needed_by in error.message
        assert await answer(sessions, GetSymbolById(symbol_id=desk.symbol.symbol_id)) == desk.symbol
        assert await events(sessions, "symbol.deleted") == []

    async def test_of_nothing_or_of_another_version_is_refused(self, executor: Executor, desk: Desk) -> None:
        unknown = await refusal(executor, DeleteSymbol(symbol_id=999))
        moved_on = await refusal(executor, DeleteSymbol(symbol_id=desk.symbol.symbol_id, expected_version=2))

        assert (unknown.code, unknown.field) == (ErrorCode.NOT_FOUND, "symbol_id")
        assert (moved_on.code, moved_on.field) == (ErrorCode.CONFLICT, "expected_version")


class TestSynchronization:
    async def test_lists_what_is_new_and_changes_what_differs(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        same = await direct.call(AddSymbol(symbol="BTC/USDT", cat_ex_id=desk.catalog.cat_ex_id, decimals=2))

        done = await direct.call(
            SyncExchangeSymbols(
                ex_id=desk.account.ex_id,
                symbols=[
                    SymbolRules(symbol="ADA/USDT", tick_size="0.0001", base="ADA"),
                    SymbolRules(symbol="XRP/ETH", decimals=4, ticker="XRPETH"),
                    SymbolRules(symbol="BTC/USDT"),
                    SymbolRules(symbol="ADA/USDT", base="CARDANO"),
                ],
            )
        )

        assert (done.created, done.updated, done.unchanged) == (1, 1, 1)
        [error] = done.errors
        assert (error.index, error.symbol, error.code) == (3, "ADA/USDT", "conflict")
        ada, btc, xrp = await answer(sessions, GetSymbolsByExchange(cat_ex_id=desk.catalog.cat_ex_id))
        assert (str(ada.tick_size), ada.base, ada.decimals, ada.row_version) == ("0.0001", "ADA", 8, 1)
        assert btc == same
        assert xrp == desk.symbol.model_copy(update={"decimals": 4, "ticker": "XRPETH", "row_version": 2})

    async def test_announces_each_symbol_that_changed_with_its_keys(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        rules = [SymbolRules(symbol="NEW/USD"), SymbolRules(symbol="XRP/ETH", decimals=4)]
        await direct.call(SyncExchangeSymbols(ex_id=desk.account.ex_id, symbols=rules))
        await direct.call(SyncExchangeSymbols(ex_id=desk.account.ex_id, symbols=rules))

        new, changed = await events(sessions, "symbols.changed")
        assert (new["before"], new["after"]["symbol"], new["version"]) == (None, "NEW/USD", 1)
        assert new["stale_keys"] == keys_of(desk, "NEW/USD", new["after"]["symbol_id"])
        assert (changed["before"]["decimals"], changed["after"]["decimals"]) == (8, 4)
        assert set(changed["changed"]) == {"decimals", "row_version"}

    async def test_takes_as_many_statements_for_a_thousand_as_for_one(
        self, desk: Desk, sessions: SessionMaker, engine: AsyncEngine
    ) -> None:
        counts = []
        for symbols in ([{"symbol": "A/B"}], [{"symbol": f"S{i}/B", "decimals": i % 8} for i in range(1_000)]):
            with statements(engine) as sent:
                async with sessions.begin() as session:
                    await SymbolRepository(session).sync_exchange_symbols(desk.account.ex_id, symbols)
            counts.append(len(sent))

        assert counts[0] == counts[1]

    async def test_waits_for_another_one_of_the_same_exchange(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        rules = [SymbolRules(symbol=f"S{i}/B") for i in range(50)]
        command = SyncExchangeSymbols(ex_id=desk.account.ex_id, symbols=rules)

        async with sessions.begin() as session:
            said = [rule.model_dump(exclude_unset=True) for rule in rules]
            await SymbolRepository(session).sync_exchange_symbols(desk.account.ex_id, said)
            other = asyncio.create_task(executor.execute([received(command)]))
            await asyncio.sleep(0.3)
            assert not other.done()
        [reply] = await other

        assert (reply.data["created"], reply.data["updated"], reply.data["unchanged"]) == (0, 0, 50)
        assert len(await events(sessions, "symbols.changed")) == 50

    async def test_of_an_unknown_account_is_refused(self, executor: Executor) -> None:
        error = await refusal(executor, SyncExchangeSymbols(ex_id=999, symbols=[SymbolRules(symbol="A/B")]))

        assert (error.code, error.field) == (ErrorCode.NOT_FOUND, "ex_id")


class TestLookups:
    async def test_find_a_symbol_by_id_and_its_id_by_name(self, desk: Desk, sessions: SessionMaker) -> None:
        catalog = desk.catalog.cat_ex_id

        assert await answer(sessions, GetSymbolById(symbol_id=desk.symbol.symbol_id)) == desk.symbol
        assert await answer(sessions, GetIdBySymbol(symbol="XRP/ETH", cat_ex_id=catalog)) == desk.symbol.symbol_id
        assert await answer(sessions, GetIdBySymbol(symbol="NO/NE", cat_ex_id=catalog)) is None
        assert await answer(sessions, GetSymbol(symbol="NO/NE", cat_ex_id=catalog)) is None

    async def test_go_through_all_symbols_by_cursor(self, direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
        other = await a_desk(direct)
        rules = [SymbolRules(symbol=f"S{i}/B", status="halted" if i % 2 else "active") for i in range(4)]
        await direct.call(SyncExchangeSymbols(ex_id=desk.account.ex_id, symbols=rules))

        seen, cursor = [], None
        while True:
            page = await answer(sessions, GetAllSymbols(limit=2, cursor=cursor))
            seen += page.symbols
            cursor = page.next_cursor
            if cursor is None:
                break

        assert seen == (await answer(sessions, GetAllSymbols())).symbols
        assert len(seen) == 6
        here = await answer(sessions, GetAllSymbols(exchange_name=desk.catalog.name))
        assert [symbol.cat_ex_id for symbol in here.symbols] == [desk.catalog.cat_ex_id] * 5
        active = await answer(sessions, GetAllSymbols(exchange_name=desk.catalog.name, active_only=True))
        assert {symbol.symbol for symbol in active.symbols} == {"XRP/ETH", "S0/B", "S2/B"}
        assert other.symbol in seen

    async def test_search_in_any_case_and_take_wildcards_literally(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        rules = [SymbolRules(symbol="A_B/C"), SymbolRules(symbol="AXB/C", ticker="100%")]
        await direct.call(SyncExchangeSymbols(ex_id=desk.account.ex_id, symbols=rules))

        async def names(**query: Any) -> list[str]:
            return [symbol.symbol for symbol in await answer(sessions, SearchSymbols(**query))]

        assert await names(query="xrp") == ["XRP/ETH"]
        assert await names(query="a_b") == ["A_B/C"]
        assert await names(query="%") == ["AXB/C"]
        assert await names(query="/") == ["AXB/C", "A_B/C", "XRP/ETH"]
        assert await names(query="/", limit=1) == ["AXB/C"]
        assert await names(query="/", cat_ex_id=desk.catalog.cat_ex_id + 1) == []
