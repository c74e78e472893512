"""``make planted-bugs``: the same hard minute for every bug that was put in, and for the code as it is.

The disturbances are placed where a bug would show: a kill while a transaction waits, right after a commit and while
events wait to be confirmed; commits that fail or take long; lost confirms; a link that falls silent. The checker must
find each bug by an invariant that is named beforehand, and nothing in the code as it is.
"""

import argparse
import asyncio
import logging
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import aio_pika
import asyncpg
from rich.console import Console

from contracts.topology import QUEUES
from tests.e2e.wire import eventually
from tests.faults.checker import Checker
from tests.faults.machines import Machines, private_servers
from tests.faults.nemesis import lose_confirms
from tests.faults.planted import BUGS
from tests.faults.run import Run
from tests.faults.world import World

say = partial(Console(highlight=False, soft_wrap=True).print, markup=False)

# What commits fails if its fee says so, or takes its time; changes of symbols always do.
_TRIGGERS = """
CREATE FUNCTION commit_of_trade() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.fee_currency = 'SLOW' THEN
        PERFORM pg_sleep(0.3);
    ELSE
        RAISE EXCEPTION 'is not to be' USING ERRCODE = '23514';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER commit_of_trade AFTER INSERT ON trades DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.fee_currency IN ('SLOW', 'NEVER')) EXECUTE FUNCTION commit_of_trade();
CREATE FUNCTION commit_of_symbol() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_sleep(0.15); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER commit_of_symbol AFTER UPDATE ON symbols DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION commit_of_symbol();
"""


class Gauntlet:
    """A run whose disturbances are placed instead of drawn."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._world = run.world

    async def start_without_queues(self) -> None:
        """Bots begin while the broker has nowhere to put what they send."""
        world = self._world
        await world.service.stop()
        async with await aio_pika.connect(world.rabbitmq_url) as connection:
            channel = await connection.channel()
            for queue in QUEUES:
                await channel.queue_delete(queue.name)
        await self._run.begin(with_slow_commits=True)
        await asyncio.sleep(1.5)
        await world.service.start()
        await self._some_work()

    async def kill_before_the_commit(self) -> None:
        """While transactions wait for a table, with more behind them."""
        async with self._locked("LOCK TABLE trades, bot_logs, outbox IN EXCLUSIVE MODE"):
            await self._kill_service()
        await self._some_work()

    async def kill_before_the_outbox_is_written(self) -> None:
        async with self._locked("LOCK TABLE outbox IN SHARE MODE"):
            await self._kill_service()
        await self._some_work()

    async def kill_right_after_a_commit(self) -> None:
        async with self._locked("LOCK TABLE trades, bot_logs IN EXCLUSIVE MODE"):
            before = await self._world.rows()
        with suppress(AssertionError):
            await eventually(lambda: self._has_more_than(before), seconds=5, pause=0.002)
        await self._kill_service()
        await self._some_work()

    async def kill_while_events_wait(self) -> None:
        """The broker has fallen silent: events are sent, and nobody confirms them."""
        async with self._locked("LOCK TABLE trades, bot_logs IN EXCLUSIVE MODE"):
            self._world.to_broker.hears_requests = self._world.to_broker.hears_answers = False
        await asyncio.sleep(1.0)
        await self._kill_service()
        self._world.to_broker.heal()
        await self._some_work()

    async def end_backends(self) -> None:
        # Each time anew behind some work: bots that wait for answers send nothing, and what is only given back and
        # given back again comes round to its old order.
        for _ in range(5):
            async with self._locked("LOCK TABLE trades, bot_logs IN EXCLUSIVE MODE"):
                await self._execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'persistence' AND wait_event_type = 'Lock'"
                )
            await self._some_work()

    async def lose_confirms(self) -> None:
        # Each time anew: a bot that waits for an answer that is lost sends nothing meanwhile.
        for _ in range(4):
            await lose_confirms(self._world, self._run.chance)
            await self._some_work()

    async def lose_the_link(self) -> None:
        """For so long that the client library gives it up by itself."""
        async with self._locked("LOCK TABLE trades, bot_logs IN EXCLUSIVE MODE"):
            self._world.to_broker.hears_requests = self._world.to_broker.hears_answers = False
        await asyncio.sleep(8)
        self._world.to_broker.heal()
        await self._some_work()

    def _locked(self, statement: str) -> "_Lock":
        return _Lock(self._world.database_url, statement)

    async def _kill_service(self) -> None:
        self._world.service.send(signal.SIGKILL)
        await asyncio.sleep(0.1)

    async def _some_work(self) -> None:
        before = await self._world.rows()
        with suppress(AssertionError):
            await eventually(lambda: self._has_more_than(before + 20), seconds=30)

    async def _has_more_than(self, rows: int) -> bool:
        return await self._world.rows() > rows

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self._world.database_url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    @property
    def steps(self) -> list[Callable[[], Awaitable[None]]]:
        return [
            self.kill_before_the_commit,
            self.kill_before_the_outbox_is_written,
            self.kill_right_after_a_commit,
            self.kill_while_events_wait,
            self.end_backends,
            self.lose_confirms,
            self.lose_the_link,
        ]


class _Lock:
    """Tables locked for as long as work piles up before them."""

    def __init__(self, url: str, statement: str) -> None:
        self._url = url
        self._statement = statement

    async def __aenter__(self) -> None:
        self._connection = await asyncpg.connect(self._url)
        await self._connection.execute(f"BEGIN; {self._statement}")
        await asyncio.sleep(0.8)

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()


async def trial(machines: Machines, bug: str | None, folder: Path, *, seed: int = 1) -> Checker:
    """The checker's verdict on the code with a bug in it, or as it is."""
    async with World.open(machines, folder, seed=seed, bug=bug) as world:
        run = Run(world, seed=seed)
        gauntlet = Gauntlet(run)
        await gauntlet._execute(_TRIGGERS)
        await gauntlet.start_without_queues()
        for number, step in enumerate(gauntlet.steps):
            await run.suffer(step.__name__.replace("_", " "), step)
            if number == 1:
                await run.subscribers.join_late()
        return Checker(await run.end())


