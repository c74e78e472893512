"""Run the servers in the foreground: ``python -m deploy.servers [FOLDER]``, until Ctrl-C."""

import signal
import sys
from contextlib import suppress
from pathlib import Path

from deploy.servers import REPOSITORY, ServersError, running


def main() -> int:
    """Print the addresses as shell exports on stdout, progress on stderr; the exit code is 2 without servers."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / ".servers"
    with suppress(KeyboardInterrupt):
        try:
            with running(folder, report=lambda line: print(line, file=sys.stderr)) as servers:
                print(f"# {servers.way}; Ctrl-C ends them")
                print(f"export DATABASE_URL={servers.database_url}")
                print(f"export RABBITMQ_URL={servers.rabbitmq_url}")
                print(f"export REDIS_URL={servers.redis_url}")
                if servers.rabbitmq_management_url:
                    print(f"export RABBITMQ_MANAGEMENT_URL={servers.rabbitmq_management_url}")
                sys.stdout.flush()
                while True:
                    signal.pause()
        except ServersError as error:
            print(f"servers: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    # A parent that ignores interrupts, as a shell does for its background jobs, must not make Ctrl-C deaf here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
