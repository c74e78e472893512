"""What tests of the nouns start from."""

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
