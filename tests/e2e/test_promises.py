"""Once, and event if and only if commit: through repetitions, refusals and the death of the process at any point."""

import asyncio
import random
import signal
import time
from functools import partial
from typing import Any
from uuid import uuid4

import aio_pika
import asyncpg
import pytest

from contracts import (
    CreateOrder,
    ErrorCode,
    Refusal,
    SaveBotLog,
    UpdateOrderStatus,
    UpdateSymbol,
)
from contracts.base import Command
from contracts.client import PersistenceClient, new_message_id
from contracts.symbol import SymbolUpdates
from contracts.topology import COMMANDS, Lane
from service.config import Settings
from tests.builders import Desk, a_desk
from tests.conftest import RunningService, StartService
from tests.e2e.conftest import SharedService
from tests.e2e.proxy import AcksLost, CommitsUnanswered, ConfirmsLost, Proxy
from tests.e2e.run import (
    Load,
    Run,
    all_is_announced,
    announced,
    changes,
    holds,
    sequences_have_no_gap,
    stored,
    stored_are,
)
from tests.e2e.wire import Listener, eventually, rows, value
from tests.fresh import execute

SECONDS_TO_STOP = 10


class TestARepeatedMessage:
    async def test_gets_the_same_answer_and_has_no_second_effect(
        self, shared: SharedService, bot: PersistenceClient
    ) -> None:
        desk = await a_desk(bot)
        trade, message_id = desk.trade(), new_message_id()
        async with Listener.on(shared.rabbitmq_url, "trade.recorded") as listener:
            first, first_meta = await bot.call_with_meta(trade, message_id=message_id)
            again, again_meta = await bot.call_with_meta(trade, message_id=message_id)
            last = await bot.call(desk.trade())
            await listener.until(lambda heard: len(heard) > 1)

        assert again == first
        assert (first_meta.duplicate, again_meta.duplicate) == (False, True)
        assert again_meta.commit_token == first_meta.commit_token
        assert [change["key"] for change in listener.changes] == [
            {"trade_id": first.trade_id},
            {"trade_id": last.trade_id},
        ]
        assert await stored(shared.database_url, desk) == [first, last]

    async def test_may_come_over_many_links_at_once(self, shared: SharedService, bot: PersistenceClient) -> None:
        desk = await a_desk(bot)
        trade, message_id = desk.trade(), new_message_id()
        bots = [PersistenceClient(shared.rabbitmq_url, answer_timeout=10) for _ in range(10)]
        try:
            answers = await asyncio.gather(*(each.call_with_meta(trade, message_id=message_id) for each in bots))
        finally:
            await asyncio.gather(*(each.close() for each in bots))

        assert len({answer.trade_id for answer, _ in answers}) == 1
        assert sorted(meta.duplicate for _, meta in answers) == [False] + [True] * 9
        assert len(await stored(shared.database_url, desk)) == 1

    async def test_is_answered_although_nobody_asked_the_first_time(self, bot: PersistenceClient) -> None:
        desk = await a_desk(bot)
        trade, message_id = desk.trade(), new_message_id()
        await bot.publish(trade, message_id=message_id)

        answer, meta = await bot.call_with_meta(trade, message_id=message_id)

        assert meta.duplicate
        assert answer.ex_trade_id == trade.ex_trade_id

    async def test_that_was_refused_is_refused_again_and_recorded_once(
        self, shared: SharedService, bot: PersistenceClient
    ) -> None:
        desk = await a_desk(bot)
        wrong, message_id = desk.trade(bot_id=2**31 - 1), new_message_id()
        for _ in range(3):
            with pytest.raises(Refusal, match="no bot 2147483647"):
                await bot.call(wrong, message_id=message_id)

        assert await dead_letters(shared.database_url, message_id) == [("not_found", "bot_id", "open")]


