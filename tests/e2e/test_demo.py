"""The demo: that it runs, that it ends, and that its verdict notices whatever is wrong."""

import asyncio
import copy
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from deploy import service
from deploy.demo import market
from deploy.demo.evidence import Evidence, read_database
from deploy.demo.screen import Screen
from deploy.demo.story import Plan, play
from deploy.demo.verdict import judge
from deploy.servers import Servers
from tests.nursery import REPOSITORY

PUBLISHED = "the bots sent every trade of the file, and repeated some"
STORED = "every trade is stored exactly once, digit by digit"
LOOKED_UP = "lookups give every trade, and sums that are exact"
REPEATED = "the service took every repetition for what it is"
ANNOUNCED = "every trade is announced exactly once, as it is stored"
ORDERS = "every order is as its bot left it, filled by exactly its trades"
ORDERS_ANNOUNCED = "every change of an order is announced once and in order"
LOGS = "every log entry is stored, in the order it was sent"
LOGS_ANNOUNCED = "every log entry is announced exactly once"
SET_UP = "everybody is registered, and every symbol listed"
SET_UP_ANNOUNCED = "users, accounts, bots and symbols are announced as they are stored"
REFUSED = "every wrong message is a dead letter, with code and field"
REFUSALS_ANNOUNCED = "every refusal is announced exactly once"
CACHE = "the subscriber's cache lost exactly the stale keys, and reads the new value"
NO_GAP = "no event is lost: the events of each type are numbered without a gap"
NOTHING_LEFT = "queues and outbox are empty, and the service ended well"


