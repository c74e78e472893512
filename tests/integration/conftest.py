"""What tests of the nouns start from."""

from collections.abc import AsyncIterator

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from service.database import SessionMaker, build_session_maker
from service.vault import Vault
from tests.builders import Asking, a_vault


@pytest.fixture
def vault() -> Vault:
    return a_vault()


@pytest.fixture
def sessions(engine: AsyncEngine, vault: Vault) -> SessionMaker:
    """Sessions on this test's database that can keep credentials."""
    return build_session_maker(engine, vault)


@pytest.fixture
def asking(sessions: SessionMaker) -> Asking:
    return Asking(sessions)


@pytest.fixture
async def sql(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection past the service."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()
