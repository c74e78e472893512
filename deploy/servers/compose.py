"""The servers of docker-compose.yml, if a Docker engine answers and has or can get their images."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess

from deploy.servers import REPOSITORY, Report, Servers, ServersError
from deploy.servers.processes import Command, Processes, on_free_ports

USER = "persistence"


def start(processes: Processes, report: Report) -> Servers | None:
    """The servers, in containers of this run only; nothing if Docker cannot run them here."""
    if not (_answers("docker", "compose", "version") and _answers("docker", "info")):
        return None
    report("starting the servers with Docker Compose")
    try:
        return on_free_ports(4, lambda *ports: _up(processes, *ports))
    except (ServersError, OSError) as error:
        reason = str(error).splitlines()[-1].strip()
        report(f"Docker cannot run the servers here, so private ones are started: {reason}")
        return None


def _up(processes: Processes, database: int, broker: int, management: int, cache: int) -> Servers:
    password = secrets.token_hex(16)
    project = f"persistence-{secrets.token_hex(4)}"
    command: Command = ["docker", "compose", "--file", REPOSITORY / "docker-compose.yml", "--project-name", project]
    environment = {
        **os.environ,
        "POSTGRES_PORT": str(database),
        "RABBITMQ_PORT": str(broker),
        "RABBITMQ_MANAGEMENT_PORT": str(management),
        "REDIS_PORT": str(cache),
        **{f"{server}_USER": USER for server in ("POSTGRES", "RABBITMQ")},
        **{f"{server}_PASSWORD": password for server in ("POSTGRES", "RABBITMQ", "REDIS")},
        "POSTGRES_DB": USER,
    }

    def down() -> None:
        subprocess.run([*command, "down", "--volumes", "--timeout", "2"], capture_output=True, check=False)

    processes.at_end.callback(down)
    services = ["broker", "database", "cache"]
    try:
        up = [*command, "up", "--detach", "--wait", "--quiet-pull", *services]
        processes.run(up, to="start the containers", environment=environment)
        # An engine on another machine, or beside the container we are in, publishes its ports elsewhere.
        for port in (database, broker, management, cache):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except (ServersError, OSError):
        down()
        raise
    return Servers(
        "Docker Compose",
        f"postgresql://{USER}:{password}@127.0.0.1:{database}/{USER}",
        f"amqp://{USER}:{password}@127.0.0.1:{broker}/",
        f"redis://:{password}@127.0.0.1:{cache}/0",
        f"http://{USER}:{password}@127.0.0.1:{management}",
    )


def _answers(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
