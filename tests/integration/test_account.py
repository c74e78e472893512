"""Snapshots of accounts: the newest wins, and what changed is told."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import (
    BalanceFields,
    ErrorCode,
    GetBalances,
    GetExchangeHistory,
    GetPositions,
    PositionFields,
    UpsertBalances,
    UpsertPositions,
)
from service.database import SessionMaker
from service.executor import Executor
from service.repositories import AccountRepository
from tests.builders import Desk, Direct, a_desk
from tests.observe import answer, events, refusal, statements


def balances(desk: Desk, second: int, comment: str | None = None, **totals: str) -> UpsertBalances:
    return UpsertBalances(
        ex_id=desk.account.ex_id,
        balances=[BalanceFields(currency=name, free=total, used="0.50") for name, total in totals.items()],
        timestamp=f"2026-01-01T00:00:{second:02}Z",
        comment=comment,
    )


def positions(desk: Desk, second: int = 0, **fields: Any) -> UpsertPositions:
    holding = PositionFields.model_validate({"symbol_id": desk.symbol.symbol_id, "volume": "1", **fields})
    return UpsertPositions(ex_id=desk.account.ex_id, positions=[holding], timestamp=f"2026-01-01T00:00:{second:02}Z")


class TestBalances:
    async def test_come_back_as_they_were_sent(self, direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
        done = await direct.call(balances(desk, 1, BTC="0.000000000000000001", USDT="-3.10"))

        assert (done.updated, done.outdated) == (2, 0)
        btc, usdt = await answer(sessions, GetBalances(ex_id=desk.account.ex_id))
        assert (btc.currency, str(btc.free), str(btc.used)) == ("BTC", "1E-18", "0.50")
        assert f"{btc.total:f}" == "0.500000000000000001"
        assert (usdt.currency, str(usdt.free), str(usdt.total)) == ("USDT", "-3.10", "-2.60")
        assert usdt.timestamp == datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC)
        assert await answer(sessions, GetBalances(ex_id=desk.account.ex_id, currency="USDT")) == [usdt]

    async def test_that_are_older_or_as_old_change_nothing(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        await direct.call(balances(desk, 5, BTC="1"))

        older = await direct.call(balances(desk, 4, BTC="2", ETH="7"))
        again = await direct.call(balances(desk, 5, BTC="3"))

        assert (older.updated, older.outdated) == (1, 1)
        assert (again.updated, again.outdated) == (0, 1)
        btc, _ = await answer(sessions, GetBalances(ex_id=desk.account.ex_id))
        assert (str(btc.free), btc.row_version) == ("1", 1)
        assert len(await events(sessions, "balance.updated")) == 2

    async def test_that_are_newer_are_announced_with_what_was(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        await direct.call(balances(desk, 1, BTC="1"))
        await direct.call(balances(desk, 2, BTC="2"))

        first, second = await events(sessions, "balance.updated")
        assert (first["before"], first["version"]) == (None, 1)
        assert second["key"] == {"ex_id": desk.account.ex_id, "currency": "BTC"}
        assert (second["before"]["total"], second["after"]["total"], second["version"]) == ("1.50", "2.50", 2)

    async def test_leave_a_history_of_the_totals_that_changed(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        await direct.call(balances(desk, 1, "deposit", BTC="1", ETH="5"))
        await direct.call(balances(desk, 2, BTC="1", ETH="5"))
        await direct.call(balances(desk, 3, "sold", BTC="0.25", ETH="5"))

        page = await answer(sessions, GetExchangeHistory(ex_id=desk.account.ex_id, currency="BTC"))

        told = [(str(entry.balance), entry.change, entry.comment) for entry in page.history]
        assert told == [("0.75", Decimal("-0.75"), "sold"), ("1.50", None, "deposit")]
        assert {entry.uid for entry in page.history} == {desk.user.uid}
        everything = await answer(sessions, GetExchangeHistory(ex_id=desk.account.ex_id, limit=2))
        rest = await answer(
            sessions, GetExchangeHistory(ex_id=desk.account.ex_id, limit=2, cursor=everything.next_cursor)
        )
        assert len(everything.history + rest.history) == 3
        between = GetExchangeHistory(
            ex_id=desk.account.ex_id, start_date="2026-01-01T00:00:02Z", end_date="2026-01-01T00:00:03Z"
        )
        assert (await answer(sessions, between)).history == []

    async def test_of_an_unknown_or_foreign_account_are_refused(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        other = await a_desk(direct)
        command = balances(desk, 1, BTC="1")

        unknown = await refusal(executor, command.model_copy(update={"ex_id": 999}))
        foreign = await refusal(executor, UpsertBalances(**{**command.model_dump(), "uid": other.user.uid}))

        assert (unknown.code, unknown.field) == (ErrorCode.NOT_FOUND, "ex_id")
        assert (foreign.code, foreign.field) == (ErrorCode.FORBIDDEN, "ex_id")
        assert await answer(sessions, GetBalances(ex_id=desk.account.ex_id)) == []

    async def test_take_as_many_statements_for_hundreds_as_for_one(
        self, desk: Desk, sessions: SessionMaker, engine: AsyncEngine
    ) -> None:
        counts = []
        for second, number in ((1, 1), (2, 500)):
            said = [{"currency": f"C{n}", "free": 1.5, "used": 0} for n in range(number)]
            with statements(engine) as sent:
                async with sessions.begin() as session:
                    moment = datetime(2026, 1, 1, 0, 0, second)  # noqa: DTZ001 - as callers of the library say it
                    await AccountRepository(session).upsert_balances(desk.account.ex_id, said, moment)
            counts.append(len(sent))

        assert counts[0] == counts[1] == 5

    def test_name_each_currency_once(self) -> None:
        twice = [BalanceFields(currency="BTC", free="1", used="0")] * 2

        with pytest.raises(ValidationError, match="twice"):
            UpsertBalances(ex_id=1, balances=twice, timestamp="2026-01-01T00:00:00Z")


class TestPositions:
    async def test_come_back_as_they_were_sent(self, direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
        sent: dict[str, Any] = {"price": "0.10", "cost": "-1.0", "fee": "0.01", "realized_pnl": "-2", "count": 3}

        await direct.call(positions(desk, volume="-10.00", side="short", bot_id=desk.bot.bot_id, **sent))

        [held] = await answer(sessions, GetPositions(ex_id=desk.account.ex_id))
        assert (held.side, str(held.volume), held.bot_id) == ("short", "-10.00", desk.bot.bot_id)
        assert {name: str(getattr(held, name)) for name in sent} == {name: str(value) for name, value in sent.items()}

    async def test_that_are_newer_win(self, direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
        await direct.call(positions(desk, 1, volume="1"))
        await direct.call(positions(desk, 3, volume="0"))
        await direct.call(positions(desk, 2, volume="5"))

        [held] = await answer(sessions, GetPositions(ex_id=desk.account.ex_id, symbol_id=desk.symbol.symbol_id))
        assert (held.side, str(held.volume), held.row_version) == ("flat", "0", 2)
        first, second = await events(sessions, "position.updated")
        assert (first["after"]["side"], second["before"]["side"], second["after"]["side"]) == ("long", "long", "flat")

    async def test_of_things_that_do_not_belong_are_refused(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        other = await a_desk(direct)
        attempts: list[tuple[dict[str, Any], ErrorCode, str]] = [
            ({"symbol_id": 999}, ErrorCode.NOT_FOUND, "positions.0.symbol_id"),
            ({"symbol_id": other.symbol.symbol_id}, ErrorCode.FORBIDDEN, "positions.0.symbol_id"),
            ({"bot_id": 999}, ErrorCode.NOT_FOUND, "positions.0.bot_id"),
            ({"bot_id": other.bot.bot_id}, ErrorCode.FORBIDDEN, "positions.0.bot_id"),
        ]

        for fields, code, field in attempts:
            error = await refusal(executor, positions(desk, **fields))
            assert (error.code, error.field) == (code, field)

        assert await answer(sessions, GetPositions(ex_id=desk.account.ex_id)) == []

    @pytest.mark.parametrize("side", ["short", "flat"])
    def test_are_on_the_side_of_their_volume(self, side: str) -> None:
        with pytest.raises(ValidationError, match="is long"):
            PositionFields(symbol_id=1, volume="1", side=side)
