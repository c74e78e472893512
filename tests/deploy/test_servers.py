"""The servers can be found or started, are what the service needs, and end with whoever started them."""

import asyncio
import base64
import fcntl
import itertools
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pika
import pytest

from deploy.servers import REPOSITORY, Servers, ServersError, fetch, running

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def _no_servers_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "RABBITMQ_URL", "REDIS_URL", "RABBITMQ_MANAGEMENT_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DATABASE_URL", "RABBITMQ_URL", "REDIS_URL"):
            patch.delenv(name, raising=False)
        with running(tmp_path_factory.mktemp("servers"), docker=False) as servers:
            yield servers


class TestUrlsOfTheEnvironment:
    def test_are_taken_when_all_three_are_set(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql+asyncpg://u:p@db/name")
        monkeypatch.setenv("RABBITMQ_URL", "amqp://broker")
        monkeypatch.setenv("REDIS_URL", "redis://cache")

        with running(tmp_path) as servers:
            assert servers == Servers(
                "URLs from the environment", "postgresql://u:p@db/name", "amqp://broker", "redis://cache", None
            )

    def test_are_refused_when_one_is_missing_and_the_missing_one_is_named(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://db")
        monkeypatch.setenv("REDIS_URL", "redis://cache")

        with pytest.raises(ServersError, match=r"^RABBITMQ_URL is not set"), running(tmp_path):
            pass


class TestPrivateServers:
    def test_say_what_they_are(self, private: Servers) -> None:
        assert private.way.startswith("private servers (PostgreSQL 1")
        assert "RabbitMQ 3." in private.way or "RabbitMQ 4." in private.way

    async def test_have_a_database_that_loses_nothing(self, private: Servers) -> None:
        connection = await asyncpg.connect(private.database_url)
        try:
            assert await connection.fetchval("SELECT current_database()") == "persistence"
            for name, value in {
                "fsync": "on",
                "full_page_writes": "on",
                "synchronous_commit": "on",
                "data_checksums": "on",
                "server_encoding": "UTF8",
                "max_connections": "200",
                "shared_buffers": "256MB",
                "log_parameter_max_length": "0",
                "log_parameter_max_length_on_error": "0",
            }.items():
                assert (name, await connection.fetchval("SELECT current_setting($1)", name)) == (name, value)
        finally:
            await connection.close()

    async def test_have_a_database_that_wants_its_password(self, private: Servers) -> None:
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(_with_password(private.database_url, "wrong"))

    def test_have_a_broker_that_lets_bodies_over_a_mebibyte_through(self, private: Servers) -> None:
        """The service must see them to refuse them with a reason."""
        with pika.BlockingConnection(pika.URLParameters(private.rabbitmq_url)) as connection:
            channel = connection.channel()
            channel.queue_declare("large", durable=True, arguments={"x-queue-type": "quorum"})
            channel.confirm_delivery()
            channel.basic_publish("", "large", b"x" * 2 * MIB)
            assert _eventually(lambda: channel.basic_get("large", auto_ack=True)[2] == b"x" * 2 * MIB)

    def test_have_a_broker_with_a_management_api(self, private: Servers) -> None:
        assert "rabbitmq_version" in _management(private, "overview")

    def test_have_a_cache_that_keeps_nothing_on_disk(self, private: Servers) -> None:
        assert _redis(private, "PING") == b"+PONG\r\n"
        assert b"allkeys-lru" in _redis(private, "CONFIG GET maxmemory-policy")
        assert _redis(private, "CONFIG GET save").endswith(b"$0\r\n\r\n")

    def test_listen_on_the_loopback_only(self, private: Servers) -> None:
        for url in (private.database_url, private.rabbitmq_url, private.redis_url, private.rabbitmq_management_url):
            port = urlsplit(url or "").port
            assert _listening_addresses(port or 0) == {"127.0.0.1"}

    def test_are_independent_of_others_at_the_same_time(self, private: Servers, tmp_path: Path) -> None:
        with running(tmp_path, docker=False, report=lambda _: None) as others:
            assert not _ports(private) & _ports(others)
            assert _redis(private, "SET whose first") == b"+OK\r\n"
            assert _redis(others, "GET whose") == b"$-1\r\n"
            with pika.BlockingConnection(pika.URLParameters(others.rabbitmq_url)):
                pass
        assert _redis(private, "GET whose") == b"$5\r\nfirst\r\n"

    @pytest.mark.parametrize("server", ["database", "broker", "cache"])
    def test_are_started_again_on_their_port_when_they_die(self, private: Servers, server: str) -> None:
        assert _eventually(lambda: _pid(private, server))
        before = _pid(private, server)

        os.kill(before, signal.SIGKILL)

        assert _eventually(lambda: _pid(private, server) not in (0, before), seconds=30)

    async def test_keep_their_data_for_the_next_run_with_the_same_folder(self, tmp_path: Path) -> None:
        with running(tmp_path, docker=False) as servers:
            connection = await asyncpg.connect(servers.database_url)
            await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
            await connection.close()
            with pika.BlockingConnection(pika.URLParameters(servers.rabbitmq_url)) as to_broker:
                channel = to_broker.channel()
                channel.queue_declare("kept", durable=True, arguments={"x-queue-type": "quorum"})
                channel.confirm_delivery()
                channel.basic_publish("", "kept", b"42", pika.BasicProperties(delivery_mode=2))

        with running(tmp_path, docker=False) as servers:
            connection = await asyncpg.connect(servers.database_url)
            assert await connection.fetchval("SELECT answer FROM kept") == 42
            await connection.close()
            with pika.BlockingConnection(pika.URLParameters(servers.rabbitmq_url)) as to_broker:
                kept = to_broker.channel()
                assert _eventually(lambda: kept.basic_get("kept", auto_ack=True)[2] == b"42")

    def test_refuse_a_folder_that_another_run_uses(self, tmp_path: Path) -> None:
        with (tmp_path / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(ServersError, match=f"another run uses {tmp_path}"), running(tmp_path, docker=False):
                pass

    def test_that_do_not_start_are_told_with_the_end_of_their_log(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        broken = tmp_path / "bin" / "redis-server"
        broken.parent.mkdir()
        broken.write_text(
            '#!/bin/sh\n[ "$1" = --version ] && echo "Redis server v=8.0.1" && exit\necho out of cheese\n'
        )
        broken.chmod(0o755)
        monkeypatch.setenv("PATH", f"{broken.parent}:{os.environ['PATH']}")

        with pytest.raises(ServersError) as failure, running(tmp_path, docker=False):
            pass

        log = tmp_path / "redis" / "log"
        assert str(failure.value) == f"Redis 8.0 did not start; its log {log} ends with:\n  out of cheese"
        assert _eventually(lambda: not _processes_of(tmp_path))


class TestTheEndOfTheStarter:
    @pytest.mark.parametrize(
        ("number", "to_group", "after_start"),
        [
            pytest.param(signal.SIGINT, True, True, id="Ctrl-C"),
            pytest.param(signal.SIGKILL, True, True, id="its whole group is killed"),
            pytest.param(signal.SIGTERM, False, True, id="it is asked to end"),
            pytest.param(signal.SIGKILL, False, False, id="it is killed while the servers start"),
        ],
    )
    def test_leaves_no_process_and_no_shared_memory(
        self, tmp_path: Path, number: signal.Signals, *, to_group: bool, after_start: bool
    ) -> None:
        with subprocess.Popen(
            [sys.executable, "-m", "deploy.servers", tmp_path],
            cwd=REPOSITORY,
            # Docker would be another matter; so it is not found.
            env={**os.environ, "DOCKER_HOST": "unix:///nowhere", "SERVERS_TEST": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as starter:
            assert starter.stdout
            if after_start:
                exports = [line.decode() for line in itertools.islice(starter.stdout, 5)]
                assert [line.partition("=")[0] for line in exports[1:4]] == [
                    "export DATABASE_URL",
                    "export RABBITMQ_URL",
                    "export REDIS_URL",
                ]
            else:
                assert _eventually((tmp_path / "rabbitmq" / "log").exists)
                time.sleep(1)
            started = _processes_of(tmp_path) | _descendants(starter.pid)
            assert len(started) > 5
            shared_memory = _shared_memory_of(started)
            assert shared_memory or not after_start

            (os.killpg if to_group else os.kill)(starter.pid, number)

        assert _eventually(lambda: not (_alive(started) or _processes_of(tmp_path)))
        assert not any(Path(segment).exists() for segment in shared_memory)


class TestFetching:
    @pytest.fixture(autouse=True)
    def _own_cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def test_that_broke_off_leaves_nothing_that_looks_complete(self) -> None:
        def breaks_off(folder: Path) -> None:
            (folder / "half").touch()
            raise KeyboardInterrupt

        def succeeds(folder: Path) -> None:
            (folder / "whole").touch()

        with pytest.raises(KeyboardInterrupt):
            fetch.once("server", breaks_off, print)
        folder = fetch.once("server", succeeds, print)

        assert [file.name for file in folder.iterdir()] == ["whole"]

    def test_happens_once_when_two_want_the_same(self) -> None:
        fetched: list[Path] = []

        def slowly(folder: Path) -> None:
            fetched.append(folder)
            time.sleep(0.3)

        threads = [threading.Thread(target=fetch.once, args=("server", slowly, print)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(fetched) == 1

    def test_keeps_programs_executable_and_links_linked(self, tmp_path: Path) -> None:
        archive = tmp_path / "archive.zip"
        with zipfile.ZipFile(archive, "w") as opened:
            for name, mode, content in (
                ("program", stat.S_IFREG | 0o755, "x"),
                ("link", stat.S_IFLNK | 0o777, "program"),
            ):
                entry = zipfile.ZipInfo(name)
                entry.external_attr = mode << 16
                opened.writestr(entry, content)

        fetch.unpack(archive, tmp_path)

        assert os.access(tmp_path / "program", os.X_OK)
        assert (tmp_path / "link").readlink() == Path("program")


def _with_password(url: str, password: str) -> str:
    parts = urlsplit(url)
    return url.replace(f":{parts.password}@", f":{password}@")


def _ports(servers: Servers) -> set[int | None]:
    return {urlsplit(url).port for url in (servers.database_url, servers.rabbitmq_url, servers.redis_url)}


def _redis(servers: Servers, command: str) -> bytes:
    """What the cache answers to a command, as it stands on the wire."""
    url = urlsplit(servers.redis_url)
    with socket.create_connection((url.hostname, url.port), timeout=5) as connection:
        for line in (f"AUTH {url.password}", command):
            connection.sendall(line.encode() + b"\r\n")
            answer = connection.recv(65536)
    return answer


def _management(servers: Servers, path: str) -> str:
    url = urlsplit(servers.rabbitmq_management_url or "")
    credentials = base64.b64encode(f"{url.username}:{url.password}".encode()).decode()
    request = urllib.request.Request(
        f"http://{url.hostname}:{url.port}/api/{path}", headers={"Authorization": f"Basic {credentials}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return str(answer.read().decode())


def _pid(servers: Servers, server: str) -> int:
    """The process of a server that answers; 0 while it does not."""
    with suppress(OSError, IndexError, KeyError, asyncpg.PostgresError):
        match server:
            case "database":
                return int(asyncio.run(_postmaster_file(servers)).split()[0])
            case "broker":
                return int(json.loads(_management(servers, "nodes"))[0]["os_pid"])
            case "cache":
                return int(_redis(servers, "INFO server").split(b"process_id:")[1].split()[0])
    return 0


async def _postmaster_file(servers: Servers) -> str:
    connection = await asyncpg.connect(servers.database_url)
    try:
        return str(await connection.fetchval("SELECT pg_read_file('postmaster.pid')"))
    finally:
        await connection.close()


def _listening_addresses(port: int) -> set[str]:
    addresses = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, state = line.split()[1], line.split()[3]
        address, hexadecimal = local.split(":")
        if state == "0A" and int(hexadecimal, 16) == port:
            addresses.add(socket.inet_ntoa(bytes.fromhex(address)[::-1]))
    wildcard = [line for line in Path("/proc/net/tcp6").read_text().splitlines()[1:] if f":{port:04X} " in line[:50]]
    return addresses | ({"::"} if wildcard else set())


def _processes() -> Iterator[Path]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if _state_and_parent(folder)[0] != "Z":
                yield folder


def _state_and_parent(folder: Path) -> tuple[str, int]:
    state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
    return state, int(parent)


def _processes_of(folder: Path) -> set[int]:
    """The live processes that have the folder among their arguments or in their environment."""
    found = set()
    for process in _processes():
        with suppress(OSError):
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            if str(folder).encode() in text and int(process.name) != os.getpid():
                found.add(int(process.name))
    return found


def _shared_memory_of(pids: set[int]) -> set[str]:
    """The files in shared memory that any of the processes has mapped."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            maps = Path(f"/proc/{pid}/maps").read_text()
            found.update(re.findall(r"/dev/shm/\S+", maps))  # noqa: S108 - looked for, not used
    return found


def _descendants(pid: int) -> set[int]:
    children = {int(each.name): _state_and_parent(each)[1] for each in _processes()}
    found, parents = set[int](), {pid}
    while parents:
        parents = {child for child, parent in children.items() if parent in parents}
        found |= parents
    return found


def _alive(pids: set[int]) -> set[int]:
    return {int(each.name) for each in _processes()} & pids


def _eventually(holds: Callable[[], object], *, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
