"""What happens, from an empty exchange to the last event: everybody's work, and what is found afterwards."""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg

from contracts import AddSymbols, InstallExchange, SymbolView, UpdateSymbol
from contracts.amqp import BROKEN_LINK
from contracts.client import PersistenceClient
from contracts.symbol import SymbolFields, SymbolUpdates
from deploy.demo import evidence, market, mischief
from deploy.demo.bots import BotReport, Desk, Journal
from deploy.demo.children import Child, Children, children
from deploy.demo.evidence import Baseline, Evidence
from deploy.demo.market import Listing, Trade
from deploy.demo.mischief import Wrong
from deploy.demo.recorder import Recorder, recording
from deploy.demo.screen import Counts, Screen, Show
from deploy.demo.subscriber import CacheReport, SubscriberReport
from deploy.servers import Servers
from deploy.service import Service

T = TypeVar("T")

_LOOK_EVERY_SECONDS: Final = 0.1
_PATIENCE_SECONDS: Final = 20.0
"""How long nothing may move before the rest is given up."""

_ANSWER_SECONDS: Final = 60.0


class StoryError(Exception):
    """The demo cannot go on. The message says why."""


@dataclass(frozen=True)
class Plan:
    """How big it is to be."""

    run: str
    """A name that nothing else at the servers has."""
    trades: Sequence[Trade]
    listings: Sequence[Listing]
    bots: int


@dataclass(frozen=True)
class Stage:
    """Everything and everybody that is there during the run."""

    plan: Plan
    screen: Screen
    rabbitmq_url: str
    database: asyncpg.Connection
    since: Baseline
    recorder: Recorder
    operator: PersistenceClient
    children: Children


@dataclass
class Tally:
    """How far everybody is."""

    desks: dict[int, Desk] = field(default_factory=dict)
    """Of the bots that are registered, by number."""
    published: dict[int, int] = field(default_factory=dict)
    stored: int = 0


@dataclass(frozen=True)
class Work:
    """What goes on at the same time, and what each part of it will give."""

    journals: Sequence[asyncio.Task[Journal]]
    wrong: asyncio.Task[list[Wrong]]
    change: asyncio.Task[CacheReport]


@dataclass(frozen=True)
class Acts:
    """What was done."""

    journals: Sequence[Journal]
    wrong: Sequence[Wrong]
    cached: int
    change: CacheReport


async def play(servers: Servers, service: Service, plan: Plan, screen: Screen, folder: Path) -> Evidence:
    """Have everybody do their work, then gather what came of it. The service is stopped in between."""
    queues = [f"{plan.run}.recorder", f"{plan.run}.cache"]
    environment = {**os.environ, "RABBITMQ_URL": servers.rabbitmq_url, "REDIS_URL": servers.redis_url}
    database = await asyncpg.connect(servers.database_url)
    try:
        async with (
            recording(servers.rabbitmq_url, queues[0]) as recorder,
            PersistenceClient(
                servers.rabbitmq_url, app_id=f"{plan.run}-operator", answer_timeout=_ANSWER_SECONDS
            ) as operator,
            children(folder, environment) as started,
        ):
            stage = Stage(
                plan=plan,
                screen=screen,
                rabbitmq_url=servers.rabbitmq_url,
                database=database,
                since=await evidence.baseline(database),
                recorder=recorder,
                operator=operator,
                children=started,
            )
            acts = await _while_it_runs(service, _perform(stage))
            answers = {journal.desk.uid: await evidence.ask(operator, journal.desk) for journal in acts.journals}
            commands = await asyncio.to_thread(evidence.read_metrics, service.address)
            # What it leaves in its queues when it is gone, it has not done.
            exit_code = await asyncio.to_thread(service.stop)
        return Evidence(
            trades=plan.trades,
            listings=plan.listings,
            journals=acts.journals,
            wrong=acts.wrong,
            baseline=stage.since,
            database=await evidence.read_database(database, stage.since),
            events=recorder.events,
            answers=answers,
            commands=commands,
            cached=acts.cached,
            change=acts.change,
            queues=await evidence.read_queues(servers.rabbitmq_url, queues),
            exit_code=exit_code,
        )
    finally:
        await database.close()
        with suppress(*BROKEN_LINK):  # a broker that is gone has taken them along, or would hide why all this failed
            await evidence.delete_queues(servers.rabbitmq_url, queues)


