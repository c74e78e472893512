"""``python -m deploy.up``: the service and its servers, until Ctrl-C. What is stored stays for the next time."""

import os
import socket
import sys
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from deploy import service
from deploy.servers import REPOSITORY, URL_VARIABLES, Servers, ServersError, running
from deploy.servers.processes import free_ports
from deploy.service import ServiceError, interrupt_on_sigterm

_FOLDER: Final = REPOSITORY / ".servers" / "up"
_USUAL_PORT: Final = 8080


def main() -> int:
    """The exit code: 0 after Ctrl-C, 2 if it could not start, that of the service if it ended by itself."""
    with suppress(KeyboardInterrupt):
        try:
            with running(_FOLDER) as servers:
                print(f"servers: {servers.way}")
                print(service.migrate(servers))
                with service.running(servers, port=_port(), log_format="console") as instance:
                    print(_addresses(servers, instance.address), flush=True)
                    return instance.wait()
        except (ServersError, ServiceError) as error:
            print(f"up: {error}", file=sys.stderr)
            return 2
    return 0


def _port() -> int:
    """``HTTP_PORT``, or the usual one, or a free one if that is taken."""
    if (chosen := os.environ.get("HTTP_PORT", "")).isdecimal() and int(chosen):
        return int(chosen)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", _USUAL_PORT))
        except OSError:
            return free_ports(1)[0]
    return _USUAL_PORT


def _addresses(servers: Servers, http: str) -> str:
    # The passwords of servers that were started here are of use here only; those of the environment are known there.
    show = _without_password if any(os.environ.get(name) for name in URL_VARIABLES) else str
    urls = dict(zip(URL_VARIABLES, (servers.database_url, servers.rabbitmq_url, servers.redis_url), strict=True))
    exports = " ".join(f"{name}={show(url)}" for name, url in urls.items())
    return f"""
  database            {show(servers.database_url)}
  broker              {show(servers.rabbitmq_url)}
  broker management   {show(servers.rabbitmq_management_url or "not known")}
  cache               {show(servers.redis_url)}
  health              {http}/health/ready
  metrics             {http}/metrics
  messages            {http}/asyncapi.html

In another terminal, for example:
  export {exports}
  .venv/bin/persistence check
  .venv/bin/persistence dead-letters list

Ctrl-C ends everything; {_FOLDER.relative_to(REPOSITORY)} keeps what private servers have stored.
"""


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{parts.netloc.rpartition('@')[2]}"))


if __name__ == "__main__":
    interrupt_on_sigterm()
    sys.exit(main())
