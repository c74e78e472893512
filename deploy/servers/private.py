"""Private servers: child processes on free ports of 127.0.0.1, from installed programs or fetched ones."""

from __future__ import annotations

from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from deploy.servers import Report, Servers, postgresql, rabbitmq, redis
from deploy.servers.processes import Processes, password


def start(folder: Path, processes: Processes, report: Report) -> Servers:
    """Start all three at once, with their data below ``folder``."""
    password(folder)  # made now, before three ask for it at once
    with ThreadPoolExecutor() as threads:
        database = threads.submit(postgresql.start, folder, processes, report)
        broker = threads.submit(rabbitmq.start, folder, processes, report)
        cache = threads.submit(redis.start, folder, processes, report)
        starts: list[Future[Any]] = [database, broker, cache]
        for done in wait(starts, return_when=FIRST_EXCEPTION).done:
            if error := done.exception():
                # The other two need not be waited for.
                processes.end()
                raise error
    database_name, database_url = database.result()
    broker_name, broker_url, management_url = broker.result()
    cache_name, cache_url = cache.result()
    way = f"private servers ({database_name}, {broker_name}, {cache_name})"
    return Servers(way, database_url, broker_url, cache_url, management_url)
