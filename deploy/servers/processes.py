"""The processes of one run: started together, restarted when they die, ended together."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TypeVar

from deploy.servers import ServersError

Result = TypeVar("Result")

Command = Sequence[str | Path]
Ending = Sequence[tuple[signal.Signals, float]]
"""The signals that end a server, each with the seconds it then has before the next."""

KILLED: Ending = ((signal.SIGKILL, 5),)

PORT_TAKEN = re.compile(r"already in use|eaddrinuse|already a epmd running|already allocated", re.IGNORECASE)
LINES_OF_LOG_SHOWN = 15
SECONDS_TO_START = 60
SECONDS_FOR_A_COMMAND_TO_END = 5


class PortTakenError(ServersError):
    """Somebody else took the port between our choosing it and the server's binding it."""


@dataclass
class Server:
    """A process that lasts as long as the run."""

    command: Command
    log: Path
    environment: Mapping[str, str] | None
    ending: Ending
    process: subprocess.Popen[bytes]
    ready: bool = False


class Processes:
    """Starts processes until it is ended, from any number of threads; then none of them is left."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._ended = False
        self._commands: set[subprocess.Popen[bytes]] = set()
        self._servers: list[Server] = []
        self.at_end = ExitStack()
        """What else is to be undone, after the processes are gone."""

    def run(
        self,
        command: Command,
        *,
        to: str,
        text: str = "",
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Run a command to its end, with ``text`` as its input. ``to`` completes the sentence "could not …"."""
        with self._lock:
            self._refuse_when_ended()
            try:
                process = subprocess.Popen(
                    command,
                    cwd=cwd,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise ServersError(f"could not {to}: {error}") from error
            self._commands.add(process)
        output, _ = process.communicate(text.encode())
        self._commands.discard(process)
        if process.returncode:
            raise _failure(f"could not {to}", output)

    def serve(
        self,
        name: str,
        command: Command,
        *,
        log: Path,
        ready: str,
        environment: Mapping[str, str] | None = None,
        ending: Ending = KILLED,
    ) -> None:
        """Start a server and wait until ``ready`` stands in its log.

        The log, unlike a port, cannot be mistaken for another server's.
        """
        with self._lock:
            self._refuse_when_ended()
            log.write_bytes(b"")
            server = Server(command, log, environment, ending, _spawn(command, log, environment))
            self._servers.append(server)
        deadline = time.monotonic() + SECONDS_TO_START
        while ready.encode() not in (written := log.read_bytes()):
            if server.process.poll() is not None or time.monotonic() > deadline:
                self._servers.remove(server)
                _end(server)
                raise _failure(f"{name} did not start; its log {log} ends with", written)
            time.sleep(0.02)
        server.ready = True

    def restart_the_dead(self) -> None:
        """Start again every server that is gone, as a container engine would."""
        with self._lock:
            for server in self._servers:
                if server.ready and server.process.poll() is not None and not self._ended:
                    server.process = _spawn(server.command, server.log, server.environment)

    def end(self) -> None:
        """Stop everything, politely first; nothing can be started afterwards."""
        with self._lock:
            self._ended = True
            commands, servers = [*self._commands], [*self._servers]
        for command in commands:
            _signal(command, signal.SIGTERM)
        for server in servers:
            _signal(server.process, server.ending[0][0])
        for server in servers:
            _end(server)
        for command in commands:
            with suppress(subprocess.TimeoutExpired):
                command.wait(SECONDS_FOR_A_COMMAND_TO_END)
            _signal(command, signal.SIGKILL)
        self.at_end.close()

    def _refuse_when_ended(self) -> None:
        if self._ended:
            raise ServersError("the servers were stopped while they started")


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, just now."""
    with ExitStack() as open_until_all_are_known:
        sockets = [open_until_all_are_known.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def on_free_ports(count: int, start: Callable[..., Result]) -> Result:
    """What ``start(*ports)`` returns, called again with other ports when one of them was taken meanwhile."""
    for _ in range(4):
        with suppress(PortTakenError):
            return start(*free_ports(count))
    return start(*free_ports(count))


def password(folder: Path) -> str:
    """The password of all servers of this folder, made at first use."""
    file = folder / "password"
    if not file.exists():
        write_secret(file, secrets.token_hex(16))
    return file.read_text()


def write_secret(file: Path, text: str) -> None:
    """Write a file for its owner's eyes only, whole or not at all."""
    partial = file.with_name(f"{file.name}.partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    partial.write_text(text)
    partial.rename(file)


def _spawn(command: Command, log: Path, environment: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _end(server: Server) -> None:
    for number, seconds in server.ending:
        _signal(server.process, number)
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(seconds)
            break
    # What a server left in its process group ends with it.
    _signal(server.process, signal.SIGKILL)
    server.process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _failure(sentence: str, output: bytes) -> ServersError:
    lines = output.decode(errors="replace").strip().splitlines()
    error = PortTakenError if PORT_TAKEN.search("\n".join(lines)) else ServersError
    return error("\n  ".join([f"{sentence}:", *lines[-LINES_OF_LOG_SHOWN:]]))