class TestARepeatedTrade:
    async def test_under_new_message_ids_is_a_duplicate_without_an_event(
        self, shared: SharedService, bot: PersistenceClient
    ) -> None:
        desk = await a_desk(bot)
        trade = desk.trade()
        async with Listener.on(shared.rabbitmq_url, "trade.recorded") as listener:
            answers = await asyncio.gather(*(bot.call_with_meta(trade) for _ in range(20)))
            await bot.call(desk.trade())
            await listener.until(lambda heard: len(changes(heard)) > 1)

        assert [answer for answer, _ in answers] == [answers[0][0]] * 20
        assert sorted(meta.duplicate for _, meta in answers) == [False] + [True] * 19
        assert len(listener.changes) == 2
        assert len(await stored(shared.database_url, desk)) == 2

    async def test_with_another_price_is_a_conflict_and_the_first_stays(
        self, shared: SharedService, bot: PersistenceClient
    ) -> None:
        desk = await a_desk(bot)
        trade = desk.trade()
        first = await bot.call(trade)
        message_id = new_message_id()
        await all_is_announced(shared.database_url)
        async with Listener.on(shared.rabbitmq_url) as listener:
            with pytest.raises(Refusal) as refusal:
                await bot.call(trade.model_copy(update={"price": trade.price * 2}), message_id=message_id)
            await listener.until(bool)
            await bot.call(desk.trade())
            await listener.until(lambda heard: len(heard) > 1)

        assert (refusal.value.code, refusal.value.field) == (ErrorCode.CONFLICT, "ex_trade_id")
        assert [event["type"] for event in listener.heard] == ["command.rejected", "trade.recorded"]
        assert (await stored(shared.database_url, desk))[0] == first
        assert await dead_letters(shared.database_url, message_id) == [("conflict", "ex_trade_id", "open")]


class TestARefusedCommand:
    async def test_leaves_no_row_and_no_event_but_its_rejection(
        self, shared: SharedService, bot: PersistenceClient
    ) -> None:
        """Also where the database refuses, in the middle of a batch of good ones."""
        desk = await a_desk(bot)
        good: list[Command[Any]] = [desk.trade() for _ in range(20)]
        order = CreateOrder(**shares(desk), side="buy", size="1", order_type="market", ex_order_id=uuid4().hex)
        taken = order.model_copy(update={"client_order_id": uuid4()})
        before = await counts(shared.database_url)
        await all_is_announced(shared.database_url)
        async with Listener.on(shared.rabbitmq_url) as listener:
            await bot.call(order)
            outcomes = await asyncio.gather(
                *(bot.call(command) for command in (*good[:10], taken, desk.trade(ex_id=2**31 - 1), *good[10:])),
                return_exceptions=True,
            )
            await listener.until(lambda heard: len(changes(heard)) >= 23)

        refusals = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
        assert [(refusal.code, refusal.field) for refusal in refusals] == [
            (ErrorCode.CONFLICT, "ex_order_id"),
            (ErrorCode.NOT_FOUND, "ex_id"),
        ]
        after = await counts(shared.database_url)
        assert {table: after[table] - before[table] for table in after} == {
            "trades": 20,
            "orders": 1,
            "dead_letters": 2,
            "inbox": 23,
        }
        kinds = [event["type"] for event in listener.distinct for _ in event["changes"]]
        assert {kind: kinds.count(kind) for kind in kinds} == {
            "order.created": 1,
            "trade.recorded": 20,
            "command.rejected": 2,
        }


class TestALostBinding:
    async def test_loses_nothing(self, start_service: StartService) -> None:
        service = await start_service()
        async with Run.of(service) as run, await aio_pika.connect(service.rabbitmq_url) as connection:
            queue = await (await connection.channel()).get_queue(Lane.TRADING.queue)
            await queue.unbind(COMMANDS.name, "record_trade")
            trades = [run.desk.trade() for _ in range(10)]
            for trade in trades:
                await run.client.publish(trade)

            await run.has_exactly(trades, service=service, repeated=0)


class TestABatch:
    async def test_with_everything_wrong_in_it_stores_the_rest_once(self, start_service: StartService) -> None:
        """Repeated, contradicting and impossible trades among good ones, and nobody waits for an answer."""
        service = await start_service()
        async with Run.of(service) as run:
            await service.kill()
            good = [run.desk.trade() for _ in range(40)]
            known, known_id = good[0], new_message_id()
            dearer = known.model_copy(update={"price": known.price * 2})
            await run.client.publish(known, message_id=known_id)
            for position, trade in enumerate(good[1:], 1):
                await run.client.publish(trade)
                if position % 10 == 5:
                    await run.client.publish(known)
                    await run.client.publish(known, message_id=known_id)
                if position % 10 == 0:
                    await run.client.publish(dearer)
                    await run.client.publish(run.desk.trade(bot_id=2**31 - 1))
                    await run.client.publish(trade.model_copy(update={"size": trade.size + 1}), message_id=known_id)
            again = await start_service()

            await run.has_exactly(good, service=again, repeated=8, refused=9)
            refused = await rows(service.database_url, "SELECT field FROM dead_letters ORDER BY dead_letter_id")
            assert [letter["field"] for letter in refused] == ["ex_trade_id", "bot_id", "message_id"] * 3
            assert announced(run.listener.heard, "command.rejected") == 9


