"""Jobs are looked at and run from the command line."""

import asyncio
import json
import os
import sys
from datetime import UTC, datetime, timedelta

import asyncpg
from pydantic import SecretStr

from service.config import Settings
from tests.builders import Desk, Direct
from tests.conftest import REPOSITORY, StartService
from tests.fresh import environment


async def persistence(settings: Settings, *arguments: str) -> tuple[int, str, str]:
    """The exit code of a command, and what it says on standard output and error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", *arguments),
        cwd=REPOSITORY,
        env={**os.environ, **environment(settings), "COLUMNS": "80"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complained = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, said.decode(), complained.decode()


async def test_a_job_that_is_run_says_what_it_did_and_nothing_else(
    settings: Settings, desk: Desk, start_service: StartService
) -> None:
    await start_service(JOBS_ENABLED="false")  # so that it warms nothing itself

    code, said, complained = await persistence(settings, "jobs", "run", "warming", "--json")

    assert (code, complained) == (0, "")
    # One list and three answers for the one symbol of the desk's exchange.
    assert json.loads(said) == {"job": "warming", "dry_run": False, "done": {"keys": 4}}


async def test_a_cleanup_says_beforehand_what_it_would_remove(
    settings: Settings, direct: Direct, desk: Desk, sql: asyncpg.Connection
) -> None:
    old = datetime.now(UTC) - timedelta(days=100)
    await sql.execute(
        "INSERT INTO simulations (bot_id, name, start_date, end_date, initial_balance, final_balance, total_trades,"
        " timestamp) VALUES ($1, 'old', $2, $2, 1, 1, 0, $2)",
        desk.bot.bot_id,
        old,
    )

    code, said, _ = await persistence(settings, "jobs", "run", "cleanup", "--dry-run")

    assert code == 0
    assert "would remove" in said
    assert "simulations 1" in said
    assert await sql.fetchval("SELECT count(*) FROM simulations") == 1


async def test_the_list_is_empty_before_the_first_start(settings: Settings) -> None:
    assert await persistence(settings, "jobs", "list", "--json") == (0, "[]\n", "")


async def test_a_job_that_an_instance_runs_is_left_to_it(settings: Settings, sql: asyncpg.Connection) -> None:
    await sql.execute(
        "INSERT INTO leases (name, holder, term, expires_at) VALUES ('cleanup', gen_random_uuid(), 1, 'infinity')"
    )

    code, said, complained = await persistence(settings, "jobs", "run", "cleanup")

    assert (code, said) == (1, "")
    assert "is being run by an instance" in complained


async def test_an_option_of_another_job_is_refused(settings: Settings) -> None:
    code, _, complained = await persistence(settings, "jobs", "run", "warming", "--dry-run")

    assert code == 2
    assert "are for cleanup" in complained


async def test_a_cache_that_nobody_certifies_is_one_line(settings: Settings, desk: Desk) -> None:
    code, said, complained = await persistence(settings, "jobs", "run", "warming")

    assert (code, said) == (2, "")
    assert complained == (
        "persistence: CACHE_NAMESPACE: nobody certifies the cache persistence, so it is neither read nor filled; is "
        "`persistence serve` running, with this CACHE_NAMESPACE and this REDIS_URL?\n"
    )


async def test_a_cache_that_is_away_is_one_line_without_its_password(settings: Settings, desk: Desk) -> None:
    away = settings.model_copy(update={"redis_url": SecretStr("redis://:hidden-word@127.0.0.1:9/0")})

    code, said, complained = await persistence(away, "jobs", "run", "warming")

    assert (code, said) == (2, "")
    assert complained.startswith("persistence: REDIS_URL: ")
    assert complained.count("\n") == 1
    assert "hidden-word" not in complained
    assert "Traceback" not in complained
