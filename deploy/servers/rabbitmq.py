"""RabbitMQ as a private server, with the management and metrics plugins."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from deploy.servers import REPOSITORY, Report
from deploy.servers.fetch import unpacked_rabbitmq
from deploy.servers.processes import Processes, on_free_ports, password, write_secret

SETTINGS = REPOSITORY / "deploy" / "rabbitmq"
USER = "persistence"
# A second is enough to write down everything, also which queues there are; it would then idle for five more.
ENDING = ((signal.SIGTERM, 1.5), (signal.SIGKILL, 5))
ADDRESSES = """\
listeners.tcp.1 = 127.0.0.1:{amqp}
management.tcp.ip = 127.0.0.1
management.tcp.port = {management}
prometheus.tcp.ip = 127.0.0.1
prometheus.tcp.port = {metrics}
default_user = {user}
default_pass = {password}
"""


def start(folder: Path, processes: Processes, report: Report) -> tuple[str, str, str]:
    """The server's name with its version, its URL and that of its management API."""
    server = (_start_scripts(Path("/")) or _start_scripts(unpacked_rabbitmq(processes, report)))[-1]
    name = "RabbitMQ " + server.parents[1].name.rpartition("-")[2]
    home = folder / "rabbitmq"
    home.mkdir(exist_ok=True)

    def on(amqp: int, management: int, metrics: int, distribution: int, names: int) -> tuple[str, str, str]:
        path = f"{_erlang(server)}:{os.environ['PATH']}"
        _write_addresses(home, amqp=amqp, management=management, metrics=metrics, password=password(folder))
        environment = {
            "PATH": path,
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(names),
            # Neither the settings of an installed RabbitMQ nor the resolver of this machine have a say here.
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_NODENAME": "persistence@localhost",
            "RABBITMQ_CONFIG_FILE": str(SETTINGS / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(home / "conf.d"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(SETTINGS / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(home / "data"),
            "RABBITMQ_LOG_BASE": str(home),
            "RABBITMQ_LOGS": "-",
            # The start script becomes the server, instead of waiting for it: so there is one process to end.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        # RabbitMQ would start this daemon of Erlang's itself, out of our reach; so it finds it running.
        # With less than two -d it does not say when it is ready.
        epmd = [shutil.which("epmd", path=path) or "epmd", "-d", "-d", "-port", str(names), "-address", "127.0.0.1"]
        processes.serve("epmd", epmd, log=home / "epmd.log", ready="entering the main select() loop")
        ready = "Server startup complete"
        processes.serve(name, [server], log=home / "log", ready=ready, environment=environment, ending=ENDING)
        at = f"{USER}:{password(folder)}@127.0.0.1"
        return name, f"amqp://{at}:{amqp}/", f"http://{at}:{management}"

    return on_free_ports(5, on)


def _start_scripts(root: Path) -> list[Path]:
    """The start scripts of RabbitMQ below ``root``; not the one in /usr/sbin, which insists on being root."""
    return sorted(root.glob("usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server"))


def _erlang(server: Path) -> Path:
    """The folder of Erlang's commands that lies beside the server: both are of the system, or both fetched."""
    return server.parents[4] / "erlang" / "bin"


def _write_addresses(home: Path, **values: object) -> None:
    settings = home / "conf.d" / "addresses.conf"
    settings.parent.mkdir(exist_ok=True)
    write_secret(settings, ADDRESSES.format(user=USER, **values))
