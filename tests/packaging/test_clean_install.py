"""What is built and published can be installed as its extras promise, and works there."""

import re
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
# Installing is downloading, the first time.
pytestmark = pytest.mark.timeout(300)

Install = Callable[[str], Path]
"""Make a clean environment with these extras; gives its interpreter."""

TRADE = """
from contracts import RecordTrade, Refusal
from contracts.base import decode

trade = RecordTrade(bot_id=1, uid=2, ex_id=3, symbol_id=4, side="BUY", size="23.00000000", price="0.00141342")
text = trade.model_dump_json(exclude_unset=True)
assert decode(RecordTrade, text.encode()) == trade
try:
    decode(RecordTrade, text.replace("23.00000000", "-23").encode())
except Refusal as refusal:
    assert refusal.field == "size"
print(text)
"""


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> Install:
    folder = tmp_path_factory.mktemp("install")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, REPOSITORY)
    [wheel] = folder.glob("*.whl")
    versions = folder / "versions.txt"
    # The wheel just built is in no lock, so its hash cannot be asked for; the versions can.
    locked = re.findall(r"^([\w.-]+==[^\\\n]+)", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE)
    versions.write_text("\n".join(locked))

    def install(extra: str) -> Path:
        home = folder / (extra or "plain")
        venv.create(home, with_pip=False)
        python = home / "bin" / "python"
        pip("--python", python, "install", "--only-binary", ":all:", "--constraint", versions, f"{wheel}{extra}")
        return python

    return install


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run(python: Path, text: str) -> str:
    """What a program prints, that sees the installed packages and nothing else."""
    done = subprocess.run([python, "-I", "-c", text], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


def importing(module: str) -> str:
    """A program that says which module is missing for ``module``."""
    return f"""
try:
    import {module}
except ImportError as error:
    print(type(error).__name__, error.name)
"""


class TestThePlainInstall:
    def test_speaks_the_messages_with_pydantic_alone(self, install: Install) -> None:
        python = install("")

        assert run(python, TRADE) == (
            '{"bot_id":1,"uid":2,"ex_id":3,"symbol_id":4,"side":"buy","size":"23.00000000","price":"0.00141342"}\n'
        )
        assert installed(python) == {
            "annotated-types",
            "fullon-persistence",
            "pydantic",
            "pydantic-core",
            "typing-extensions",
            "typing-inspection",
        }
        assert run(python, importing("contracts.client")) == "ModuleNotFoundError aio_pika\n"
        assert "py.typed" in run(python, "import contracts, os; print(os.listdir(contracts.__path__[0]))")


class TestTheExtra:
    def test_client_publishes_and_asks(self, install: Install) -> None:
        python = install("[client]")

        assert run(python, TRADE + "from contracts.client import PersistenceClient; PersistenceClient('amqp://host')")
        assert run(python, importing("contracts.leased_cache")) == "ModuleNotFoundError redis\n"
        assert not {"sqlalchemy", "faststream"} & installed(python)

    def test_cache_reads_through_redis(self, install: Install) -> None:
        python = install("[cache]")

        text = (
            "from contracts.leased_cache import LeasedCache, connect\nLeasedCache(connect('redis://a'), namespace='')"
        )
        assert run(python, TRADE + text)
        assert run(python, importing("contracts.invalidator")) == "ModuleNotFoundError aio_pika\n"
        assert not {"sqlalchemy", "faststream"} & installed(python)

    def test_client_and_cache_together_keep_a_cache_fresh(self, install: Install) -> None:
        python = install("[client,cache]")

        assert run(python, "from contracts.invalidator import CacheInvalidator; print(CacheInvalidator)")

    def test_service_runs_and_finds_its_migrations(self, install: Install) -> None:
        python = install("[service]")

        persistence = python.parent / "persistence"
        said = subprocess.run([persistence, "--help"], capture_output=True, text=True, check=False, cwd="/")
        assert (said.returncode, said.stderr) == (0, "")
        assert all(name in said.stdout for name in ("serve", "migrate", "check", "dead-letters"))
        newest = max(file.name[:4] for file in (REPOSITORY / "migrations" / "versions").glob("0*.py"))
        assert run(python, "from service import schema; print(schema.head())").startswith(newest)
        assert "site-packages" in run(python, "from service import schema; print(schema._folder())")
        assert (
            int(run(python, "from service import asyncapi; print(len(asyncapi.dumps(asyncapi.document())))")) > 10_000
        )


def installed(python: Path) -> set[str]:
    names = "from importlib.metadata import distributions; print(*(each.name for each in distributions()))"
    return {re.sub(r"[-_.]+", "-", name).lower() for name in run(python, names).split()}
