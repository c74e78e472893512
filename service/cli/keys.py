"""``persistence keygen`` and ``persistence rotate-key``: the keys of credentials."""

import base64
import json
import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from contracts.errors import Refusal
from contracts.sealing import new_key_pair
from service.config import Settings
from service.database import SessionMaker, build_session_maker
from service.engine import build_engine
from service.errors import reason
from service.unit_of_work import UnitOfWork
from service.vault import Vault


@dataclass
class Rotation:
    """How far the rotation has come."""

    storage_key: str
    """The id of the key that everything is stored under at the end."""
    seen: int = 0
    renewed: int = 0
    unreadable: list[str] = field(default_factory=list)
    """Rows whose secrets cannot be read with any of the keys; they were left as they are."""


def keygen(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Print fresh keys as the settings want them. They are stored nowhere else: keep them."""
    private, public = new_key_pair()
    key_id = f"{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(3)}"
    storage = f"{key_id}:{base64.b64encode(os.urandom(32)).decode()}"
    if as_json:
        print(json.dumps({"SEALING_KEY": private, "STORAGE_KEYS": storage, "public_key": public}, indent=2))
        return
    print("# Put each line's value into a file of its own and name it in SEALING_KEY_FILE and STORAGE_KEYS_FILE.")
    print("# To change a key, put the new one before those in use; then run `persistence rotate-key`.")
    print(f"SEALING_KEY={private}")
    print(f"STORAGE_KEYS={storage}")
    print(f"# What senders seal with: {public}")


def rotate_key(
    batch_size: Annotated[int, typer.Option(min=1, max=10_000, help="Rows that are committed together.")] = 500,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs: a line per batch, the last is the sum.")
    ] = False,
) -> None:
    """Store all credentials under the first of STORAGE_KEYS. Safe to break off and to run again, also in operation.

    Start every instance with the new key among STORAGE_KEYS before; take the old one out of them afterwards. Exit
    code 1 if something could not be read.
    """
    settings = Settings.read()
    vault = Vault.of(settings)
    console = Console(stderr=True, highlight=False)

    def show(rotation: Rotation) -> None:
        if as_json:
            print(json.dumps(asdict(rotation)), flush=True)
        elif sys.stderr.isatty():
            console.print(f"{rotation.seen} rows seen, {rotation.renewed} stored anew", end="\r")

    async def work() -> Rotation:
        engine = build_engine(settings, application_name="persistence-rotate-key")
        try:
            return await rotate(build_session_maker(engine, vault), vault, batch_size=batch_size, progress=show)
        finally:
            await engine.dispose()

    try:
        rotation = uvloop.run(work())
    except Refusal as error:
        console.print(f"persistence: {error}", markup=False)
        raise typer.Exit(2) from None
    except Exception as error:
        if not isinstance(error, OSError) and not hasattr(error, "orig"):
            raise
        console.print(f"persistence: DATABASE_URL: {reason(error)}; what was committed stays; run it again")
        raise typer.Exit(2) from None
    if not as_json:
        print(f"{rotation.renewed} of {rotation.seen} rows were stored anew under the key {rotation.storage_key}.")
        for row in rotation.unreadable:
            print(f"{row} cannot be read: its key is not among STORAGE_KEYS, or it was changed.")
    raise typer.Exit(1 if rotation.unreadable else 0)


async def rotate(
    sessions: SessionMaker,
    vault: Vault,
    *,
    batch_size: int = 500,
    progress: Callable[[Rotation], None] = lambda _: None,
) -> Rotation:
    """Store every secret under the present storage key, a batch in a transaction; tells ``progress`` after each.

    Rows that are under it already are passed over, so to go on is to begin again.
    """
    rotation = Rotation(vault.storage_key_id)
    for name in ("exchanges", "users"):
        last: int | None = 0
        while last is not None:
            async with sessions.begin() as session:
                work = UnitOfWork(session)
                repository = work.exchanges if name == "exchanges" else work.users
                step = await repository.renew_secrets(last, batch_size)
            last = step.last
            rotation.seen += step.seen
            rotation.renewed += step.renewed
            rotation.unreadable += [f"{name}/{number}" for number in step.unreadable]
            if step.seen:
                progress(rotation)
    return rotation