async def prove(bugs: list[str | None], folder: Path) -> bool:
    """Whether each bug was found, and nothing where there is none."""
    is_proved = True
    async with private_servers() as machines:
        say(f"{len(bugs)} trials, {machines.servers.way}")
        for number, bug in enumerate(bugs, 1):
            started = time.monotonic()
            checker = await trial(machines, bug, folder / str(number))
            expected = BUGS[bug].found_by if bug is not None else frozenset[str]()
            good = bool(checker.broken & expected) if bug is not None else not checker.broken
            is_proved = is_proved and good
            found = ", ".join(sorted(checker.broken, key=lambda name: int(name[1:]))) or "nothing"
            verdict = "ok" if good else "NOT FOUND" if bug is not None else "BROKEN"
            line = f"{time.monotonic() - started:6.1f} s  {bug or 'the code as it is'}: found by {found}"
            say(f"{number:2}/{len(bugs)} {line}  {verdict}")
            if not good:
                say(checker.report())
    return is_proved


def main() -> int:
    parser = argparse.ArgumentParser(prog="planted-bugs", description=__doc__)
    parser.add_argument("--only", help="bugs whose name holds this")
    options = parser.parse_args()
    logging.basicConfig(handlers=[logging.NullHandler()])
    bugs: list[str | None] = [None, *BUGS]
    if options.only is not None:
        bugs = [bug for bug in bugs if options.only in (bug or "none")]
    folder = Path(tempfile.mkdtemp(prefix="planted-bugs-"))
    is_proved = asyncio.run(prove(bugs, folder))
    found = "all found" if is_proved else f"not proved; see {folder}"
    say(f"{sum(bug is not None for bug in bugs)} planted bugs: {found}")
    return 0 if is_proved else 1


if __name__ == "__main__":
    sys.exit(main())
