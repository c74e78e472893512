"""The processes of private servers: to be found, so that they can be killed, stopped and told things."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from deploy.servers import URL_VARIABLES, Servers, running
from tests.e2e.wire import eventually, management
from tests.fresh import manage

_DISKS: Final = {"postgresql": "600m", "rabbitmq": "600m"}
"""Sizes of the disks that can be filled; a broker stops taking messages long before its own is full."""
_ON_SMALL_DISKS: Final = "FAULTS_ON_SMALL_DISKS"


def move_to_small_disks(module: str) -> None:
    """Begin this program anew where it may mount small disks for its servers, which nobody else sees.

    Only root may; for anybody else nothing happens, and disks cannot be filled.
    """
    if os.geteuid() == 0 and _ON_SMALL_DISKS not in os.environ and shutil.which("unshare"):
        command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", module, *sys.argv[1:]]
        os.execvpe("unshare", command, {**os.environ, _ON_SMALL_DISKS: "yes"})  # noqa: S606 - where it is


@asynccontextmanager
async def private_servers() -> AsyncIterator["Machines"]:
    """Servers that may be killed: whoever started them starts a dead one again."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True)))
        if _ON_SMALL_DISKS in os.environ:
            for name, size in _DISKS.items():
                (folder / name).mkdir()
                _mount("mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "none", str(folder / name))
                stack.callback(_mount, "umount", "--lazy", str(folder / name))
        saved = {name: os.environ.pop(name) for name in URL_VARIABLES if name in os.environ}
        try:
            servers = stack.enter_context(running(folder, docker=False, report=lambda _: None))
        finally:
            os.environ.update(saved)
        yield Machines(servers, folder)


def _mount(*command: str) -> None:
    subprocess.run(command, check=True)


class Machines:
    """What runs where; each answer waits for a server that is being started again."""

    def __init__(self, servers: Servers, folder: Path) -> None:
        self.servers = servers
        self._folder = folder

    @property
    def have_small_disks(self) -> bool:
        return _ON_SMALL_DISKS in os.environ

    def disk_of(self, server: str) -> Path:
        """A small disk that a server has for itself."""
        return self._folder / server

    async def close_connections(self) -> None:
        """Have the broker close everybody's connection."""
        await self.broker_pid()
        for connection in await management(self._management, "connections"):
            name = quote(connection["name"], safe="")
            with suppress(OSError):  # it has gone by itself
                await asyncio.to_thread(manage, self.servers, "DELETE", f"/api/connections/{name}")

    @property
    def _management(self) -> str:
        assert self.servers.rabbitmq_management_url is not None
        return self.servers.rabbitmq_management_url

    async def broker_pid(self) -> int:
        async def process() -> int:
            try:
                [node] = await management(self._management, "nodes")
            except OSError:
                return 0  # it is being started again
            return int(node.get("os_pid", 0))

        pid: int = await eventually(process, seconds=60)
        return pid

    async def database_pids(self) -> list[int]:
        """The postmaster and all that it started."""

        async def process() -> int:
            try:
                connection = await asyncpg.connect(self.servers.database_url)
            except (OSError, asyncpg.PostgresError):
                return 0  # it is being started again
            try:
                text = str(await connection.fetchval("SELECT pg_read_file('postmaster.pid')"))
            finally:
                await connection.close()
            return int(text.split(maxsplit=1)[0])

        postmaster = await eventually(process, seconds=60)
        return [postmaster, *_children_of(postmaster)]

    async def cache_pid(self) -> int:

        async def process() -> int:
            try:
                async with Redis.from_url(self.servers.redis_url) as redis:
                    return int((await redis.info("server"))["process_id"])
            except RedisError:
                return 0  # it is being started again

        pid: int = await eventually(process, seconds=60)
        return pid

    async def rabbitmqctl(self, *arguments: str) -> None:
        """Have the broker's own command line tell it something."""
        environment = _environment_of(await self.broker_pid())
        # Erlang puts a folder in front whose commands do not work from where they were unpacked.
        path = ":".join(folder for folder in environment["PATH"].split(":") if "/erts-" not in folder)
        process = await asyncio.create_subprocess_exec(
            _scripts(environment) / "rabbitmqctl",
            "--node",
            environment["RABBITMQ_NODENAME"],
            *arguments,
            env={**environment, "PATH": path, "RABBITMQ_CONF_ENV_FILE": "/dev/null"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"rabbitmqctl {arguments}: {output.decode(errors='replace')}")


def _children_of(parent: int) -> list[int]:
    children = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                children.append(int(folder.name))
    return children


def _environment_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _scripts(environment: Mapping[str, str]) -> Path:
    """The folder of the broker's commands."""
    libraries = (Path(folder) for folder in environment["ERL_LIBS"].split(":"))
    return next(
        found for folder in libraries for found in (folder / "sbin", folder.parent / "sbin") if found.is_dir()
    )
