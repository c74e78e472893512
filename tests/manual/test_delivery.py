"""What holds for every message, however often and in whatever order it comes."""

import asyncio
import json
import secrets
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractQueue
from pydantic import ValidationError
from redis.asyncio import Redis
from sqlalchemy import func, select

from contracts import (
    AddExchangeToBot,
    AddUser,
    ErrorCode,
    FillOrder,
    GetSymbol,
    GetTrade,
    ModifyUser,
    RecordTrades,
    SymbolUpdates,
    UpdateOrderStatus,
    UpdateSymbol,
    UserUpdates,
    cache_keys,
)
from contracts.invalidator import CacheInvalidator
from contracts.leased_cache import LeasedCache, connect
from service import SymbolRepository, Trade
from service.base import Base
from service.config import Settings
from service.database import SessionMaker
from service.executor import Executor
from service.lookup_server import LookupServer
from service.models import DeadLetter, OutboxEvent
from service.publisher import Publisher
from service.relay import Relay
from tests.builders import Desk, Direct, a_desk, received
from tests.manual.conftest import asked, stale_keys
from tests.observe import events, refusal


async def count(sessions: SessionMaker, model: type[Base]) -> int:
    async with sessions() as session:
        return await session.scalar(select(func.count()).select_from(model)) or 0


