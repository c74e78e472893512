"""``persistence dead-letters``: look at refused commands, send them again, or close them."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote, urlsplit

import asyncpg
import typer
import uvloop
from aio_pika import DeliveryMode, Message
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.amqp import BROKEN_LINK, Link
from contracts.topology import COMMANDS
from service import dead_letters
from service.app import StartError
from service.config import Settings
from service.database import build_session_maker
from service.engine import build_engine
from service.errors import advice, reason, sqlstate
from service.executor import REPLAY_HEADER
from service.models import DeadLetter

_NO_SUCH_TABLE: Final = "42P01"

app = typer.Typer(help="Commands that were refused.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="For programs.")]
Id = Annotated[int, typer.Argument(min=1, max=2**63 - 1, help="The number of a dead letter, as `list` shows it.")]
Ids = Annotated[list[int], typer.Argument(min=1, max=2**63 - 1, help="Numbers, as `list` shows them.")]


@app.command(name="list")
def list_(
    state: Annotated[Literal["open", "replayed", "discarded", "all"], typer.Option(help="Which ones.")] = "open",
    command: Annotated[str | None, typer.Option(help="Only this command.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000)] = 100,
    as_json: Json = False,
) -> None:
    """List dead letters, oldest first."""
    letters = uvloop.run(_find(None if state == "all" else state, command, limit))
    if as_json:
        print(json.dumps([_plain(letter) for letter in letters], indent=2))
        return
    table = Table("id", "received", "what and why", title="Dead letters")
    for letter in letters:
        where = f" {letter.field}" if letter.field else ""
        table.add_row(
            str(letter.dead_letter_id),
            f"{letter.received_at:%Y-%m-%d %H:%M}",
            Text(f"{letter.command} {letter.state}: {letter.code}{where}\n{letter.reason}"),
        )
    console = Console()
    console.print(table if letters else "No dead letters.")
    if len(letters) == limit:
        console.print(f"The oldest {limit}; --limit shows more.")


@app.command()
def show(dead_letter_id: Id, as_json: Json = False) -> None:
    """Show one dead letter with its body, in which secrets are redacted."""
    letter = uvloop.run(_get(dead_letter_id))
    if as_json:
        print(json.dumps(_plain(letter), indent=2))
        return
    table = Table(show_header=False, title=f"Dead letter {dead_letter_id}")
    for name, value in _plain(letter).items():
        table.add_row(name, value if isinstance(value, str) else json.dumps(value))
    Console().print(table)


@app.command()
def replay(ids: Ids) -> None:
    """Send dead letters to the service again, under their own message ids."""
    uvloop.run(_replay(ids))


@app.command()
def discard(ids: Ids) -> None:
    """Close dead letters without carrying them out."""
    uvloop.run(_discard(ids))


@asynccontextmanager
async def _session() -> AsyncIterator[AsyncSession]:
    engine = build_engine(Settings.read())
    try:
        async with build_session_maker(engine).begin() as session:
            yield session
    except (OSError, asyncpg.PostgresError, DBAPIError) as error:
        if sqlstate(error) == _NO_SUCH_TABLE:
            raise StartError("DATABASE_URL: the database has no tables yet; run `persistence migrate`") from error
        raise StartError(f"DATABASE_URL: {reason(error)}; {advice(error, 'PostgreSQL')}") from error
    finally:
        await engine.dispose()


async def _find(state: str | None, command: str | None, limit: int) -> list[DeadLetter]:
    async with _session() as session:
        return await dead_letters.find(session, state=state, command=command, limit=limit)


async def _get(dead_letter_id: int) -> DeadLetter:
    async with _session() as session:
        letter = await session.get(DeadLetter, dead_letter_id)
    if letter is None:
        raise typer.BadParameter(
            f"there is no dead letter {dead_letter_id}; `persistence dead-letters list` shows them"
        )
    return letter


async def _replay(ids: list[int]) -> None:
    letters = [await _get(number) for number in ids]
    for letter in letters:
        if problem := _why_not(letter):
            raise typer.BadParameter(f"dead letter {letter.dead_letter_id} {problem}")
    url = Settings.read().rabbitmq_url.get_secret_value()
    # Sent by whoever replays it: that is the login the broker lets it pass for.
    login = unquote(urlsplit(url).username or "guest")
    link = Link(url, name="persistence-replay")
    try:
        channel = await link.channel()
        exchange = await channel.get_exchange(COMMANDS.name, ensure=False)
        for letter in letters:
            await exchange.publish(_message(letter, login), letter.command, mandatory=True)
            print(f"{letter.dead_letter_id}: sent again; `persistence dead-letters show` tells what became of it")
    except BROKEN_LINK as error:
        raise StartError(f"RABBITMQ_URL: {reason(error)}; {advice(error, 'RabbitMQ')}") from error
    finally:
        await link.close()


def _why_not(letter: DeadLetter) -> str | None:
    if letter.state != "open":
        return f"is {letter.state}, not open"
    if not letter.complete:
        return "holds a secret or is cut, so its body was not kept as it came; its sender has to send it again"
    if letter.field == "message_id":
        return "has no message id of its own that could be used again; its sender has to send it again"
    return None


def _message(letter: DeadLetter, login: str) -> Message:
    headers = {name: value for name, value in letter.properties.get("headers", {}).items() if name != "x-death"}
    return Message(
        letter.body,
        content_type="application/json",
        delivery_mode=DeliveryMode.PERSISTENT,
        message_id=letter.message_id,
        app_id=letter.properties.get("app_id"),
        user_id=login,
        headers={**headers, REPLAY_HEADER: letter.dead_letter_id},
    )


async def _discard(ids: list[int]) -> None:
    async with _session() as session:
        for number in ids:
            if not await dead_letters.discard(session, number):
                raise typer.BadParameter(f"there is no open dead letter {number}; none was discarded")
    print(f"Discarded {len(ids)}.")


def _plain(letter: DeadLetter) -> dict[str, Any]:
    return {
        "dead_letter_id": letter.dead_letter_id,
        "received_at": letter.received_at.isoformat(),
        "command": letter.command,
        "message_id": letter.message_id,
        "code": letter.code,
        "field": letter.field,
        "reason": letter.reason,
        "state": letter.state,
        "attempts": letter.attempts,
        "resolved_at": letter.resolved_at.isoformat() if letter.resolved_at else None,
        "complete": letter.complete,
        "body_size": letter.body_size,
        "properties": letter.properties,
        "body": letter.body.decode(errors="replace"),
    }
