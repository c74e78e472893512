"""Credentials of accounts and second factors of users: kept, given out, and kept anew under another key."""

import json
import secrets
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import (
    AddExchange,
    AddUser,
    ErrorCode,
    ExchangeUpdates,
    GetExchange,
    GetExchangeCredentials,
    GetExchangesByUser,
    GetSealingKey,
    GetUser,
    GetUserCredentials,
    ModifyUser,
    Refusal,
    UpdateExchange,
    UserUpdates,
    new_key_pair,
    seal,
    unseal,
)
from service.cli.keys import Rotation, rotate
from service.database import SessionMaker, build_session_maker
from service.executor import Executor
from service.models import ExchangeCredential
from service.vault import Vault
from tests.builders import Asking, Desk, Direct, a_desk, received, sealed
from tests.observe import announced, refused

PRIVATE, PUBLIC = new_key_pair()


async def credentials(asking: Asking, ex_id: int) -> dict[str, str | None] | None:
    """What an asker finds after opening what it is given."""
    found = await asking.ask(GetExchangeCredentials(ex_id=ex_id, public_key=PUBLIC))
    if found is None:
        return None
    values = found.model_dump(exclude={"ex_id", "uid"})
    return {field: value and unseal(value, PRIVATE, uid=found.uid, field=field) for field, value in values.items()}


class TestCredentials:
    async def test_come_back_as_they_were_and_are_seen_nowhere_else(
        self, direct: Direct, asking: Asking, desk: Desk, vault: Vault, sessions: SessionMaker
    ) -> None:
        uid = desk.user.uid
        account = await direct.call(
            AddExchange(
                uid=uid,
                cat_ex_id=desk.catalog.cat_ex_id,
                ex_name="with keys",
                api_key=sealed(vault, "the key", uid=uid, field="api_key"),
                api_secret=sealed(vault, "the secret\n" * 300, uid=uid, field="api_secret"),
            )
        )

        assert (account.has_credentials, account.row_version) == (True, 1)
        assert await asking.ask(GetExchange(ex_id=account.ex_id)) == account
        assert await credentials(asking, account.ex_id) == {
            "api_key": "the key",
            "api_secret": "the secret\n" * 300,
            "passphrase": None,
        }
        async with sessions() as session:
            stored = await session.get(ExchangeCredential, account.ex_id)
        assert stored is not None
        assert stored.to_dict().keys() == {"ex_id", "uid", "updated_at"}
        assert "the key" not in str(stored.api_key)

    async def test_can_be_changed_one_by_one_and_taken_away(
        self, direct: Direct, asking: Asking, desk: Desk, vault: Vault, sessions: SessionMaker
    ) -> None:
        uid, ex_id = desk.user.uid, desk.account.ex_id

        async def change(**secrets: str | None) -> Any:
            updates = {name: s and sealed(vault, s, uid=uid, field=name) for name, s in secrets.items()}
            return await direct.call(UpdateExchange(ex_id=ex_id, updates=ExchangeUpdates.model_validate(updates)))

        assert await credentials(asking, ex_id) is None
        first = await change(api_key="a", api_secret="b", passphrase="c")
        second = await change(api_secret="new", passphrase=None)
        assert await credentials(asking, ex_id) == {"api_key": "a", "api_secret": "new", "passphrase": None}
        third = await change(api_key=None, api_secret=None)

        assert await credentials(asking, ex_id) is None
        assert [(v.has_credentials, v.row_version) for v in (first, second, third)] == [
            (True, 2),
            (True, 3),
            (False, 4),
        ]
        versions = [json.loads(e.changes)[0]["version"] for e in await announced(sessions, "exchange.updated")]
        assert versions == [2, 3, 4]

    async def test_of_one_user_are_worth_nothing_to_another(
        self, direct: Direct, executor: Executor, desk: Desk, vault: Vault
    ) -> None:
        seen = sealed(vault, "the key", uid=desk.user.uid, field="api_key")
        thief = await direct.call(AddUser(mail="thief@example.org"))
        body = {"uid": thief.uid, "cat_ex_id": desk.catalog.cat_ex_id, "ex_name": "x", "api_key": seen}

        assert await refused(executor, AddExchange.model_validate(body)) == ("validation", "api_key")

    async def test_do_not_go_to_another_owner(self, direct: Direct, asking: Asking, desk: Desk, vault: Vault) -> None:
        uid = desk.user.uid
        other = await direct.call(AddUser(mail="other@example.org"))
        account = await direct.call(
            AddExchange(
                uid=uid,
                cat_ex_id=desk.catalog.cat_ex_id,
                ex_name="moves",
                api_key=sealed(vault, "first", uid=uid, field="api_key"),
            )
        )

        moved = await direct.call(UpdateExchange(ex_id=account.ex_id, updates=ExchangeUpdates(uid=other.uid)))
        assert (moved.uid, moved.has_credentials, moved.row_version) == (other.uid, False, 2)
        assert await credentials(asking, account.ex_id) is None

        back = ExchangeUpdates(uid=uid, api_key=sealed(vault, "second", uid=uid, field="api_key"))
        assert (await direct.call(UpdateExchange(ex_id=account.ex_id, updates=back))).has_credentials
        assert await credentials(asking, account.ex_id) == {
            "api_key": "second",
            "api_secret": None,
            "passphrase": None,
        }

    async def test_are_refused_where_there_are_no_keys_and_nothing_else_is(self, engine: AsyncEngine) -> None:
        executor = Executor(build_session_maker(engine))
        desk = await a_desk(Direct(executor))
        body = {
            "uid": desk.user.uid,
            "cat_ex_id": desk.catalog.cat_ex_id,
            "ex_name": "x",
            "api_key": seal("x", PUBLIC, uid=desk.user.uid, field="api_key"),
        }

        [reply] = await executor.execute([received(AddExchange.model_validate(body))])

        assert reply.error is not None
        assert (reply.error.code, reply.error.field) == (ErrorCode.UNAVAILABLE, "api_key")
        assert "SEALING_KEY_FILE" in reply.error.message
        asking = Asking(build_session_maker(engine))
        assert await asking.ask(GetExchange(ex_id=desk.account.ex_id)) == desk.account
        assert await asking.ask(GetSealingKey()) is None
        assert len(await asking.ask(GetExchangesByUser(uid=desk.user.uid))) == 1

    async def test_are_sealed_with_the_key_that_a_lookup_gives(self, asking: Asking, vault: Vault) -> None:
        assert (await asking.ask(GetSealingKey())).public_key == vault.public_key

    async def test_that_were_moved_in_the_database_do_not_open(
        self, direct: Direct, asking: Asking, desk: Desk, vault: Vault, sessions: SessionMaker
    ) -> None:
        uid, ex_id = desk.user.uid, desk.account.ex_id
        updates = {"api_key": sealed(vault, "x", uid=uid, field="api_key")}
        await direct.call(UpdateExchange(ex_id=ex_id, updates=ExchangeUpdates.model_validate(updates)))
        async with sessions.begin() as session:
            await session.execute(text("UPDATE exchange_credentials SET api_secret = api_key, api_key = NULL"))

        with pytest.raises(Refusal) as refusal:
            await asking.ask(GetExchangeCredentials(ex_id=ex_id, public_key=PUBLIC))
        assert (refusal.value.code, refusal.value.field) == (ErrorCode.UNAVAILABLE, "api_secret")

    async def test_second_factors_are_kept_likewise(
        self, direct: Direct, executor: Executor, asking: Asking, desk: Desk, vault: Vault
    ) -> None:
        uid, mail = desk.user.uid, desk.user.mail
        other = await direct.call(AddUser(mail="other@example.org"))
        f2a = sealed(vault, "JBSWY3DPEHPK3PXP", uid=uid, field="f2a")

        await direct.call(ModifyUser(uid=uid, updates=UserUpdates(f2a=f2a)))
        found = await asking.ask(GetUserCredentials(mail=mail, public_key=PUBLIC))

        assert unseal(found.f2a, PRIVATE, uid=uid, field="f2a") == "JBSWY3DPEHPK3PXP"
        assert (await asking.ask(GetUserCredentials(mail=mail))).f2a is None
        command = ModifyUser(uid=other.uid, updates=UserUpdates(f2a=f2a))
        assert await refused(executor, command) == ("validation", "f2a")
        await direct.call(ModifyUser(uid=uid, updates=UserUpdates(f2a=None)))
        assert (await asking.ask(GetUserCredentials(mail=mail, public_key=PUBLIC))).f2a is None


