"""A login sends what its role may, about users of its own, and the broker knows it too."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import pytest
from sqlalchemy import select

from contracts import (
    AddUser,
    DeleteUser,
    ErrorCode,
    GetBot,
    GetBotList,
    GetBotsWithDetails,
    GetExchangeCredentials,
    GetSymbol,
    GetTradesByUser,
    GetUser,
    PositionFields,
    RecordTrades,
    Refusal,
    SaveBotLog,
    TradeFields,
    UpsertPositions,
    new_key_pair,
)
from contracts.base import COMMAND_TYPES, LOOKUP_TYPES, Command, Lookup, Request
from contracts.client import PersistenceClient
from contracts.topology import COMMANDS, EVENTS, LOOKUPS
from deploy.permissions import NOTHING, SUBSCRIBER, commands_for, permissions_of
from deploy.servers import Servers
from service.config import Settings, SettingsError
from service.database import SessionMaker
from service.executor import REPLAY_HEADER, Executor
from service.models import DeadLetter, InboxMessage
from service.senders import _NAMES, NOBODYS, ROLES, Sender, Senders
from tests.builders import Desk, Direct, a_desk, received
from tests.conftest import StartService
from tests.fresh import manage, with_path

_, PUBLIC = new_key_pair()


def settings(senders: str) -> Settings:
    urls = {"database_url": "postgresql://a/b", "rabbitmq_url": "amqp://a", "redis_url": "redis://a"}
    return Settings.model_validate({**urls, "senders": senders})


class TestSetting:
    def test_tells_roles_and_users(self) -> None:
        senders = Senders.of(settings("ops:admin, bot-7:bot:7+8\nweb:reader"))

        assert senders._senders == {
            "ops": Sender("admin"),
            "bot-7": Sender("bot", frozenset({7, 8})),
            "web": Sender("reader"),
        }

    @pytest.mark.parametrize("entry", ["ops", "ops:root", ":admin", "a:bot:x", "a:bot:1+", "a:bot,a:bot"])
    def test_is_refused_if_it_means_nothing(self, entry: str) -> None:
        with pytest.raises(SettingsError, match="SENDERS: entry"):
            Senders.of(settings(entry))


def test_only_admins_send_what_changes_users_or_gives_out_secrets() -> None:
    for kind in (*COMMAND_TYPES.values(), *LOOKUP_TYPES.values()):
        allowed = {role for role, may in ROLES.items() if may(kind)}
        assert "admin" in allowed, kind
        if kind.wire_name == "get_exchange_credentials":
            assert allowed == {"admin", "trader"}
        elif kind.wire_name == "get_user_credentials" or ("user" in kind.wire_name and issubclass(kind, Command)):
            assert allowed == {"admin"}
        elif issubclass(kind, Command):
            assert "reader" not in allowed, kind


def test_whoever_is_limited_to_some_users_does_not_ask_about_all() -> None:
    """What names nobody is refused, unless it is said to belong to nobody."""
    about_all = {
        name
        for name, kind in LOOKUP_TYPES.items()
        if kind not in NOBODYS and not any(field in _NAMES for field in kind.model_fields)
    }

    assert about_all == {
        *("check_database_health", "collect_performance_metrics", "get_cache_health", "monitor_connection_health"),
        *("get_active_exchanges", "get_active_users", "get_bot_full_list", "get_bots_strategies"),
        *("get_pending_orders", "get_symbol_price_stats", "get_user_by_email", "get_user_credentials"),
        *("get_user_id", "get_user_list", "search_users"),
    }


class TestLimitedToSomeUsers:
    @pytest.fixture
    async def desks(self, direct: Direct) -> tuple[Desk, Desk]:
        return await a_desk(direct), await a_desk(direct)

    @pytest.fixture
    def limited(self, sessions: SessionMaker, desks: tuple[Desk, Desk]) -> Executor:
        """Lets the login ``bot`` name the first desk's user, ``everyone`` everybody."""
        own, _ = desks
        senders = {"bot": Sender("bot", frozenset({own.user.uid})), "everyone": Sender("bot")}
        return Executor(sessions, senders=Senders(senders))

    async def test_it_trades_for_its_own_and_for_nobody_else(
        self, limited: Executor, desks: tuple[Desk, Desk]
    ) -> None:
        own, other = desks
        commands: list[tuple[Command[Any], str | None]] = [
            (own.trade(), None),
            (own.order(), None),
            (SaveBotLog(bot_id=own.bot.bot_id, message="x"), None),
            (other.trade(), "bot_id"),
            (own.trade(ex_id=other.account.ex_id), "ex_id"),
            (own.order(bot_id=other.bot.bot_id), "bot_id"),
            (SaveBotLog(bot_id=other.bot.bot_id, message="x"), "bot_id"),
            (SaveBotLog(bot_id=999, message="x"), "bot_id"),
            (RecordTrades(trades=[_fields(own), _fields(other)]), "trades.1.bot_id"),
            (
                UpsertPositions(
                    ex_id=own.account.ex_id,
                    positions=[PositionFields(symbol_id=1, volume="1", bot_id=other.bot.bot_id)],
                    timestamp="2026-01-01T00:00:00Z",
                ),
                "positions.0.bot_id",
            ),
            (AddUser(mail="x@example.org"), "user_id"),
            (DeleteUser(uid=own.user.uid), "user_id"),
        ]

        replies = await limited.execute([received(command, user_id="bot") for command, _ in commands])

        for (command, field), reply in zip(commands, replies, strict=True):
            error = reply.error and (reply.error.code, reply.error.field)
            assert error == (field and (ErrorCode.FORBIDDEN, field)), command

    @pytest.mark.parametrize("login", ["bot", "stranger", None])
    async def test_a_repetition_by_who_may_not_send_it_is_forbidden_and_changes_nothing(
        self, limited: Executor, desks: tuple[Desk, Desk], sessions: SessionMaker, login: str | None
    ) -> None:
        done, refused = received(desks[1].trade(), user_id="everyone"), received(_unknown_bot(), user_id="everyone")
        first = await limited.execute([done, refused])
        before = await _what_is_kept(sessions)

        replies = await limited.execute(
            [
                replace(message, user_id=login, headers=headers)
                for message in (done, refused)
                for headers in ({}, {REPLAY_HEADER: 1})
            ]
        )

        assert [reply.ok for reply in first] == [True, False]
        for reply in replies:
            assert reply.error is not None
            assert (reply.error.code, reply.data, reply.meta.duplicate) == (ErrorCode.FORBIDDEN, None, False)
        assert await _what_is_kept(sessions) == before
        again = await limited.execute([done, refused])
        assert [(reply.ok, reply.data, reply.error) for reply in again] == [
            (reply.ok, reply.data, reply.error) for reply in first
        ]

    async def test_another_content_under_a_known_id_is_forbidden_and_kept_as_a_letter_of_its_own(
        self, limited: Executor, desks: tuple[Desk, Desk], sessions: SessionMaker
    ) -> None:
        done = received(desks[1].trade(), user_id="everyone")
        await limited.execute([done])
        entries, _ = await _what_is_kept(sessions)

        [reply] = await limited.execute([replace(done, body=received(desks[1].trade()).body, user_id="bot")])

        assert reply.error is not None
        assert (reply.error.code, reply.error.field) == (ErrorCode.FORBIDDEN, "bot_id")
        entries_then, letters = await _what_is_kept(sessions)
        assert entries_then == entries
        assert [(letter["message_id"], letter["code"]) for letter in letters] == [(done.message_id, "forbidden")]

    async def test_who_is_refused_is_refused_again_and_once_on_record(
        self, limited: Executor, desks: tuple[Desk, Desk], sessions: SessionMaker
    ) -> None:
        message = received(desks[1].trade(), user_id="bot")

        replies = [*await limited.execute([message]), *await limited.execute([message])]

        assert [reply.error and reply.error.code for reply in replies] == [ErrorCode.FORBIDDEN] * 2
        assert replies[0].error == replies[1].error
        _, letters = await _what_is_kept(sessions)
        assert [(letter["code"], letter["attempts"]) for letter in letters] == [("forbidden", 1)]

    async def test_others_are_let_through_by_role_alone(self, limited: Executor, desks: tuple[Desk, Desk]) -> None:
        trade = desks[1].trade()
        by = [received(trade, user_id=login) for login in ("everyone", "stranger", None)]

        replies = await limited.execute(by)

        assert [reply.error and reply.error.field for reply in replies] == [None, "user_id", "user_id"]