@pytest.fixture(scope="module")
def found(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """What a small run of the demo left; the tests share it and spoil copies."""
    folder = tmp_path_factory.mktemp("demo")
    plan = Plan(f"demo-{secrets.token_hex(3)}", market.trades(300), market.listings(), bots=2)
    service.migrate(servers)
    with service.running(servers, log=folder / "service.log") as instance:
        return asyncio.run(play(servers, instance, plan, Screen(), folder))


def failed(evidence: Evidence) -> set[str]:
    """The claims that do not hold; that there is one must spoil the verdict as a whole."""
    verdict = judge(evidence)
    claims = {check.claim for check in verdict.checks if not check.holds}
    assert verdict.agrees == (not claims)
    assert verdict.sentence.startswith("FAILED - " if claims else "ok - ")
    return claims


class TestVerdict:
    def test_agrees_with_what_the_demo_left(self, found: Evidence) -> None:
        assert failed(found) == set()
        assert judge(found).sentence == "ok - 300 trades published, stored and announced exactly once"

    @pytest.mark.parametrize(
        ("statement", "claims"),
        [
            pytest.param(
                "DELETE FROM trades WHERE trade_id = (SELECT max(trade_id) FROM trades)",
                {STORED, ANNOUNCED, ORDERS},
                id="a trade deleted",
            ),
            pytest.param(
                "UPDATE trades SET price = price + 0.00000001 WHERE trade_id = (SELECT max(trade_id) FROM trades)",
                {STORED, ANNOUNCED},
                id="a price altered in its last digit",
            ),
            pytest.param(
                "UPDATE trades SET size = trim_scale(size) WHERE trade_id = (SELECT max(trade_id) FROM trades)",
                {STORED, ANNOUNCED},
                id="a size without its zeros",
            ),
            pytest.param(
                "UPDATE trades SET timestamp = timestamp + interval '1 ms' "
                "WHERE trade_id = (SELECT max(trade_id) FROM trades)",
                {STORED, ANNOUNCED},
                id="a trade a millisecond late",
            ),
            pytest.param(
                "UPDATE trades SET side = CASE side WHEN 'buy' THEN 'sell' ELSE 'buy' END "
                "WHERE trade_id = (SELECT max(trade_id) FROM trades)",
                {STORED, ANNOUNCED, ORDERS},
                id="a trade on the other side",
            ),
            pytest.param(
                "INSERT INTO trades (ex_trade_id, uid, ex_id, cat_ex_id, symbol_id, side, size, price, cost) "
                "SELECT 'another', uid, ex_id, cat_ex_id, symbol_id, side, size, price, cost FROM trades "
                "WHERE trade_id = (SELECT max(trade_id) FROM trades)",
                {STORED, ANNOUNCED, ORDERS},
                id="a trade too many",
            ),
            pytest.param(
                "UPDATE orders SET status = 'open' WHERE order_id = (SELECT max(order_id) FROM orders)",
                {ORDERS, ORDERS_ANNOUNCED},
                id="an order in another status",
            ),
            pytest.param(
                "DELETE FROM bot_logs WHERE log_id = (SELECT max(log_id) FROM bot_logs)",
                {LOGS, LOGS_ANNOUNCED},
                id="a log entry deleted",
            ),
            pytest.param(
                "UPDATE bot_logs SET message = 'x' WHERE log_id = (SELECT max(log_id) FROM bot_logs)",
                {LOGS},
                id="a log entry with another text",
            ),
            pytest.param(
                "UPDATE bots SET active = false WHERE bot_id = (SELECT max(bot_id) FROM bots)",
                {SET_UP_ANNOUNCED},
                id="a bot changed without an event",
            ),
            pytest.param(
                "UPDATE symbols SET ticker = 'X' WHERE symbol_id = (SELECT max(symbol_id) FROM symbols)",
                {SET_UP, SET_UP_ANNOUNCED},
                id="a symbol changed without an event",
            ),
            pytest.param(
                "INSERT INTO users (mail) VALUES ('nobody@example.org')",
                {SET_UP, SET_UP_ANNOUNCED},
                id="a user too many",
            ),
            pytest.param(
                "DELETE FROM dead_letters WHERE dead_letter_id = (SELECT max(dead_letter_id) FROM dead_letters)",
                {REFUSED, REFUSALS_ANNOUNCED},
                id="a dead letter deleted",
            ),
            pytest.param(
                "UPDATE dead_letters SET field = 'other' "
                "WHERE dead_letter_id = (SELECT max(dead_letter_id) FROM dead_letters)",
                {REFUSED, REFUSALS_ANNOUNCED},
                id="a dead letter with another field",
            ),
            pytest.param(
                "INSERT INTO outbox (type, causation_ids, changes, stale_keys) VALUES ('x', '{}', '[]', '{}')",
                {NOTHING_LEFT},
                id="an event unpublished",
            ),
            pytest.param(
                "UPDATE event_streams SET sequence = sequence + 1 WHERE type = 'trade.recorded'",
                {NO_GAP},
                id="the last event lost",
            ),
        ],
    )
    async def test_notices_what_is_wrong_in_the_database(
        self, found: Evidence, servers: Servers, statement: str, claims: set[str]
    ) -> None:
        connection = await asyncpg.connect(servers.database_url)
        try:
            spoiling = connection.transaction()
            await spoiling.start()
            assert (await connection.execute(statement)).endswith(" 1")
            spoilt = replace(found, database=await read_database(connection, found.baseline))
            await spoiling.rollback()
        finally:
            await connection.close()
        assert failed(spoilt) == claims

    @pytest.mark.parametrize(
        ("kind", "claims"),
        [
            pytest.param("trade.recorded", {ANNOUNCED}, id="trade"),
            pytest.param("order.created", {ORDERS_ANNOUNCED}, id="order"),
            pytest.param("order.status_changed", {ORDERS_ANNOUNCED}, id="order's status"),
            pytest.param("bot_log.saved", {LOGS_ANNOUNCED}, id="log entry"),
            pytest.param("command.rejected", {REFUSALS_ANNOUNCED}, id="refusal"),
            pytest.param("symbol.updated", {SET_UP_ANNOUNCED}, id="symbol"),
            pytest.param("user.created", {SET_UP_ANNOUNCED}, id="user"),
        ],
    )
    def test_notices_a_change_without_its_event(self, found: Evidence, kind: str, claims: set[str]) -> None:
        spoilt = copy.deepcopy(found)
        last_of(spoilt, kind)["changes"].pop()
        assert failed(spoilt) == claims

        spoilt = copy.deepcopy(found)
        changes = last_of(spoilt, kind)["changes"]
        changes.append(changes[-1])
        assert failed(spoilt) == claims

    def test_notices_an_event_with_another_image(self, found: Evidence) -> None:
        spoilt = copy.deepcopy(found)
        last_of(spoilt, "trade.recorded")["changes"][0]["after"]["price"] += "0"
        assert failed(spoilt) == {ANNOUNCED}

    def test_notices_an_event_with_another_version(self, found: Evidence) -> None:
        spoilt = copy.deepcopy(found)
        last_of(spoilt, "order.status_changed")["changes"][0]["version"] += 1
        assert failed(spoilt) == {ORDERS_ANNOUNCED}

    def test_notices_events_in_another_order(self, found: Evidence) -> None:
        assert {ORDERS_ANNOUNCED, NO_GAP} <= failed(replace(found, events=found.events[::-1]))

    def test_notices_an_event_that_never_came(self, found: Evidence) -> None:
        event = last_of(found, "command.rejected")
        events = [other for other in found.events if other is not event]
        assert failed(replace(found, events=events)) == {REFUSALS_ANNOUNCED, NO_GAP}

    def test_notices_a_bot_that_kept_something_back(self, found: Evidence) -> None:
        for change in ("trades", "repeated_with_new_id", "repeated_with_same_id"):
            spoilt = copy.deepcopy(found)
            journal = spoilt.journals[0]
            setattr(journal, change, getattr(journal, change) - 1)
            assert failed(spoilt) == {PUBLISHED}

    def test_notices_lookups_that_leave_something_out(self, found: Evidence) -> None:
        uid, answers = next(iter(found.answers.items()))
        stats = answers.stats.model_copy(update={"total_volume": answers.stats.total_volume + 1})
        for wrong in (
            replace(answers, trades=answers.trades[1:]),
            replace(answers, trades=[*answers.trades, answers.trades[-1]]),
            replace(answers, trades=answers.trades[::-1]),
            replace(answers, stats=stats),
        ):
            assert failed(replace(found, answers={**found.answers, uid: wrong})) == {LOOKED_UP}

    def test_notices_repetitions_that_were_not_recognised(self, found: Evidence) -> None:
        for outcome in ("done", "duplicate"):
            commands = {**found.commands, ("record_trade", outcome): 1}
            assert failed(replace(found, commands=commands)) == {REPEATED}

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(
                lambda change: {"removed": change.removed[1:], "kept": change.kept + 1}, id="too few removed"
            ),
            pytest.param(lambda change: {"removed": [*change.removed, "x"]}, id="another removed"),
            pytest.param(lambda change: {"kept": change.kept - 1}, id="another lost"),
            pytest.param(lambda change: {"altered": ["x"]}, id="another altered"),
            pytest.param(lambda change: {"after": change.before}, id="old value read again"),
        ],
    )
    def test_notices_a_cache_that_is_not_as_it_should_be(
        self, found: Evidence, change: Callable[[Any], dict[str, Any]]
    ) -> None:
        assert failed(replace(found, change=found.change.model_copy(update=change(found.change)))) == {CACHE}

    def test_notices_a_cache_that_was_never_filled(self, found: Evidence) -> None:
        assert failed(replace(found, cached=0)) == {CACHE}

    def test_notices_what_is_left_in_a_queue(self, found: Evidence) -> None:
        for queue in found.queues:
            assert failed(replace(found, queues={**found.queues, queue: 1})) == {NOTHING_LEFT}

    def test_notices_a_service_that_did_not_end_well(self, found: Evidence) -> None:
        assert failed(replace(found, exit_code=1)) == {NOTHING_LEFT}