class TestABot:
    async def test_finds_its_log_and_its_orders_in_the_order_it_wrote_them(self, start_service: StartService) -> None:
        """Across batches, lanes, restarts of the service and other bots' messages in between."""
        service = await start_service()
        async with PersistenceClient(service.rabbitmq_url, answer_timeout=10) as client:
            desks = [await a_desk(client), await a_desk(client)]
            placed = {
                desk.bot.bot_id: [
                    await client.call(CreateOrder(**shares(desk), side="buy", size="100", order_type="market"))
                    for _ in range(3)
                ]
                for desk in desks
            }
            await service.kill()
            for step in range(101):
                for desk in desks:
                    await client.publish(SaveBotLog(bot_id=desk.bot.bot_id, message=str(step)))
                    for order in placed[desk.bot.bot_id]:
                        status = "filled" if step == 100 else "partially_filled"
                        await client.publish(
                            UpdateOrderStatus(order_id=order.order_id, status=status, filled_size=str(step))
                        )
            async with Listener.on(service.rabbitmq_url) as listener:
                service = await start_service(BATCH_SIZE="17")
                await listener.until(lambda heard: announced(heard, "order.status_changed") >= 6 * 101)

        for desk in desks:
            written = await rows(
                service.database_url,
                "SELECT message FROM bot_logs WHERE bot_id = $1 ORDER BY log_id",
                desk.bot.bot_id,
            )
            assert [entry["message"] for entry in written] == [str(step) for step in range(101)]
            for order in placed[desk.bot.bot_id]:
                steps = [
                    (change["version"], change["after"]["filled_size"], change["after"]["status"])
                    for event in listener.distinct
                    if event["type"] == "order.status_changed"
                    for change in event["changes"]
                    if change["key"] == {"order_id": order.order_id}
                ]
                assert steps == [
                    *((step + 2, str(step), "partially_filled") for step in range(100)),
                    (102, "100", "filled"),
                ]
        assert await value(service.database_url, "SELECT count(*) FROM dead_letters") == 0
        assert sequences_have_no_gap(listener.distinct)


