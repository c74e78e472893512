"""Events leave exactly if their transaction commits, whoever commits it."""

import json
from typing import Any

from sqlalchemy import select

from contracts import Event
from contracts.base import EVENT_TYPES
from service.database import SessionMaker
from service.models import OutboxEvent
from service.repositories import ExchangeRepository, SymbolRepository, UserRepository


async def events(sessions: SessionMaker) -> list[OutboxEvent]:
    async with sessions() as session:
        return list(await session.scalars(select(OutboxEvent).order_by(OutboxEvent.id)))


async def catalog(sessions: SessionMaker) -> int:
    async with sessions.begin() as session:
        exchange, _ = await ExchangeRepository(session).install_exchange("binance")
        return exchange.cat_ex_id


class TestLibraryUser:
    async def test_gets_an_event_by_committing(self, sessions: SessionMaker) -> None:
        async with sessions() as session:
            users = UserRepository(session)
            user = await users.add_user({"mail": "a@example.org", "role": "ADMIN"})
            await users.commit()

        [event] = await events(sessions)
        [change] = json.loads(event.changes)
        assert (event.type, change["key"], change["version"]) == ("user.created", {"uid": user.uid}, 1)
        assert change["before"] is None
        assert "password" not in change["after"]
        assert event.stale_keys == [
            f"user:{user.uid}",
            "user:id:a@example.org",
            f"user:trading_summary:{user.uid}",
        ]

    async def test_gets_none_by_rolling_back(self, sessions: SessionMaker) -> None:
        async with sessions() as session:
            users = UserRepository(session)
            await users.add_user({"mail": "a@example.org"})
            await users.rollback()
            await users.add_user({"mail": "b@example.org"})
            await users.commit()

        [event] = await events(sessions)
        assert json.loads(event.changes)[0]["after"]["mail"] == "b@example.org"

    async def test_gets_none_for_what_a_savepoint_took_back(self, sessions: SessionMaker) -> None:
        async with sessions.begin() as session:
            users = UserRepository(session)
            await users.add_user({"mail": "kept@example.org"})
            savepoint = await session.begin_nested()
            await users.add_user({"mail": "dropped@example.org"})
            async with session.begin_nested():
                await users.add_user({"mail": "dropped-too@example.org"})
            await savepoint.rollback()
            async with session.begin_nested():
                await users.add_user({"mail": "kept-too@example.org"})

        mails = [change["after"]["mail"] for event in await events(sessions) for change in json.loads(event.changes)]
        assert mails == ["kept@example.org", "kept-too@example.org"]

    async def test_gets_an_event_for_each_of_two_commits_of_one_session(self, sessions: SessionMaker) -> None:
        async with sessions() as session:
            users = UserRepository(session)
            for mail in ("a@example.org", "b@example.org"):
                await users.add_user({"mail": mail})
                await users.commit()

        first, second = await events(sessions)
        assert first.transaction_id != second.transaction_id


class TestEvent:
    async def test_carries_changes_of_one_type_together_up_to_500(self, sessions: SessionMaker) -> None:
        cat_ex_id = await catalog(sessions)
        async with sessions.begin() as session:
            await SymbolRepository(session).add_symbols(
                [{"symbol": f"S{i:04}/USDT", "cat_ex_id": cat_ex_id} for i in range(1_200)]
            )

        _, *created = await events(sessions)
        assert [len(json.loads(event.changes)) for event in created] == [500, 500, 200]
        assert {event.type for event in created} == {"symbol.created"}

    async def test_can_be_read_with_the_contracts(self, sessions: SessionMaker) -> None:
        cat_ex_id = await catalog(sessions)
        async with sessions.begin() as session:
            symbols = SymbolRepository(session)
            symbol = await symbols.add_symbol({"symbol": "A/B", "cat_ex_id": cat_ex_id, "ticker": "AB"})
            await symbols.update_symbol(symbol.id, {"symbol": "A/C"})

        for row in await events(sessions):
            body: dict[str, Any] = {
                "event_id": row.event_id,
                "type": row.type,
                "sequence": 1,
                "occurred_at": row.occurred_at,
                "transaction": str(row.transaction_id),
                "causation_ids": row.causation_ids,
                "changes": json.loads(row.changes),
                "stale_keys": row.stale_keys,
            }
            event: Event[Any] = EVENT_TYPES[row.type].model_validate(body)
            assert event.stale_keys == type(event).stale_keys_of(event.changes)
        updated = event.changes[0]
        assert updated.changed == ["symbol", "row_version"]
        assert event.stale_keys == [
            f"symbol:A/B:{cat_ex_id}",
            f"symbol:A/C:{cat_ex_id}",
            f"symbols:exchange:{cat_ex_id}",
            f"symbol:by_id:{symbol.id}",
            "symbols:all",
        ]

    async def test_is_not_made_by_a_change_that_changes_nothing(self, sessions: SessionMaker) -> None:
        cat_ex_id = await catalog(sessions)
        async with sessions.begin() as session:
            symbol = await SymbolRepository(session).add_symbol({"symbol": "A/B", "cat_ex_id": cat_ex_id})
        before = len(await events(sessions))

        async with sessions.begin() as session:
            same = await SymbolRepository(session).update_symbol(symbol.id, {"symbol": "A/B", "decimals": 8})

        assert same.row_version == 1
        assert len(await events(sessions)) == before