async def _while_it_runs(service: Service, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` gives; raises as soon as the service has ended, since most of it would wait for ever then."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=_LOOK_EVERY_SECONDS)
            if service.has_ended:
                raise StoryError(f"the service ended with {service.wait()}")
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _perform(stage: Stage) -> Acts:
    plan, screen = stage.plan, stage.screen
    listed = await _open_exchange(stage)
    [traded] = [symbol for symbol in listed if symbol.symbol == market.TRADED.symbol]
    subscriber = await stage.children.start(
        "the subscriber", "deploy.demo.subscriber", SubscriberReport, plan.run, traded.cat_ex_id
    )
    cached = (await subscriber.next()).cached
    screen.say(f"the subscriber has {cached} keys about them in its cache")
    bots = [
        await stage.children.start(
            f"bot {number + 1}",
            "deploy.demo.bots",
            BotReport,
            *(plan.run, number, plan.bots, len(plan.trades), traded.cat_ex_id, traded.symbol_id),
        )
        for number in range(plan.bots)
    ]
    screen.say(f"{plan.bots} bots set themselves up and report {len(plan.trades):,} trades, {_repetitions(plan)}")
    tally = Tally()
    try:
        with screen.progress(len(plan.trades)) as show:
            async with asyncio.TaskGroup() as tasks:
                work = Work(
                    [tasks.create_task(_follow(bot, number, tally)) for number, bot in enumerate(bots)],
                    tasks.create_task(_misbehave(stage, tally)),
                    tasks.create_task(_change_symbol(stage, tally, subscriber, traded)),
                )
                tasks.create_task(_watch(stage, tally, work, show))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    screen.say("everything is done; checking")
    journals = [journal.result() for journal in work.journals]
    return Acts(journals, work.wrong.result(), cached, work.change.result())


async def _open_exchange(stage: Stage) -> list[SymbolView]:
    """An exchange with its symbols, announced to whoever listens already."""
    exchange = await stage.operator.call(InstallExchange(name=f"Binance of {stage.plan.run}"))
    added = await stage.operator.call(
        AddSymbols(
            symbols=[
                SymbolFields(
                    symbol=listing.symbol,
                    cat_ex_id=exchange.cat_ex_id,
                    base=listing.base,
                    quote=listing.quote,
                    ticker=listing.ticker,
                    futures=listing is not market.TRADED,
                    min_size="1",
                )
                for listing in stage.plan.listings
            ]
        )
    )
    # A subscriber that comes after these events fills its cache without being told to empty it again.
    while await evidence.waiting(stage.database):  # noqa: ASYNC110 - another process empties it
        await asyncio.sleep(_LOOK_EVERY_SECONDS)
    stage.screen.say(f"the operator has listed {added.created} symbols")
    return list(added.symbols)


async def _follow(bot: Child[BotReport], number: int, tally: Tally) -> Journal:
    """Keep the tally of a bot until it is done; gives its journal."""
    while True:
        said = await bot.next()
        if said.desk is not None:
            tally.desks[number] = said.desk
        if said.published:
            tally.published[number] = tally.published.get(number, 0) + said.published
        if said.journal is not None:
            return said.journal


async def _misbehave(stage: Stage, tally: Tally) -> list[Wrong]:
    """Send what is wrong while the bots are busy; gives what was sent."""
    plan = stage.plan
    await _until(
        lambda: tally.stored > len(plan.trades) / 3 and len(tally.desks) == plan.bots and 0 in tally.published
    )
    known = market.share(plan.trades, 0, plan.bots)[0]
    messages = mischief.wrong_messages(tally.desks[0], stranger=tally.desks[1], known=known)
    await asyncio.to_thread(mischief.publish, stage.rabbitmq_url, messages, app_id=f"{plan.run}-mischief")
    stage.screen.say(f"{len(messages)} messages are sent that are wrong on purpose")
    return messages


async def _change_symbol(
    stage: Stage, tally: Tally, subscriber: Child[SubscriberReport], symbol: SymbolView
) -> CacheReport:
    """Change the symbol that is traded; gives what that did to the subscriber's cache."""
    await _until(lambda: tally.stored > len(stage.plan.trades) / 2)
    await stage.operator.call(
        UpdateSymbol(symbol_id=symbol.symbol_id, updates=SymbolUpdates(min_size="10"), expected_version=1)
    )
    change = (await subscriber.next()).change
    if change is None:
        raise StoryError("the subscriber did not say what the change did to its cache")
    before, after = change.before.min_size, change.after.min_size
    stage.screen.say(
        f"{symbol.symbol} changes: the subscriber's cache drops {', '.join(change.removed)}, "
        f"keeps {change.kept} other keys, and reads min_size {after} where it had {before}"
    )
    return change


async def _watch(stage: Stage, tally: Tally, work: Work, show: Show) -> None:
    """Show how far it is, until everything is done and announced.

    When nothing moves any more and somebody still waits it raises; when nobody does, the verdict can say what is
    missing.
    """
    total = len(stage.plan.trades)
    moved_at, last = time.monotonic(), None
    while True:
        tally.stored = await evidence.stored(stage.database, "trades", stage.since)
        counts = Counts(sum(tally.published.values()), tally.stored, stage.recorder.changes("trade.recorded"))
        show(counts)
        refused = await evidence.stored(stage.database, "dead_letters", stage.since)
        published = await evidence.sequences(stage.database)
        is_heard = published == {**stage.since.sequences, **stage.recorder.sequences}
        waiting = await evidence.waiting(stage.database)
        working = sum(not task.done() for task in (*work.journals, work.wrong, work.change))
        if not working and refused >= len(work.wrong.result()) and is_heard and not waiting:
            return
        if (state := (counts, refused, published, working)) != last:
            moved_at, last = time.monotonic(), state
        if time.monotonic() - moved_at > _PATIENCE_SECONDS:
            if working:
                raise StoryError(f"nothing moves any more, with {counts.stored:,} of {total:,} trades stored")
            return
        await asyncio.sleep(_LOOK_EVERY_SECONDS)


async def _until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - looked at often enough, by nobody who is in a hurry
        await asyncio.sleep(_LOOK_EVERY_SECONDS)


def _repetitions(plan: Plan) -> str:
    new_ids, same_ids = market.repeated(plan.trades)
    return f"{len(new_ids)} of them twice with new message ids and {len(same_ids)} with the same"
