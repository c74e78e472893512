"""The ``persistence`` command."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Annotated, Any

import asyncpg
import structlog
import typer
import uvloop
from rich.console import Console

from service import schema
from service.app import StartError, serve
from service.cli import cache, dead_letters, jobs
from service.cli.audit import audit
from service.cli.check import check
from service.cli.keys import keygen, rotate_key
from service.config import Settings, SettingsError
from service.errors import advice, reason

app = typer.Typer(
    name="persistence",
    help="Stores what trading bots publish: commands in, one transaction, change events out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(cache.app, name="cache")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(jobs.app, name="jobs")
app.command()(audit)
app.command()(check)
app.command()(keygen)
app.command(name="rotate-key")(rotate_key)


@app.command(name="serve")
def serve_command() -> None:
    """Consume commands, answer lookups and publish events until SIGTERM."""
    raise typer.Exit(serve(Settings.read()))


@app.command()
def migrate(
    to: Annotated[
        str, typer.Option(help="A revision, later or earlier, or 'base' to take every table away again.")
    ] = "head",
) -> None:
    """Bring the database to the version this service needs. Safe to run anywhere, any number of times, at once."""
    settings = Settings.read()
    try:
        before, after = uvloop.run(schema.migrate(settings, to))
    except (OSError, asyncpg.PostgresError) as error:
        # What goes wrong after it is connected comes wrapped by SQLAlchemy, and is a defect.
        raise StartError(f"DATABASE_URL: {reason(error)}; {advice(error, 'PostgreSQL')}") from error
    except schema.UnknownRevisionError as error:
        raise typer.BadParameter(str(error), param_hint="--to") from error
    if before == after:
        print(f"The database is at {after or 'nothing'} already.")
    else:
        print(f"The database went from {before or 'nothing'} to {after or 'nothing'}.")


def _without_traceback(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A traceback is no use to who called a command, and shows what stood in the way, passwords too."""
    event.pop("exc_info", None)
    return event


def main() -> None:
    """Entry point: every foreseeable failure is one line that says what to do, and exit code 2."""
    # What libraries log about a failure is in the one line that this command says about it.
    logging.basicConfig(handlers=[logging.NullHandler()])
    # What a command gives stands alone on standard output, for programs to read; `serve` logs as its settings say.
    structlog.configure(
        processors=[_without_traceback, structlog.processors.add_log_level, structlog.dev.ConsoleRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        app()
    except (SettingsError, StartError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"persistence: {error}", markup=False)
        sys.exit(2)