@pytest.fixture
def settings(rabbitmq_url: str, library: None, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a service with a virtual host of its own."""
    monkeypatch.setenv("RABBITMQ_URL", rabbitmq_url)
    return Settings.read()


Relays = Callable[..., Relay]


@pytest.fixture
def relays(sessions: SessionMaker, publisher: Publisher, settings: Settings) -> Relays:
    """Makes the relay of a process, as often as a test likes; other settings as keywords."""

    def make(**others: Any) -> Relay:
        return Relay(sessions, publisher, settings.model_copy(update=others))

    return make


async def all_published(relay: Relay) -> None:
    while await relay.publish_once():
        pass


async def received_by(queue: AbstractQueue) -> list[dict[str, Any]]:
    """All that is in the queue."""
    bodies = []
    while (message := await queue.get(fail=False)) is not None:
        await message.ack()
        bodies.append(json.loads(message.body))
    return bodies


@pytest.mark.manual("D1", "a duplicate message has no second effect")
async def test_a_duplicate_is_one_row_one_event_and_the_same_reply(
    executor: Executor, desk: Desk, sessions: SessionMaker
) -> None:
    message = received(desk.trade())

    replies = await executor.execute([message, message]) + await executor.execute([message])

    assert [reply.data for reply in replies] == [replies[0].data] * 3
    assert [reply.meta.duplicate for reply in replies] == [False, True, True]
    assert (await count(sessions, Trade), len(await events(sessions, "trade.recorded"))) == (1, 1)


@pytest.mark.manual("D2", "a rollback leaves no row and no event")
async def test_a_rollback_leaves_nothing(desk: Desk, sessions: SessionMaker) -> None:
    await stale_keys(sessions)
    async with sessions() as session:
        await SymbolRepository(session).update_symbol(desk.symbol.symbol_id, {"decimals": 3})
        await session.rollback()

    async with sessions() as session:
        assert await SymbolRepository(session).get_decimals(desk.symbol.symbol_id) == 8
    assert await stale_keys(sessions) == []


@pytest.mark.manual("D3", "a crash after the commit loses no event")
async def test_what_was_committed_is_announced_by_the_next_process(
    direct: Direct, desk: Desk, sessions: SessionMaker, relays: Relays, subscriber: AbstractQueue
) -> None:
    await direct.call(desk.trade())
    # The process that committed is gone; another one finds what it left in the outbox.
    await all_published(relays())

    announced = await received_by(subscriber)
    assert [event["type"] for event in announced][-1] == "trade.recorded"
    assert await count(sessions, OutboxEvent) == 0


@pytest.mark.manual("D4", "a reader that races a writer")
async def test_a_reader_never_stores_the_value_before_the_change(
    server: LookupServer, direct: Direct, desk: Desk, sessions: SessionMaker, cache: LeasedCache
) -> None:
    key = cache_keys.symbol(desk.symbol.symbol, desk.catalog.cat_ex_id)
    question = GetSymbol(symbol=desk.symbol.symbol, cat_ex_id=desk.catalog.cat_ex_id)
    await stale_keys(sessions)
    raced = False

    async def load() -> bytes:
        nonlocal raced
        value = await server.answer(question, fresh=True)
        if not raced:
            raced = True
            await direct.call(UpdateSymbol(symbol_id=desk.symbol.symbol_id, updates=SymbolUpdates(decimals=3)))
            await cache.invalidate(await stale_keys(sessions))
        return value

    assert json.loads(await cache.get(key, load) or b"null")["decimals"] == 3
    assert (await asked(server, question))["decimals"] == 3


@pytest.mark.manual("D5", "Redis is down")
async def test_reads_and_writes_go_on_without_redis(
    sessions: SessionMaker, direct: Direct, desk: Desk, publisher: Publisher
) -> None:
    away = connect("redis://127.0.0.1:1/0", timeout=0.2)
    server = LookupServer(sessions, LeasedCache(away, namespace="persistence"), publisher)
    question = GetSymbol(symbol=desk.symbol.symbol, cat_ex_id=desk.catalog.cat_ex_id)

    before = await asked(server, question)
    await direct.call(UpdateSymbol(symbol_id=desk.symbol.symbol_id, updates=SymbolUpdates(decimals=3)))
    after = await asked(server, question)

    await away.aclose()
    assert (before["decimals"], after["decimals"]) == (8, 3)


@pytest.mark.manual("X8", "an invalidation waits until Redis is back")
async def test_an_event_stays_in_its_queue_until_redis_has_removed_its_keys(
    settings: Settings, redis_url: str, direct: Direct, desk: Desk, relays: Relays
) -> None:
    url = settings.rabbitmq_url.get_secret_value()
    away, back = connect("redis://127.0.0.1:1/0", timeout=0.2), connect(redis_url, timeout=2)
    applied: asyncio.Queue[Any] = asyncio.Queue()

    def invalidator(redis: Redis) -> CacheInvalidator:
        return CacheInvalidator(
            url, redis, queue="web.cache", namespace="web", bindings=["symbol.updated"], on_event=applied.put
        )

    async with invalidator(away):
        await direct.call(UpdateSymbol(symbol_id=desk.symbol.symbol_id, updates=SymbolUpdates(decimals=3)))
        await all_published(relays())
        await asyncio.sleep(0.5)
    await waiting(url, "web.cache", anything=True)
    assert applied.empty()
    async with asyncio.timeout(10), invalidator(back):
        assert (await applied.get()).type == "symbol.updated"
        await asyncio.sleep(0.2)
    await waiting(url, "web.cache", anything=False)
    await away.aclose()
    await back.aclose()


async def waiting(url: str, queue: str, *, anything: bool) -> None:
    """Return when something waits in a queue that nobody takes from, or nothing any more."""
    async with asyncio.timeout(10), await aio_pika.connect(url) as connection, connection.channel() as channel:
        while True:
            declared = await channel.declare_queue(queue, passive=True)
            if bool(declared.declaration_result.message_count) is anything:
                return
            await asyncio.sleep(0.05)


@pytest.mark.manual("D6", "a rename drops old and new key")
async def test_a_rename_names_both_keys(direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
    await stale_keys(sessions)

    await direct.call(UpdateSymbol(symbol_id=desk.symbol.symbol_id, updates=SymbolUpdates(symbol="XRP/BTC")))
    await direct.call(ModifyUser(uid=desk.user.uid, updates=UserUpdates(mail="new@example.org")))

    symbols = {cache_keys.symbol(name, desk.catalog.cat_ex_id) for name in ("XRP/ETH", "XRP/BTC")}
    mails = {cache_keys.user_id(mail) for mail in (desk.user.mail, "new@example.org")}
    assert symbols | mails <= set(await stale_keys(sessions))


@pytest.mark.manual("D7", "a poison message does not block its queue")
async def test_a_poison_message_is_put_aside(executor: Executor, desk: Desk, sessions: SessionMaker) -> None:
    poison = received(desk.trade())
    poison.body = b"\xff{not json"

    replies = await executor.execute([received(desk.trade()), poison, received(desk.trade())])

    assert [reply.ok for reply in replies] == [True, False, True]
    async with sessions() as session:
        [letter] = await session.scalars(select(DeadLetter))
    assert letter.code == "validation"


@pytest.mark.manual("D8", "two workers and one pending order")
async def test_two_workers_make_one_trade(direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
    order = await direct.call(desk.order())
    fill = FillOrder(order_id=order.order_id, price="0.1")

    replies = await asyncio.gather(*(Executor(sessions).execute([received(fill)]) for _ in range(2)))

    assert sorted(reply.ok for [reply] in replies) == [False, True]
    assert await count(sessions, Trade) == 1


@pytest.mark.manual("D9", "statuses out of order")
async def test_the_final_status_wins(executor: Executor, direct: Direct, desk: Desk) -> None:
    order = await direct.call(desk.order())
    statuses = ("filled", "open", "partially_filled", "filled")

    replies = await executor.execute(
        [received(UpdateOrderStatus(order_id=order.order_id, status=status)) for status in statuses]
    )

    assert [reply.ok for reply in replies] == [True, False, False, True]
    assert replies[-1].data["status"] == "filled"


@pytest.mark.manual("D10", "no secret gets out")
async def test_a_secret_sent_by_mistake_is_kept_nowhere(
    executor: Executor, desk: Desk, sessions: SessionMaker
) -> None:
    canary = "canary-" + secrets.token_hex(8)
    message = received(AddUser(mail="x@example.org"))
    for field in ("password", "api_key", "apiSecret"):
        message.body = json.dumps({"mail": "x@example.org", field: canary}).encode()
        message.message_id = received(AddUser(mail="x@example.org")).message_id
        [reply] = await executor.execute([message])
        assert not reply.ok
        assert canary not in reply.model_dump_json()

    async with sessions() as session:
        letters = (await session.scalars(select(DeadLetter))).all()
        announced = (await session.scalars(select(OutboxEvent))).all()
    kept = [str(row.to_dict()) + str(getattr(row, "body", "")) for row in (*letters, *announced)]
    assert [text for text in kept if canary in text] == []
    assert len(letters) == 3


@pytest.mark.manual("D11", "trades polled again make no event")
async def test_a_thousand_trades_polled_again_are_silent(direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
    seen = [desk.trade().model_dump(exclude_unset=True) for _ in range(1_000)]
    polled = [RecordTrades.model_validate({"trades": seen[start : start + 500]}) for start in (0, 500)]

    first = [await direct.call(trades) for trades in polled]
    again = [await direct.call(trades) for trades in polled]

    assert [(answer.inserted, answer.duplicates) for answer in (*first, *again)] == [(500, 0)] * 2 + [(0, 500)] * 2
    assert len(await events(sessions, "trade.recorded")) == await count(sessions, Trade) == 1_000


@pytest.mark.manual("D12", "the outbox drains in order")
async def test_versions_arrive_in_order(
    direct: Direct, desk: Desk, relays: Relays, subscriber: AbstractQueue
) -> None:
    first, second = relays(), relays(relay_batch=1)
    for decimals in range(1, 6):
        await direct.call(UpdateSymbol(symbol_id=desk.symbol.symbol_id, updates=SymbolUpdates(decimals=decimals)))
        if decimals == 3:
            await first.publish_once()
            await first.release()

    await all_published(second)

    changes = [event["changes"][0] for event in await received_by(subscriber) if event["type"] == "symbol.updated"]
    assert [change["version"] for change in changes] == [2, 3, 4, 5, 6]
    assert [change["after"]["decimals"] for change in changes] == [1, 2, 3, 4, 5]


@pytest.mark.manual("D13", "decimals come back digit by digit")
async def test_what_was_sent_comes_back(direct: Direct, desk: Desk, server: LookupServer) -> None:
    for said in ("0.1", "0.000000000000000001", "12345678901234567890.123456789012345678", "23.00000000"):
        trade = await direct.call(desk.trade(size=said, price="1"))

        found = await asked(server, GetTrade(trade_id=trade.trade_id))
        assert (found["size"], trade.size) == (said, Decimal(said))


@pytest.mark.manual("D14", "naive instants are refused")
async def test_a_naive_instant_is_refused(executor: Executor, desk: Desk) -> None:
    with pytest.raises(ValidationError):
        desk.trade(timestamp="2024-01-01T00:00:00")
    message = received(desk.trade())
    message.body = message.body[:-1] + b',"timestamp":"2024-01-01T00:00:00"}'

    error = await refusal(executor, message)
    assert (error.code, error.field) == (ErrorCode.VALIDATION, "timestamp")


@pytest.mark.manual("D15", "a bot of one user, an account of another")
async def test_a_bot_uses_accounts_of_its_owner_only(executor: Executor, direct: Direct, desk: Desk) -> None:
    other = await a_desk(direct)

    linked = await refusal(executor, AddExchangeToBot(bot_id=desk.bot.bot_id, ex_id=other.account.ex_id))
    traded = await refusal(executor, desk.trade(ex_id=other.account.ex_id))

    assert [(error.code, error.field) for error in (linked, traded)] == [(ErrorCode.FORBIDDEN, "ex_id")] * 2
