"""Jobs are looked at and run from the command line."""

import json
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from service.config import Settings
from tests.builders import Desk, Direct
from tests.conftest import StartService
from tests.fresh import environment
from tests.nursery import Nursery

Persistence = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
def persistence(nursery: Nursery, settings: Settings) -> Persistence:
    """The exit code of a command, and what it says on standard output and error."""

    async def run(*arguments: str, **changed: str) -> tuple[int, str, str]:
        whole = {**os.environ, **environment(settings), "COLUMNS": "80", **changed}
        return await nursery.run(*arguments, environment=whole)

    return run


async def test_a_job_that_is_run_says_what_it_did_and_nothing_else(
    persistence: Persistence, desk: Desk, start_service: StartService
) -> None:
    await start_service(JOBS_ENABLED="false")  # so that it warms nothing itself

    code, said, complained = await persistence("jobs", "run", "warming", "--json")

    assert (code, complained) == (0, "")
    # One list and three answers for the one symbol of the desk's exchange.
    assert json.loads(said) == {"job": "warming", "dry_run": False, "done": {"keys": 4}}


async def test_a_cleanup_says_beforehand_what_it_would_remove(
    persistence: Persistence, direct: Direct, desk: Desk, sql: asyncpg.Connection
) -> None:
    old = datetime.now(UTC) - timedelta(days=100)
    await sql.execute(
        "INSERT INTO simulations (bot_id, name, start_date, end_date, initial_balance, final_balance, total_trades,"
        " timestamp) VALUES ($1, 'old', $2, $2, 1, 1, 0, $2)",
        desk.bot.bot_id,
        old,
    )

    code, said, _ = await persistence("jobs", "run", "cleanup", "--dry-run")

    assert code == 0
    assert "would remove" in said
    assert "simulations 1" in said
    assert await sql.fetchval("SELECT count(*) FROM simulations") == 1


async def test_the_list_is_empty_before_the_first_start(persistence: Persistence) -> None:
    assert await persistence("jobs", "list", "--json") == (0, "[]\n", "")


async def test_a_job_that_an_instance_runs_is_left_to_it(persistence: Persistence, sql: asyncpg.Connection) -> None:
    await sql.execute(
        "INSERT INTO leases (name, holder, term, expires_at) VALUES ('cleanup', gen_random_uuid(), 1, 'infinity')"
    )

    code, said, complained = await persistence("jobs", "run", "cleanup")

    assert (code, said) == (1, "")
    assert "is being run by an instance" in complained


async def test_an_option_of_another_job_is_refused(persistence: Persistence) -> None:
    code, _, complained = await persistence("jobs", "run", "warming", "--dry-run")

    assert code == 2
    assert "are for cleanup" in complained


async def test_a_cache_that_nobody_certifies_is_one_line(persistence: Persistence, desk: Desk) -> None:
    code, said, complained = await persistence("jobs", "run", "warming")

    assert (code, said) == (2, "")
    assert complained == (
        "persistence: CACHE_NAMESPACE: nobody certifies the cache persistence, so it is neither read nor filled; is "
        "`persistence serve` running, with this CACHE_NAMESPACE and this REDIS_URL?\n"
    )


async def test_a_cache_that_is_away_is_one_line_without_its_password(persistence: Persistence, desk: Desk) -> None:
    away = "redis://:hidden-word@127.0.0.1:9/0"

    code, said, complained = await persistence("jobs", "run", "warming", REDIS_URL=away)

    assert (code, said) == (2, "")
    assert complained.startswith("persistence: REDIS_URL: ")
    assert complained.count("\n") == 1
    assert "hidden-word" not in complained
    assert "Traceback" not in complained