class TestAKilledService:
    """Whatever it was doing when it died, each trade is stored once and announced once."""

    async def test_while_its_transaction_is_open(self, start_service: StartService) -> None:
        async with Run.of(await start_service()) as run:
            trades = [run.desk.trade() for _ in range(30)]
            blocker = await asyncpg.connect(run.service.database_url)
            try:
                await blocker.execute("BEGIN; LOCK TABLE trades IN ACCESS EXCLUSIVE MODE")
                for trade in trades:
                    await run.client.publish(trade)
                blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                await eventually(lambda: value(run.service.database_url, blocked))
                await run.service.kill()
            finally:
                await blocker.close()
            again = await start_service()

            await run.has_exactly(trades, service=again)

    async def test_between_commit_and_the_answer_of_the_database(
        self, start_service: StartService, settings: Settings
    ) -> None:
        muted = asyncio.Event()
        database_url = settings.database_url.get_secret_value()
        async with (
            Proxy(database_url, lambda: CommitsUnanswered(b"INTO trades", muted)) as through,
            Run.of(await start_service(DATABASE_URL=through.url)) as run,
        ):
            trades = [run.desk.trade() for _ in range(30)]
            for trade in trades:
                await run.client.publish(trade)
            await asyncio.wait_for(muted.wait(), 10)
            committed = await eventually(lambda: value(database_url, "SELECT count(*) FROM trades"))
            await run.service.kill()
            again = await start_service(DATABASE_URL=database_url)

            await run.has_exactly(trades, service=again, repeated=committed)

    async def test_between_commit_and_acknowledgement(self, start_service: StartService, settings: Settings) -> None:
        rabbitmq_url = settings.rabbitmq_url.get_secret_value()
        async with (
            Proxy(rabbitmq_url, AcksLost) as through,
            Run.of(await start_service(RABBITMQ_URL=through.url)) as run,
        ):
            trades = [run.desk.trade() for _ in range(500)]
            for trade in trades[1:]:
                await run.client.publish(trade)
            answered = await run.client.call(trades[0], message_id=(asked := new_message_id()))
            await eventually(lambda: stored_are(run.service.database_url, 500))
            await run.service.kill()
            again = await start_service(RABBITMQ_URL=rabbitmq_url)

            repeated, meta = await run.client.call_with_meta(trades[0], message_id=asked)
            assert (repeated, meta.duplicate) == (answered, True)
            # The six messages that made the desk came again as well.
            await run.has_exactly(trades, service=again, repeated=len(trades) + 6 + 1)

    async def test_between_commit_and_relay(self, start_service: StartService) -> None:
        async with Run.of(await start_service()) as run:
            trades = [run.desk.trade() for _ in range(101)]
            await run.client.publish(trades[0])
            await run.listener.until(lambda heard: announced(heard, "trade.recorded") == 1)
            await hold_the_lease(run.service.database_url)
            for trade in trades[1:]:
                await run.client.publish(trade)
            symbol = run.desk.symbol
            for decimals in range(1, 8):
                await run.client.call(
                    UpdateSymbol(symbol_id=symbol.symbol_id, updates=SymbolUpdates(decimals=decimals))
                )
            await eventually(lambda: stored_are(run.service.database_url, 101))
            waiting = await value(run.service.database_url, "SELECT count(*) FROM outbox")
            heard_before = len(run.listener.heard)
            await run.service.kill()
            await release_the_lease(run.service.database_url)
            again = await start_service()

            await run.has_exactly(trades, service=again)
            heard = run.listener.heard[heard_before:]
            assert waiting >= 8
            assert len(heard) == waiting
            assert len({event["event_id"] for event in heard}) == waiting
            versions = [
                change["version"] for change in changes(heard) if change["key"] == {"symbol_id": symbol.symbol_id}
            ]
            assert versions == [2, 3, 4, 5, 6, 7, 8]

    async def test_between_publishing_events_and_forgetting_them(self, start_service: StartService) -> None:
        async with Run.of(await start_service()) as run:
            await hold_the_lease(run.service.database_url)
            trades = [run.desk.trade() for _ in range(100)]
            for trade in trades:
                await run.client.publish(trade)
            await eventually(lambda: stored_are(run.service.database_url, 100))
            blocker = await asyncpg.connect(run.service.database_url)
            try:
                await blocker.execute("BEGIN")
                kept = await blocker.fetch("SELECT event_id FROM outbox ORDER BY id FOR UPDATE")
                heard_before = len(run.listener.heard)
                await release_the_lease(run.service.database_url)
                await run.listener.until(lambda heard: len(heard) == heard_before + len(kept))
                await run.service.kill()
                # The database would carry out what the killed one had asked for before.
                await blocker.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            finally:
                await blocker.close()
            again = await start_service()

            await run.has_exactly(trades, service=again)
            heard = run.listener.heard[heard_before:]
            expected = [str(row["event_id"]) for row in kept]
            assert [event["event_id"] for event in heard] == expected * 2
            assert heard[: len(kept)] == heard[len(kept) :]

    async def test_at_five_moments_under_load(self, start_service: StartService) -> None:
        service = await start_service()
        async with Run.of(service) as run:
            random_moment = random.Random(17)
            async with Load(run, bots=8, pause=0.02) as load:
                for _ in range(5):
                    await asyncio.sleep(random_moment.uniform(0.05, 0.6))
                    await service.kill()
                    service = await start_service()

            assert len(load.confirmed) > 1_000
            await run.has_exactly(load.confirmed, service=service, seconds=60)


