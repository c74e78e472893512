"""``persistence check``: what this service speaks, and whether its servers are there."""

import asyncio
import json
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from contracts.amqp import BROKEN_LINK, Link
from contracts.base import COMMAND_TYPES, EVENT_TYPES, LOOKUP_TYPES
from contracts.leased_cache import connect
from service import schema
from service.config import Settings
from service.engine import build_engine
from service.errors import reason
from service.lookups import ANSWERS


def check(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show the messages this service speaks and whether its servers answer; exit code 1 if one does not."""
    settings = Settings.read()
    servers = uvloop.run(_servers(settings))
    report: dict[str, Any] = {
        "servers": servers,
        "counts": {"commands": len(COMMAND_TYPES), "lookups": len(LOOKUP_TYPES), "events": len(EVENT_TYPES)},
        "commands": {name: {"lane": kind.lane.value} for name, kind in sorted(COMMAND_TYPES.items())},
        "lookups": {
            name: {"cached": ANSWERS[kind].key is not None or ANSWERS[kind].source is not None}
            for name, kind in sorted(LOOKUP_TYPES.items())
        },
        "events": sorted(EVENT_TYPES),
    }
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _show(report)
    raise typer.Exit(0 if all(server["ok"] for server in servers.values()) else 1)


async def _servers(settings: Settings) -> dict[str, dict[str, Any]]:
    database, broker, cache = await asyncio.gather(_database(settings), _broker(settings), _cache(settings))
    return {"DATABASE_URL": database, "RABBITMQ_URL": broker, "REDIS_URL": cache}


async def _database(settings: Settings) -> dict[str, Any]:
    engine = build_engine(settings)
    try:
        version = await schema.current(engine)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the check is for
        return {"ok": False, "state": reason(error)}
    finally:
        await engine.dispose()
    if version != schema.head():
        return {"ok": False, "state": f"schema at {version or 'nothing'}: run `persistence migrate`"}
    return {"ok": True, "state": f"schema at {version}"}


async def _broker(settings: Settings) -> dict[str, Any]:
    link = Link(settings.rabbitmq_url.get_secret_value(), name="persistence-check")
    try:
        await link.channel()
    except BROKEN_LINK as error:
        return {"ok": False, "state": reason(error)}
    finally:
        await link.close()
    return {"ok": True, "state": "answers"}


async def _cache(settings: Settings) -> dict[str, Any]:
    redis = connect(settings.redis_url.get_secret_value(), timeout=2)
    try:
        await redis.ping()
    except Exception as error:  # noqa: BLE001 - as above
        return {"ok": False, "state": reason(error)}
    finally:
        await redis.aclose()
    return {"ok": True, "state": "answers"}


def _show(report: dict[str, Any]) -> None:
    console = Console()
    servers = Table("setting", "state", title="Servers", title_justify="left")
    for name, server in report["servers"].items():
        servers.add_row(name, f"[green]{server['state']}[/]" if server["ok"] else f"[red]{server['state']}[/]")
    messages = Table("kind", "name", "", title="Messages", title_justify="left")
    for name, command in report["commands"].items():
        messages.add_row("command", name, f"lane {command['lane']}")
    for name, lookup in report["lookups"].items():
        messages.add_row("lookup", name, "cached" if lookup["cached"] else "")
    for name in report["events"]:
        messages.add_row("event", name, "")
    console.print(servers, messages)
    counts = report["counts"]
    console.print(f"{counts['commands']} commands, {counts['lookups']} lookups, {counts['events']} events")
