"""What tests of the nouns start from."""

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