class TestAServiceThatIsAskedToEnd:
    async def test_settles_what_it_took_in_and_exits_with_0(self, start_service: StartService) -> None:
        service = await start_service()
        async with Run.of(service) as run:
            async with Load(run, bots=8, pause=0.002) as load:
                await eventually(lambda: stored_are(service.database_url, 500), pause=0.01)
                started = time.monotonic()

                assert await service.terminate() == 0

                assert time.monotonic() - started < SECONDS_TO_STOP
                at_the_end = len(load.confirmed)
                await eventually(lambda: is_true(len(load.confirmed) > at_the_end + 10))
            taken_in = await value(service.database_url, "SELECT count(*) FROM trades")
            left = len(load.confirmed) - taken_in
            await eventually(lambda: holds(service.rabbitmq_url, Lane.TRADING.queue, left))
            assert await value(service.database_url, "SELECT count(*) FROM outbox") == 0
            again = await start_service()
            await run.has_exactly(load.confirmed, service=again, seconds=30, repeated=0)

    async def test_answers_what_it_took_in(self, service: RunningService, client: PersistenceClient) -> None:
        desk = await a_desk(client)
        blocker = await asyncpg.connect(service.database_url)
        try:
            await blocker.execute("BEGIN; LOCK TABLE trades IN ACCESS EXCLUSIVE MODE")
            calls = [asyncio.create_task(client.call(desk.trade())) for _ in range(20)]
            blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            await eventually(lambda: value(service.database_url, blocked))
            service.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
        finally:
            await blocker.close()

        answered = await asyncio.gather(*calls)
        assert await asyncio.wait_for(service.process.wait(), SECONDS_TO_STOP) == 0
        assert sorted(answer.trade_id for answer in answered) == [
            trade.trade_id for trade in await stored(service.database_url, desk)
        ]


class TestALostConfirm:
    async def test_makes_the_client_send_again_what_is_stored_once(self, start_service: StartService) -> None:
        cuts, published = [0, 5, 0, 1], list[bytes]()
        async with Run.of(await start_service()) as run:
            trades = [run.desk.trade() for _ in range(50)]
            async with (
                Proxy(run.service.rabbitmq_url, lambda: ConfirmsLost(cuts, published)) as through,
                PersistenceClient(through.url) as client,
            ):
                for trade in trades:
                    await client.publish(trade)

            assert not cuts
            # Once more for each lost confirm; over a link that is lost for another reason, more often.
            again = len(published) - len(trades)
            assert again >= 4
            await run.has_exactly(trades, service=run.service, repeated=again)


class TestAMigration:
    async def test_under_load_loses_nothing_and_doubles_nothing(self, start_service: StartService) -> None:
        """What was prepared for the table as it was cannot be carried out any more."""
        async with Run.of(await start_service()) as run:
            url, called = run.service.database_url, []
            async with Load(run, bots=4, pause=0.005) as load:
                for kind in ("varchar(200)", "varchar(64)") * 4:
                    await execute(url, f"ALTER TABLE trades ALTER COLUMN ex_trade_id TYPE {kind}, ADD later text")
                    await execute(url, "ALTER TABLE trades DROP COLUMN later")
                    called.append(run.desk.trade())
                    await run.client.call(called[-1])
                    await eventually(partial(stored_are, url, len(load.confirmed)))

            await run.has_exactly([*load.confirmed, *called], service=run.service)


def shares(desk: Desk) -> dict[str, int]:
    """What all trades and orders of a desk say."""
    return desk.trade().model_dump(include={"bot_id", "uid", "ex_id", "symbol_id"})


async def counts(database_url: str) -> dict[str, int]:
    return {
        table: await value(database_url, f"SELECT count(*) FROM {table}")  # noqa: S608 - names from here
        for table in ("trades", "orders", "dead_letters", "inbox")
    }


async def dead_letters(database_url: str, message_id: object) -> list[tuple[str, str, str]]:
    found = await rows(
        database_url, "SELECT code, field, state FROM dead_letters WHERE message_id = $1", str(message_id)
    )
    return [(row["code"], row["field"], row["state"]) for row in found]


async def is_true(condition: bool) -> bool:
    return condition


async def hold_the_lease(database_url: str) -> None:
    """Take the relay's lease for ever, as an instance would that hangs."""
    await rows(
        database_url,
        "UPDATE leases SET holder = gen_random_uuid(), term = term + 1, "
        "expires_at = clock_timestamp() + interval '1 hour' WHERE name = 'relay' RETURNING name",
    )
    await all_is_announced(database_url)


async def release_the_lease(database_url: str) -> None:
    await rows(database_url, "UPDATE leases SET expires_at = clock_timestamp() WHERE name = 'relay' RETURNING name")
