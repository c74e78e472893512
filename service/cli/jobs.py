"""``persistence jobs``: when jobs ran and are due, and running one now."""

import json
import sys
from collections import Counter
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import asyncpg
import typer
import uvloop
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from contracts.certificate_watch import UncertifiedError
from service import jobs
from service.app import StartError
from service.config import LibrarySettings
from service.database import build_session_maker
from service.engine import build_engine
from service.errors import advice, reason
from service.jobs.cleanup import would_remove
from service.models import JobRun

app = typer.Typer(help="What the service does by the clock.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="For programs.")]

_ADVICE: Final = "is `persistence serve` running, with this CACHE_NAMESPACE and this REDIS_URL?"


@app.command(name="list")
def list_(as_json: Json = False) -> None:
    """List runs that are due or were done."""
    runs = in_words(_runs(LibrarySettings.read()))
    if as_json:
        print(json.dumps(runs, indent=2, default=datetime.isoformat))
        return
    table = Table("job", "due", "last success", "seconds", "rows", "failures", title="Jobs")
    for run in runs:
        table.add_row(*(_cell(value) for name, value in run.items() if name != "error"))
    Console().print(table if runs else "No job has been scheduled yet: start the service.")


@app.command()
def run(
    name: Annotated[Literal["cleanup", "partitions", "warming"], typer.Argument()],
    dry_run: Annotated[bool, typer.Option(help="Say what a cleanup would remove, and remove nothing.")] = False,
    older_than_days: Annotated[int | None, typer.Option(min=1, max=36_500, help="For a cleanup.")] = None,
    cat_ex_id: Annotated[int | None, typer.Option(min=1, help="For warming: only this catalog exchange.")] = None,
    as_json: Json = False,
) -> None:
    """Run a job now. Exit code 1 if an instance of the service runs it at the moment."""
    if (dry_run or older_than_days is not None) and name != "cleanup":
        raise typer.BadParameter("--dry-run and --older-than-days are for cleanup")
    if cat_ex_id is not None and name != "warming":
        raise typer.BadParameter("--cat-ex-id is for warming")
    settings = LibrarySettings.read()
    asked = {"older_than_days": older_than_days, "cat_ex_id": cat_ex_id}
    parameters = {option: value for option, value in asked.items() if value is not None}
    work = _foresee(settings, older_than_days) if dry_run else _run(settings, name, parameters)
    try:
        done = in_words(work)
    except jobs.Busy:
        Console(stderr=True).print(f"persistence: {name} is being run by an instance of the service; try again")
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps({"job": name, "dry_run": dry_run, "done": done}))
        return
    verb = "would remove" if dry_run else "did"
    print(f"{name} {verb}: " + (", ".join(f"{kind} {number}" for kind, number in done.items()) or "nothing"))


def _cell(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    return "" if value is None else str(value)


async def _runs(settings: LibrarySettings) -> list[dict[str, Any]]:
    engine = build_engine(settings)
    try:
        async with build_session_maker(engine)() as session:
            found = (await session.scalars(select(JobRun).order_by(JobRun.due_at))).all()
    finally:
        await engine.dispose()
    return [
        {
            "job": run.job,
            "due_at": run.due_at,
            "succeeded_at": run.succeeded_at,
            "seconds": round(run.seconds, 2) if run.seconds is not None else None,
            "rows": run.rows,
            "failures": run.failures,
            "error": run.error,
        }
        for run in found
    ]


async def _run(settings: LibrarySettings, name: str, parameters: dict[str, Any]) -> dict[str, int]:
    console = Console(stderr=True, highlight=False)

    def show(done: Counter[str]) -> None:
        if sys.stderr.isatty():
            console.print(", ".join(f"{kind} {number}" for kind, number in done.items()), end="\r")

    async with jobs.scheduler(settings) as scheduler:
        return dict(await scheduler.run_now(name, parameters, report=show))


async def _foresee(settings: LibrarySettings, older_than_days: int | None) -> dict[str, int]:
    engine = build_engine(settings)
    try:
        async with build_session_maker(engine)() as session:
            return await would_remove(session, settings, older_than_days)
    finally:
        await engine.dispose()


def in_words(work: Any) -> Any:
    """What ``work`` gives; outages are one line that names the setting."""
    try:
        return uvloop.run(work)
    except UncertifiedError as error:
        raise StartError(f"CACHE_NAMESPACE: {error}; {_ADVICE}") from error
    except RedisError as error:
        raise StartError(f"REDIS_URL: {reason(error)}; {advice(error, 'Redis')}") from error
    except (OSError, asyncpg.PostgresError, DBAPIError) as error:
        raise StartError(f"DATABASE_URL: {reason(error)}; {advice(error, 'PostgreSQL')}") from error
