"""Our relay without the rest of the service: ``python -m tests.benchmarks.relay_alone`` runs until it is ended."""

import uvloop

from service.config import Settings
from service.database import build_session_maker
from service.engine import build_engine
from service.publisher import Publisher
from service.relay import Relay


async def main() -> None:
    settings = Settings.read()
    await Relay(build_session_maker(build_engine(settings)), Publisher(settings), settings).run()


if __name__ == "__main__":
    uvloop.run(main())
