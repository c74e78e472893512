"""A service never lives on without doing its work."""

import asyncio
import subprocess
import sys
import time

import pytest

from service import app
from service.app import Service, StartError
from service.config import Settings
from service.observability import LOOP_LAG, watch_loop


async def test_a_start_that_does_not_come_to_an_end_fails(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    service = Service(settings)
    monkeypatch.setattr(service._consumers, "start", hang)
    monkeypatch.setattr(app, "_SECONDS_TO_SUBSCRIBE", 0.1)
    with pytest.raises(StartError, match="RABBITMQ_URL"):
        await service.run()


async def test_what_blocks_the_loop_is_measured() -> None:
    watching = asyncio.create_task(watch_loop(looks=1, pause=0.01))
    await asyncio.sleep(0)
    time.sleep(0.3)  # noqa: ASYNC251 - this is what must not be
    async with asyncio.timeout(5):
        while LOOP_LAG._value.get() < 0.25:
            await asyncio.sleep(0)
    watching.cancel()


def test_a_process_that_should_end_ends_whatever_keeps_it() -> None:
    kept = "import time; from service.app import _end_within; _end_within(0.1); time.sleep(60)"
    assert subprocess.run([sys.executable, "-c", kept], timeout=120, check=False).returncode == 1
