"""Programs in JavaScript: what the service looks like from outside Python."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from deploy.servers.fetch import once

_PACKAGES: Final = ("@asyncapi/parser@3.6.3", "ajv@8.20.0", "amqplib@2.3.1")


def is_installed() -> bool:
    """Whether Node.js and its package manager are here."""
    return shutil.which("node") is not None and shutil.which("npm") is not None


def run(program: Path, *arguments: str, text: str = "", timeout: float = 60) -> str:
    """What a program writes when given ``text``; raises AssertionError with its complaint if it fails."""
    ended = subprocess.run(
        ["node", program, *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "NODE_PATH": str(_packages())},
    )
    assert ended.returncode == 0, f"{program.name} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}"
    return ended.stdout


def _packages() -> Path:
    """The folder with the packages, fetched once into the user's cache."""
    name = f"npm-{hashlib.sha256(' '.join(_PACKAGES).encode()).hexdigest()[:12]}"
    return once(name, _install, _report) / "node_modules"


def _report(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _install(folder: Path) -> None:
    _report(f"fetching {', '.join(_PACKAGES)} from the Node package index, once")
    # Scripts of packages are not run, and nothing is written outside the folder.
    options = ("--no-save", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    subprocess.run(["npm", "install", "--prefix", folder, *options, *_PACKAGES], check=True, timeout=300)
