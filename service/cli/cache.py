"""``persistence cache``: what is cached, whether it is right, and leaving it behind."""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final, cast

import typer
from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from contracts.base import Lookup
from contracts.cache import CacheInvalidated, InvalidationView
from contracts.cancellation import end
from contracts.certificate import Certificate, name_of
from contracts.certificate_watch import CertificateWatch
from contracts.leased_cache import LeasedCache, connect
from service import jobs
from service.cache_audit import CacheAudit, question_of
from service.cli.jobs import in_words
from service.config import LibrarySettings
from service.database import SessionMaker, build_session_maker
from service.engine import build_engine
from service.lookup_server import LookupServer
from service.outbox import record
from service.publisher import Publisher

app = typer.Typer(help="What is cached, and whether it is right.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="For programs.")]

_REDIS_SECONDS: Final = 2.0
_AT_ONCE: Final = 20
"""Comparisons under way; those that found something wrong wait for some seconds to look again."""
_WINDOWS: Final = (1.0, 5.0)


@app.command()
def show(
    key: Annotated[str, typer.Argument(help="A logical key, such as symbol:BTC/USDT:1.")],
    as_json: Json = False,
) -> None:
    """Show what readers are given for a key. Exit code 1 if that is nothing."""

    async def work(reach: "_Reach") -> dict[str, Any]:
        certificate = await reach.certificate()
        name = name_of(reach.settings.cache_namespace, key, certificate)
        held = await reach.audit.held(key)
        return {
            "key": key,
            "name": name,
            "epoch": certificate.epoch,
            "certified_as_of": certificate.as_of.isoformat(),
            "cached": held is not None,
            "expires_in_seconds": max(await reach.redis.pttl(name), 0) / 1_000 if held else None,
            "bytes": len(held.value) if held else None,
            "nonce": held.head[1:].hex() if held else None,
            "value": json.loads(held.value) if held else None,
        }

    found = _in_words(work)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        table = Table(show_header=False, title=key, title_justify="left")
        for name, value in found.items():
            if name not in ("key", "value"):
                table.add_row(name.replace("_", " "), "" if value is None else str(value))
        Console().print(table)
        if found["cached"]:
            Console().print_json(json.dumps(found["value"]))
        elif question_of(key) is not None:
            print(f"{key} is not cached; the next lookup that asks for it will store it.")
        else:
            print(
                f"{key} is not cached, and no lookup is answered under it: is it written as in contracts.cache_keys?"
            )
    raise typer.Exit(0 if found["cached"] else 1)


@app.command()
def warm(
    cat_ex_id: Annotated[int | None, typer.Option(min=1, help="Only this catalog exchange.")] = None,
    as_json: Json = False,
) -> None:
    """Cache what lookups ask about symbols, of all exchanges with active accounts or of one."""

    async def work(reach: "_Reach") -> dict[str, int]:
        parameters = {} if cat_ex_id is None else {"cat_ex_id": cat_ex_id}
        async with jobs.scheduler(reach.settings) as scheduler:
            return dict(await scheduler.run_now("warming", parameters))

    try:
        done = _in_words(work)
    except jobs.Busy:
        Console(stderr=True).print("persistence: an instance of the service is warming the cache now; try again")
        raise typer.Exit(1) from None
    keys = done.get("keys", 0)
    print(json.dumps({"keys": keys}) if as_json else f"{keys} keys were stored; what was cached already was left.")


@app.command(name="bump-epoch")
def bump_epoch(
    kind: Annotated[
        str, typer.Option(help="Only keys of this kind, such as 'exchange:params:*'; all of them without it.")
    ] = "*",
    as_json: Json = False,
) -> None:
    """Have every subscriber leave its cache behind: after data was changed past the service, by SQL or a restore.

    It goes the way of the events, so it needs the database only, and arrives when the service publishes.
    """
    if not kind.endswith("*"):
        raise typer.BadParameter("a kind of keys ends with *; for a single key use the command invalidate_cache")

    async def work(reach: "_Reach") -> None:
        async with reach.sessions.begin() as session:
            record(session, CacheInvalidated, after=InvalidationView(cat_ex_id=None, uid=None, keys=[kind]))

    _in_words(work)
    if as_json:
        print(json.dumps({"announced": kind}))
    else:
        print(f"Announced: every subscriber leaves behind {kind} when the event arrives, usually within a second.")


@app.command()
def audit(
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many keys to compare at most.")] = 10_000,
    as_json: Json = False,
) -> None:
    """Compare what is cached with the database. Exit code 1 if something is stale and stays so for a second.

    A value that differs is looked at again after 1 and 5 seconds; it is stale if it is the very same entry still.
    """
    console = Console(stderr=True, highlight=False)

    async def work(reach: "_Reach") -> dict[str, Any]:
        return await _compare(reach, limit, lambda done: _progress(console, done))

    report = _in_words(work)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        table = Table("kind", "compared", "stale", title="Cached entries", title_justify="left")
        for name, number in report["compared"].items():
            stale = sum(entry["kind"] == name for entry in report["stale"])
            table.add_row(name, str(number), f"[red]{stale}[/]" if stale else "0")
        Console().print(table)
        for entry in report["stale"]:
            print(f"{entry['key']}: stale for {entry['seconds']:g} s at least")
        if report["skipped"]:
            print(f"{report['skipped']} keys are no answers that events keep fresh, and were not compared.")
        if report["is_cut"]:
            print(f"There are more keys than {limit}; raise --limit to compare them all.")
        if report["stale"]:
            print("`persistence cache bump-epoch` leaves everything behind; please report how this came about.")
    raise typer.Exit(1 if report["stale"] else 0)


@dataclass
class _Reach:
    """The servers, as long as a command runs."""

    settings: LibrarySettings
    redis: Redis
    watch: CertificateWatch
    sessions: SessionMaker
    audit: CacheAudit

    async def certificate(self) -> Certificate:
        """The certificate at this moment; raises UncertifiedError if there is none."""
        return await self.watch.wait(0)


@asynccontextmanager
async def _reach() -> AsyncIterator[_Reach]:
    settings = LibrarySettings.read()
    engine = build_engine(settings, application_name="persistence-cache")
    sessions = build_session_maker(engine)
    redis = connect(settings.redis_url.get_secret_value(), timeout=_REDIS_SECONDS)
    watch = CertificateWatch(redis, namespace=settings.cache_namespace)
    # It answers here, and sends nothing.
    answers = LookupServer(sessions, LeasedCache(redis, namespace=settings.cache_namespace), cast("Publisher", None))

    async def ask(question: Lookup[Any]) -> bytes:
        return await answers.answer(question, fresh=True)

    audit = CacheAudit(redis, namespace=settings.cache_namespace, certificate=watch.current, ask=ask)
    watching = asyncio.create_task(watch.run())
    try:
        yield _Reach(settings, redis, watch, sessions, audit)
    finally:
        await end(watching)
        await redis.aclose()
        await engine.dispose()


async def _compare(reach: _Reach, limit: int, progress: Any) -> dict[str, Any]:
    certificate = await reach.certificate()
    prefix = f"c:{reach.settings.cache_namespace}:"
    compared: Counter[str] = Counter()
    stale: list[dict[str, Any]] = []
    skipped = seen = 0
    is_cut = False
    room = asyncio.Semaphore(_AT_ONCE)

    async def compare(key: str, question: Lookup[Any]) -> None:
        async with room:
            seconds = await reach.audit.stale(key, question, _WINDOWS)
        if seconds:
            stale.append({"key": key, "kind": question.wire_name, "seconds": seconds})
        compared[question.wire_name] += 1
        progress(compared.total())

    comparing: set[asyncio.Task[None]] = set()
    async for name in reach.redis.scan_iter(match=f"{prefix}*", count=1_000):
        key = name.decode().removeprefix(prefix).split(":", 2)[-1]
        if name.decode() != name_of(reach.settings.cache_namespace, key, certificate):
            continue  # of an epoch that was left behind
        if (question := question_of(key)) is None:
            skipped += 1
            continue
        if seen == limit:
            is_cut = True
            break
        seen += 1
        await reach.certificate()
        comparing.add(asyncio.create_task(compare(key, question)))
        while len(comparing) > _AT_ONCE:
            done, comparing = await asyncio.wait(comparing, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    await asyncio.gather(*comparing)
    stale.sort(key=lambda entry: str(entry["key"]))
    return {"compared": dict(sorted(compared.items())), "stale": stale, "skipped": skipped, "is_cut": is_cut}


def _progress(console: Console, done: int) -> None:
    if sys.stderr.isatty():
        console.print(f"{done} compared", end="\r")


def _in_words(work: Any) -> Any:
    """What ``work`` gives; outages are one line that names the setting."""

    async def run() -> Any:
        async with _reach() as reach:
            return await work(reach)

    return in_words(run())