class TestRotation:
    async def test_can_be_broken_off_and_gone_on_with(
        self, engine: AsyncEngine, vault: Vault, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        uid = desk.user.uid
        ex_ids = []
        for number in range(5):
            account = await direct.call(
                AddExchange(
                    uid=uid,
                    cat_ex_id=desk.catalog.cat_ex_id,
                    ex_name=f"account {number}",
                    api_key=sealed(vault, f"key {number}", uid=uid, field="api_key"),
                    api_secret=sealed(vault, f"secret {number}", uid=uid, field="api_secret"),
                )
            )
            ex_ids.append(account.ex_id)
        f2a = sealed(vault, "second factor", uid=uid, field="f2a")
        before = await direct.call(ModifyUser(uid=uid, updates=UserUpdates(f2a=f2a)))
        old = vault._ciphers["first"]
        newer = Vault([], {"second": secrets.token_bytes(32)})
        newer._ciphers["first"] = old
        newest = build_session_maker(engine, newer)

        class BrokenOff(Exception):  # noqa: N818
            pass

        def break_off(rotation: Rotation) -> None:
            if rotation.seen == 4:
                raise BrokenOff

        with pytest.raises(BrokenOff):
            await rotate(newest, newer, batch_size=2, progress=break_off)
        steps: list[int] = []
        rotation = await rotate(newest, newer, batch_size=2, progress=lambda r: steps.append(r.renewed))

        assert (rotation.seen, rotation.renewed, rotation.unreadable) == (6, 2, [])
        assert steps == [0, 0, 1, 2]
        del newer._ciphers["first"]
        reading = Asking(newest)
        for number, ex_id in enumerate(ex_ids):
            found = await credentials(reading, ex_id)
            assert found == {"api_key": f"key {number}", "api_secret": f"secret {number}", "passphrase": None}
        person = await reading.ask(GetUserCredentials(mail=desk.user.mail, public_key=PUBLIC))
        assert unseal(person.f2a, PRIVATE, uid=uid, field="f2a") == "second factor"
        # Nobody sees a new version of anything.
        assert await reading.ask(GetUser(uid=uid)) == before
        assert await announced(sessions, "exchange.updated") == []
        assert (await rotate(newest, newer)).renewed == 0

    async def test_leaves_what_it_cannot_read_and_says_so(
        self, engine: AsyncEngine, vault: Vault, direct: Direct, desk: Desk
    ) -> None:
        updates = {"api_key": sealed(vault, "x", uid=desk.user.uid, field="api_key")}
        await direct.call(UpdateExchange(ex_id=desk.account.ex_id, updates=ExchangeUpdates.model_validate(updates)))
        stranger = Vault([], {"second": secrets.token_bytes(32)})

        rotation = await rotate(build_session_maker(engine, stranger), stranger)

        assert (rotation.renewed, rotation.unreadable) == (0, [f"exchanges/{desk.account.ex_id}"])