class TestDemo:
    def test_runs_on_its_own_servers(self) -> None:
        with demo("--trades", "500") as (process, _):
            output, _ = process.communicate()
        assert process.returncode == 0, output
        assert output.splitlines()[-1] == "demo: ok - 500 trades published, stored and announced exactly once"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_ends_everything_it_started_on_ctrl_c(self, servers: Servers, number: signal.Signals) -> None:
        with demo(servers=servers) as (process, marker):
            read_up_to("6 bots", process)
            assert len(processes_with(marker)) > 6
            process.send_signal(number)
            output, _ = process.communicate()
        assert process.returncode == 130, output
        assert output.splitlines()[-1] == "demo: interrupted"
        assert processes_with(marker) == []

    def test_leaves_nothing_behind_when_it_is_killed(self, servers: Servers) -> None:
        with demo(servers=servers) as (process, marker):
            read_up_to("6 bots", process)
            process.kill()
        until(lambda: not processes_with(marker))

    def test_a_part_that_never_finishes_cleaning_up_is_ended_all_the_same(self) -> None:
        deaf = (
            "import signal, time\n"
            "from deploy.service import interrupt_on_sigterm\n"
            "interrupt_on_sigterm(within=1)\n"
            "try:\n"
            "    signal.raise_signal(signal.SIGTERM)\n"
            "except KeyboardInterrupt:\n"
            "    time.sleep(60)\n"
        )
        ended = subprocess.run([sys.executable, "-c", deaf], cwd=REPOSITORY, check=False, timeout=30)
        assert ended.returncode == -signal.SIGALRM

    def test_says_in_a_line_why_it_cannot_start(self, servers: Servers) -> None:
        nowhere = replace(servers, database_url="postgresql://user:secret@127.0.0.1:1/nowhere")
        with demo(servers=nowhere) as (process, _):
            output, _ = process.communicate()
        assert process.returncode == 2
        assert output.splitlines()[-1].startswith("demo: DATABASE_URL: ")
        assert "secret" not in output
        assert "Traceback" not in output


def last_of(evidence: Evidence, kind: str) -> dict[str, Any]:
    """The last event of a type."""
    return next(event for event in reversed(evidence.events) if event["type"] == kind)


@contextmanager
def demo(*arguments: str, servers: Servers | None = None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The demo as a process, and a marker that stands in its environment and in that of all it starts."""
    marker = secrets.token_hex(8)
    environment = {**os.environ, "DEMO_TEST": marker}
    if servers is not None:
        environment |= {
            "DATABASE_URL": servers.database_url,
            "RABBITMQ_URL": servers.rabbitmq_url,
            "REDIS_URL": servers.redis_url,
        }
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.demo", *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield process, marker
        finally:
            if process.poll() is None:
                process.terminate()


def processes_with(marker: str) -> list[int]:
    """The processes that have ``marker`` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            pass  # gone meanwhile, or somebody else's
    return found


def read_up_to(text: str, process: subprocess.Popen[str]) -> None:
    """Read what the demo says until ``text`` comes."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if text in line:
            return
    pytest.fail(f"the demo ended before it said {text!r}:\n{''.join(said)}")


def until(is_so: Callable[[], bool]) -> None:
    """Wait for something, but not for ever."""
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)
