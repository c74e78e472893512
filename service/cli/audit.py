"""``persistence audit``: looks over a live system for what must not be."""

import json
import re
import sys
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import asyncpg
import typer
import uvloop
from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import DBAPIError

from contracts.amqp import Link
from service.app import StartError
from service.audit import CANNOT_SEE, Audit, Finding, Result, listen, queues
from service.config import Settings
from service.database import build_session_maker
from service.engine import build_engine
from service.errors import advice, reason
from service.history import Progress

_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}
_COLOURS: Final = {Result.OK: "green", Result.NOTICE: "yellow", Result.BROKEN: "red", Result.UNKNOWN: "magenta"}


def audit(
    since: Annotated[str, typer.Option(help="How far to look back: 90m, 24h, 7d, or an instant.")] = "24h",
    listen_seconds: Annotated[
        float, typer.Option("--listen", min=0, max=3_600, help="Compare events with new rows for so many seconds.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Look over what was stored, and report what must not be; exit code 1 if there is any. Changes nothing.

    Exit code 2 if nothing is broken as far as it could look, and the broker did not answer. It reads in small
    pieces, in transactions that can only read, and rests as long as each piece took.
    """
    settings = Settings.read()
    start = _instant(since)
    console = Console(stderr=True, highlight=False)

    def show(what: str, number: int) -> None:
        if sys.stderr.isatty():
            console.print(f"{what}: {number}" + " " * 20, end="\r")

    findings = uvloop.run(_findings(settings, start, listen_seconds, show))
    if as_json:
        report = {
            "since": start.isoformat(),
            "findings": [asdict(finding) for finding in findings],
            "cannot_see": CANNOT_SEE,
        }
        print(json.dumps(report, indent=2))
    else:
        _print(findings, start)
    results = {finding.result for finding in findings}
    raise typer.Exit(1 if Result.BROKEN in results else 2 if Result.UNKNOWN in results else 0)


async def _findings(settings: Settings, since: datetime, seconds: float, progress: Progress) -> list[Finding]:
    engine = build_engine(settings, application_name="persistence-audit")
    sessions = build_session_maker(engine)
    link = Link(settings.rabbitmq_url.get_secret_value(), name="persistence-audit")
    try:
        findings = await Audit(sessions, since, progress=progress).run()
        findings.append(await queues(link))
        if seconds:
            url = settings.rabbitmq_url.get_secret_value()
            findings.append(await listen(sessions, url, seconds, progress))
    except (OSError, asyncpg.PostgresError, DBAPIError) as error:
        raise StartError(f"DATABASE_URL: {reason(error)}; {advice(error, 'PostgreSQL')}") from error
    finally:
        await link.close()
        await engine.dispose()
    return findings


def _instant(since: str) -> datetime:
    if span := re.fullmatch(r"(\d+)([mhd])", since):
        return datetime.now(UTC) - timedelta(**{_UNITS[span[2]]: int(span[1])})
    try:
        instant = datetime.fromisoformat(since)
    except ValueError:
        raise typer.BadParameter(f"{since!r} is neither a span (90m, 24h, 7d) nor an instant (2026-11-01)") from None
    return instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)


def _print(findings: list[Finding], since: datetime) -> None:
    table = Table("check", "result", "examined", "", title=f"Since {since:%Y-%m-%d %H:%M} UTC", title_justify="left")
    for finding in findings:
        colour = _COLOURS[finding.result]
        says = "\n".join([finding.says, *(f"  {example}" for example in finding.examples)])
        table.add_row(finding.check, f"[{colour}]{finding.result.value}[/]", str(finding.examined), says)
    console = Console()
    console.print(table)
    console.print("What no look at the servers can tell:")
    for sentence in CANNOT_SEE:
        console.print(f"  - {sentence}", soft_wrap=True)