def _unknown_bot() -> SaveBotLog:
    return SaveBotLog(bot_id=999, message="x")


async def _what_is_kept(sessions: SessionMaker) -> list[list[dict[str, Any]]]:
    """The inbox and the dead letters, column by column."""
    kept = []
    async with sessions() as session:
        for model in (InboxMessage, DeadLetter):
            rows = await session.execute(select(*model.__table__.columns))
            kept.append([dict(row) for row in rows.mappings()])
    return kept


def _fields(desk: Desk) -> TradeFields:
    return TradeFields.model_validate(desk.trade().model_dump())


class TestOnARealBroker:
    """Logins with the permissions of their role, before a service that knows them."""

    @pytest.fixture
    async def logins(self, servers: Servers, rabbitmq_url: str) -> AsyncIterator[dict[str, str]]:
        """The URL of a login of each kind."""
        vhost = urlsplit(rabbitmq_url).path[1:]
        made = {}
        for role in (*ROLES, SUBSCRIBER):
            login = f"{role}-{secrets.token_hex(4)}"
            given = permissions_of(login, role)
            for path, body in (
                (f"/api/users/{login}", {"password": "secret", "tags": ""}),
                (
                    f"/api/permissions/{vhost}/{login}",
                    {"configure": given.configure, "write": given.write, "read": given.read},
                ),
                (
                    f"/api/topic-permissions/{vhost}/{login}",
                    {"exchange": COMMANDS.name, "write": given.commands, "read": NOTHING},
                ),
            ):
                await asyncio.to_thread(manage, servers, "PUT", path, body)
            at = urlsplit(servers.rabbitmq_url)
            made[role] = with_path(f"amqp://{login}:secret@{at.hostname}:{at.port}/", vhost)
        yield made
        for url in made.values():
            await asyncio.to_thread(manage, servers, "DELETE", f"/api/users/{urlsplit(url).username}")

    async def test_each_does_what_its_role_may_and_no_more(
        self, start_service: StartService, logins: dict[str, str]
    ) -> None:
        names = {role: urlsplit(url).username or "" for role, url in logins.items()}
        service = await start_service(
            SENDERS=f"{names['admin']}:admin,{names['bot']}:bot:1,{names['reader']}:reader,{names['trader']}:trader:1"
        )

        def client(role: str) -> PersistenceClient:
            return PersistenceClient(logins[role], user_id=names[role], answer_timeout=10, confirm_timeout=2)

        async with client("admin") as admin:
            own, other = [await _desk(admin, number) for number in (1, 2)]
        async with client("bot") as bot:
            assert (await bot.call(own.trade())).uid == 1
            assert await bot.lookup(GetBot(bot_id=own.bot.bot_id)) == own.bot
            assert await bot.lookup(GetSymbol(symbol="XRP/ETH", cat_ex_id=own.catalog.cat_ex_id)) == own.symbol
            requests: list[tuple[Request[Any], str]] = [
                (other.trade(), "bot_id"),
                (GetBot(bot_id=other.bot.bot_id), "bot_id"),
                (GetBotsWithDetails(bot_ids=[own.bot.bot_id, other.bot.bot_id]), "bot_ids"),
                (GetTradesByUser(uid=2), "uid"),
                (GetUser(uid=2), "uid"),
                (GetBotList(), "user_id"),
                (GetExchangeCredentials(ex_id=own.account.ex_id, public_key=PUBLIC), "user_id"),
            ]
            for request, field in requests:
                with pytest.raises(Refusal) as refusal:
                    await (bot.call(request) if isinstance(request, Command) else bot.lookup(request))  # type: ignore[arg-type]
                assert (refusal.value.code, refusal.value.field) == (ErrorCode.FORBIDDEN, field), request
        async with client("trader") as trader:
            credentials: Lookup[Any] = GetExchangeCredentials(ex_id=own.account.ex_id, public_key=PUBLIC)
            assert await trader.lookup(credentials) is None
        async with client("reader") as reader:
            assert await reader.lookup(GetUser(uid=2)) == other.user
        # What the service would refuse, the broker does not even take.
        assert await _taken(logins["admin"], COMMANDS.name, "add_user")
        for role, exchange, key in (
            ("bot", COMMANDS.name, "add_user"),
            ("bot", EVENTS.name, "trade.recorded"),
            ("bot", "", "persistence.config"),
            ("reader", COMMANDS.name, "record_trade"),
            (SUBSCRIBER, COMMANDS.name, "record_trade"),
            (SUBSCRIBER, LOOKUPS.name, "get_user"),
        ):
            assert not await _taken(logins[role], exchange, key), (role, exchange, key)
        assert await _bound(logins[SUBSCRIBER], f"{names[SUBSCRIBER]}.cache")
        assert not await _bound(logins[SUBSCRIBER], "another.cache")
        assert not await _bound(logins["bot"], f"{names['bot']}.cache")
        assert service.process.returncode is None


