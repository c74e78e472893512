"""``python -m deploy.demo``: the main job on real trades, on servers of its own, with a verdict at the end."""

import argparse
import asyncio
import secrets
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from contracts import Refusal
from deploy import service
from deploy.demo import market
from deploy.demo.children import ChildError
from deploy.demo.screen import Screen
from deploy.demo.story import Plan, StoryError, play
from deploy.demo.verdict import Verdict, judge
from deploy.servers import REPOSITORY, ServersError, running
from deploy.service import ServiceError, interrupt_on_sigterm

_FOLDER: Final = REPOSITORY / ".servers"
# Longer than any run takes, so that nobody's folder is taken for one that was left.
_SECONDS_OF_NO_RUN: Final = 3_600
_LOG_LINES_SHOWN: Final = 15
_LOG_LINE_SHOWN: Final = 500

_AGREES, _DISAGREES, _NOT_STARTED, _INTERRUPTED = 0, 1, 2, 130


def main() -> int:
    """The exit code: 0 if everything agrees, 1 if not, 2 if it could not start, 130 after Ctrl-C."""
    screen = Screen()
    plan = _plan()
    try:
        with _folder(plan.run) as folder:
            verdict = _run(plan, screen, folder)
    except KeyboardInterrupt:
        print("demo: interrupted")
        return _INTERRUPTED
    except (ServersError, ServiceError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return _NOT_STARTED
    except (StoryError, ChildError, Refusal) as error:
        print(f"demo: FAILED - {error}")
        return _DISAGREES
    except Exception as error:  # noqa: BLE001 - the last line tells how it went, whatever happened
        traceback.print_exc()
        print(f"demo: FAILED - {type(error).__name__}")
        return _DISAGREES
    print(f"demo: {verdict.sentence}")
    return _AGREES if verdict.agrees else _DISAGREES


def _plan() -> Plan:
    parser = argparse.ArgumentParser(prog="python -m deploy.demo", description=__doc__)
    parser.add_argument("--trades", type=int, default=len(market.trades()), help="how many of the file's trades")
    parser.add_argument("--bots", type=int, default=6, help="how many bots report them (2 to 20)")
    given = parser.parse_args()
    trades = market.trades(given.trades)
    if not 100 <= given.trades <= len(trades) or not 2 <= given.bots <= 20:  # noqa: PLR2004 - as the help says
        parser.error("--trades must be 100 or more, up to those of the file, and --bots 2 to 20")
    return Plan(f"demo-{secrets.token_hex(3)}", trades, market.listings(), given.bots)


def _run(plan: Plan, screen: Screen, folder: Path) -> Verdict:
    with running(folder, report=screen.say) as servers:
        screen.say(f"servers: {servers.way}")
        screen.say(service.migrate(servers))
        log = folder / "service.log"
        try:
            with service.running(servers, log=log) as instance:
                screen.say(f"service: ready at {instance.address}")
                verdict = judge(asyncio.run(play(servers, instance, plan, screen, folder)))
        except Exception:
            for line in log.read_text().splitlines()[-_LOG_LINES_SHOWN:]:
                print(f"  {line[:_LOG_LINE_SHOWN]}")
            _keep(log, screen)
            raise
        screen.verdict(verdict)
        if not verdict.agrees:
            _keep(log, screen)
        return verdict


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    """A folder for what the servers store, gone afterwards; those of runs that were killed go now."""
    for left in _FOLDER.glob("demo-*/"):
        if time.time() - left.stat().st_mtime > _SECONDS_OF_NO_RUN:
            shutil.rmtree(left, ignore_errors=True)
    folder = _FOLDER / name
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _keep(log: Path, screen: Screen) -> None:
    """Save the service's log from the end of its folder."""
    kept = _FOLDER / "demo-failed.log"
    shutil.copy(log, kept)
    screen.say(f"the service's log is kept in {kept.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    interrupt_on_sigterm()
    sys.exit(main())
