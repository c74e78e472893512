"""A few of the messages of ``make hostile``."""

from tests.conftest import RunningService
from tests.hostile.siege import Siege


async def test_every_damaged_message_is_refused_with_a_reason_or_good_and_the_good_ones_are_stored(
    service: RunningService,
) -> None:
    def is_alive() -> bool:
        return service.process.returncode is None

    siege = Siege(service.rabbitmq_url, service.database_url, seed=7, is_alive=is_alive)

    report = await siege.lay(600)

    assert report.problems == []
    assert (report.hostile, report.good) == (600, 60)
    assert len(report.outcomes) == 11
