"""What is done to the world, each fault for as long as it lasts, and healed at its end."""

import asyncio
import os
import random
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import asyncpg

from tests.faults.links import Link
from tests.faults.world import World

Deed = Callable[[World, random.Random], Awaitable[None]]


async def kill_service(world: World, chance: random.Random) -> None:
    world.service.send(signal.SIGKILL)


async def stop_service(world: World, chance: random.Random) -> None:
    """As a machine does that is paused: everybody else goes on."""
    world.service.send(signal.SIGSTOP)
    await asyncio.sleep(chance.uniform(1, 4))
    world.service.send(signal.SIGCONT)


async def end_service(world: World, chance: random.Random) -> None:
    world.service.send(signal.SIGTERM)


async def kill_customers(world: World, chance: random.Random) -> None:
    world.customers.send(signal.SIGKILL)


async def kill_broker(world: World, chance: random.Random) -> None:
    os.kill(await world.machines.broker_pid(), signal.SIGKILL)


async def stop_broker(world: World, chance: random.Random) -> None:
    await _stop([await world.machines.broker_pid()], chance.uniform(0.5, 4))


async def close_connections(world: World, chance: random.Random) -> None:
    """By the broker, as its operator can."""
    await world.machines.close_connections()


async def alarm_broker(world: World, chance: random.Random) -> None:
    """The broker takes nothing from who publishes, as when its memory runs out."""
    await world.machines.rabbitmqctl("set_vm_memory_high_watermark", "0.000001")
    try:
        await asyncio.sleep(chance.uniform(0.5, 2))
    finally:
        await world.machines.rabbitmqctl("set_vm_memory_high_watermark", "0.4")


async def cut_broker(world: World, chance: random.Random) -> None:
    await world.to_broker.cut()


async def cut_bots(world: World, chance: random.Random) -> None:
    for _ in range(5):
        await world.from_bots.cut()
        await asyncio.sleep(0.2)


async def lose_confirms(world: World, chance: random.Random) -> None:
    """What bots send arrives, and they do not hear of it."""
    for _ in range(3):
        world.from_bots.hears_answers = False
        await asyncio.sleep(0.15)
        await world.from_bots.cut()
        world.from_bots.heal()
        await asyncio.sleep(0.3)


async def delay_broker(world: World, chance: random.Random) -> None:
    world.to_broker.delay = 0.2
    await asyncio.sleep(chance.uniform(0.5, 2))
    world.to_broker.heal()


async def silence_broker(world: World, chance: random.Random) -> None:
    """Nothing arrives on either side, and nobody hangs up; what is connected anew soon works."""
    await _silence(world.to_broker, chance)


async def lose_answers_of_broker(world: World, chance: random.Random) -> None:
    world.to_broker.hears_answers = False
    await asyncio.sleep(chance.uniform(1, 3))
    world.to_broker.heal()


async def kill_database(world: World, chance: random.Random) -> None:
    for pid in await world.machines.database_pids():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def stop_database(world: World, chance: random.Random) -> None:
    await _stop(await world.machines.database_pids(), chance.uniform(0.5, 4))


async def end_backends(world: World, chance: random.Random) -> None:
    for _ in range(3):
        await _execute(
            world, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'persistence'"
        )
        await asyncio.sleep(0.2)


async def cut_database(world: World, chance: random.Random) -> None:
    await world.to_database.cut()


async def silence_database(world: World, chance: random.Random) -> None:
    await _silence(world.to_database, chance)


async def lose_answers_of_database(world: World, chance: random.Random) -> None:
    """Commits arrive, and nobody hears that they did."""
    world.to_database.hears_answers = False
    await asyncio.sleep(chance.uniform(0.2, 2))
    await world.to_database.cut()
    world.to_database.heal()


async def lock_tables(world: World, chance: random.Random) -> None:
    """Longer than anybody waits for a lock."""
    table = chance.choice(("trades", "bot_logs", "outbox", "inbox"))
    await _execute(world, f"BEGIN; LOCK TABLE {table} IN EXCLUSIVE MODE; SELECT pg_sleep(4.5); COMMIT")


