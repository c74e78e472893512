"""What a login may do on the broker: ``python -m deploy.permissions LOGIN ROLE [VHOST]`` prints the commands.

The service knows roles too (setting ``SENDERS``) and looks into bodies. This is the fence in front of it: a login can
publish what its role may send, cannot publish events or answers, and declares and reads nothing but its own.
"""

import re
import shlex
import sys
from typing import Final, NamedTuple

from contracts.base import COMMAND_TYPES
from contracts.topology import COMMANDS, EVENTS, HEARTBEATS, LOOKUPS
from service.commands import HANDLERS
from service.senders import ROLES

SUBSCRIBER: Final = "subscriber"
"""Listens to events, on queues whose names begin with its login and a dot. It sends nothing."""
NOTHING: Final = "^$"
_LOGIN: Final = re.compile(r"[a-z0-9-]+")


class Permissions(NamedTuple):
    """Regular expressions, as RabbitMQ wants them."""

    configure: str
    write: str
    read: str
    commands: str
    """The routing keys that may be published to the exchange of commands."""


def permissions_of(login: str, role: str) -> Permissions:
    """What the login needs, and nothing else. Answers come by direct reply-to, which needs no permission."""
    if not _LOGIN.fullmatch(login):
        raise ValueError("a login consists of a-z, 0-9 and -")
    if role == SUBSCRIBER:
        own = rf"^{login}\."
        heard = "|".join(re.escape(exchange.name) for exchange in (EVENTS, HEARTBEATS))
        return Permissions(own, own, rf"^({login}\..*|{heard})$", NOTHING)
    commands = [name for name, kind in sorted(COMMAND_TYPES.items()) if kind in HANDLERS and ROLES[role](kind)]
    exchanges = [LOOKUPS.name, *([COMMANDS.name] if commands else [])]
    return Permissions(NOTHING, _one_of(exchanges), NOTHING, _one_of(commands) if commands else NOTHING)


def _one_of(names: list[str]) -> str:
    return f"^({'|'.join(map(re.escape, names))})$"


def commands_for(login: str, role: str, vhost: str = "/") -> list[str]:
    """The lines of a shell that give a login its permissions."""
    given = permissions_of(login, role)
    return [
        shlex.join(["rabbitmqctl", "set_permissions", "-p", vhost, login, *given[:3]]),
        shlex.join(
            ["rabbitmqctl", "set_topic_permissions", "-p", vhost, login, COMMANDS.name, given.commands, NOTHING]
        ),
    ]


if __name__ == "__main__":
    roles = (*ROLES, SUBSCRIBER)
    if len(sys.argv) not in (3, 4) or sys.argv[2] not in roles:
        sys.exit(f"usage: python -m deploy.permissions LOGIN {'|'.join(roles)} [VHOST]")
    print("\n".join(commands_for(*sys.argv[1:])))