async def _desk(client: PersistenceClient, number: int) -> Desk:
    desk = await a_desk(client)
    assert desk.user.uid == number
    return desk


async def _taken(url: str, exchange: str, key: str) -> bool:
    """Whether the broker takes a message there from this login."""
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        target = channel.default_exchange if not exchange else await channel.get_exchange(exchange, ensure=False)
        try:
            await target.publish(aio_pika.Message(b"{}"), key, timeout=5)
        except aio_pika.exceptions.AMQPError:
            return False
        return True


async def _bound(url: str, name: str) -> bool:
    """Whether this login can have a queue of that name, and be sent events."""
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        try:
            queue = await channel.declare_queue(name, auto_delete=True)
            await queue.bind(EVENTS.name, "symbol.#")
        except aio_pika.exceptions.AMQPError:
            return False
        await queue.delete()
        return True


def test_permissions_are_printed_as_commands_of_the_broker() -> None:
    given, topics = commands_for("web-1", "reader", "trading")

    assert given == "rabbitmqctl set_permissions -p trading web-1 '^$' '^(persistence\\.lookups)$' '^$'"
    assert topics == "rabbitmqctl set_topic_permissions -p trading web-1 persistence.commands '^$' '^$'"
    with pytest.raises(ValueError, match="a-z"):
        commands_for("web.1", "reader")