async def make_deadlocks(world: World, chance: random.Random) -> None:
    """Rows are locked in an order in which nobody else would."""
    for _ in range(3):
        symbols = [desk.symbol_id for desk in world.desks]
        chance.shuffle(symbols)
        locks = "; SELECT pg_sleep(0.02); ".join(
            f"SELECT FROM symbols WHERE symbol_id = {symbol} FOR UPDATE" for symbol in symbols
        )
        with suppress(asyncpg.DeadlockDetectedError):
            await _execute(world, f"BEGIN; {locks}; COMMIT")


async def kill_cache(world: World, chance: random.Random) -> None:
    os.kill(await world.machines.cache_pid(), signal.SIGKILL)


async def stop_cache(world: World, chance: random.Random) -> None:
    await _stop([await world.machines.cache_pid()], chance.uniform(1, 4))


async def fill_disk_of_database(world: World, chance: random.Random) -> None:
    await _fill(world.machines.disk_of("postgresql"), chance)


async def fill_disk_of_broker(world: World, chance: random.Random) -> None:
    """To where it takes nothing more; without a single byte RabbitMQ 3.10 lives on and never answers again."""
    await _fill(world.machines.disk_of("rabbitmq"), chance, leave=100 * 1024 * 1024)


async def cut_cache(world: World, chance: random.Random) -> None:
    for _ in range(5):
        await world.to_cache.cut()
        await asyncio.sleep(0.1)


FAULTS: Final[Mapping[str, Deed]] = {
    "SIGKILL of the service": kill_service,
    "SIGSTOP of the service": stop_service,
    "SIGTERM of the service": end_service,
    "SIGKILL of the customers": kill_customers,
    "SIGKILL of the broker": kill_broker,
    "SIGSTOP of the broker": stop_broker,
    "connections closed by the broker": close_connections,
    "memory alarm of the broker": alarm_broker,
    "links to the broker cut": cut_broker,
    "links of the bots cut": cut_bots,
    "confirms of the bots lost": lose_confirms,
    "slow link to the broker": delay_broker,
    "half-open links to the broker": silence_broker,
    "answers of the broker lost": lose_answers_of_broker,
    "SIGKILL of the database": kill_database,
    "SIGSTOP of the database": stop_database,
    "backends of the database terminated": end_backends,
    "links to the database cut": cut_database,
    "half-open links to the database": silence_database,
    "answers of the database lost": lose_answers_of_database,
    "tables locked": lock_tables,
    "deadlocks": make_deadlocks,
    "full disk of the database": fill_disk_of_database,
    "disk of the broker below its limit": fill_disk_of_broker,
    "SIGKILL of the cache": kill_cache,
    "SIGSTOP of the cache": stop_cache,
    "links to the cache cut": cut_cache,
}


async def _stop(pids: list[int], seconds: float) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def _silence(link: Link, chance: random.Random) -> None:
    link.forget()
    link.hears_requests = link.hears_answers = False
    await asyncio.sleep(chance.uniform(0, 2))
    link.heal()


async def _fill(disk: Path, chance: random.Random, *, leave: int = 0) -> None:
    """Take every byte that is left for a while, or all but ``leave``."""
    filler = disk / "filler"
    try:
        await asyncio.to_thread(_write_until_full, filler, leave)
        await asyncio.sleep(chance.uniform(1, 3))
    finally:
        await asyncio.to_thread(filler.unlink, missing_ok=True)


def _write_until_full(file: Path, leave: int) -> None:
    with file.open("wb", buffering=0) as output:
        for size in (1_048_576, 4_096, 1):
            with suppress(OSError):
                while shutil.disk_usage(file.parent).free > leave and output.write(bytes(size)) == size:
                    pass


async def _execute(world: World, statement: str) -> None:
    await world.machines.database_pids()  # it may be being started again
    connection = await asyncpg.connect(world.database_url, timeout=5)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
