"""``python -m tests.hostile``: a service of its own under siege; see ``make hostile``."""

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from contracts.errors import ErrorCode
from service import schema
from service.config import Settings
from tests.fresh import environment, fresh_database, fresh_vhost
from tests.hostile.siege import Report, Siege
from tests.servers import running_for_tests


async def _lay_siege(messages: int, seed: int, folder: Path) -> Report:
    with running_for_tests() as servers:
        async with fresh_database(servers) as database_url, fresh_vhost(servers) as rabbitmq_url:
            settings = Settings.model_validate(
                {"database_url": database_url, "rabbitmq_url": rabbitmq_url, "redis_url": servers.redis_url}
            )
            await schema.migrate(settings)
            log = folder / "service.log"
            with log.open("wb") as output:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "service", "serve"),
                    env={**os.environ, **environment(settings), "HTTP_PORT": "0", "LOG_FORMAT": "json"},
                    stdout=output,
                    stderr=output,
                )
            try:
                while b'"serving"' not in log.read_bytes():
                    await asyncio.sleep(0.1)
                siege = Siege(rabbitmq_url, database_url, seed=seed, is_alive=lambda: process.returncode is None)
                return await siege.lay(messages, _tell)
            finally:
                if process.returncode is None:
                    process.terminate()
                await process.wait()


def _tell(done: int, of: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done:,} of {of:,} messages")


def main() -> int:
    """Gives 1 if a message was lost, the service failed on one, or a good one was not stored."""
    arguments = argparse.ArgumentParser(prog="make hostile", description=__doc__)
    arguments.add_argument("--messages", type=int, default=100_000)
    arguments.add_argument("--seed", type=int, default=1)
    given = arguments.parse_args()
    started = time.monotonic()
    with TemporaryDirectory() as folder:
        report = asyncio.run(_lay_siege(given.messages, given.seed, Path(folder)))
    codes = sorted({outcome for counts in report.outcomes.values() for outcome in counts})
    print(f"\n{'damage':<14}" + "".join(f"{name[:12]:>13}" for name in codes))
    for damage, counts in sorted(report.outcomes.items()):
        print(f"{damage:<14}" + "".join(f"{counts[name]:>13,}" for name in codes))
    refused = sum(counts[name] for counts in report.outcomes.values() for name in set(ErrorCode))
    print(
        f"{report.hostile:,} damaged messages (seed {given.seed}), {refused:,} refused with a reason, "
        f"{report.good:,} good ones between them, in {time.monotonic() - started:.0f} s"
    )
    for problem in report.problems[:20]:
        print(problem)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
