"""What tests of the nouns start from."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from service.database import SessionMaker
from service.executor import Executor
from tests.builders import Desk, Direct, a_desk


@pytest.fixture
def executor(sessions: SessionMaker) -> Executor:
    return Executor(sessions)


@pytest.fixture
def direct(executor: Executor) -> Direct:
    return Direct(executor)


@pytest.fixture
async def desk(direct: Direct) -> Desk:
    return await a_desk(direct)


@pytest.fixture
async def sql(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection past the service."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()
