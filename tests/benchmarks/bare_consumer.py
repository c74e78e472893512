"""The limit: an aio-pika consumer that takes messages, acknowledges them in batches and does nothing else.

``python -m tests.benchmarks.bare_consumer QUEUE COUNT`` prints the seconds from the first message to the last,
and those of CPU that it took.
"""

import asyncio
import os
import sys
import time

import aio_pika
import uvloop
from aio_pika.abc import AbstractIncomingMessage

_BATCH = 200


async def main(queue_name: str, count: int) -> None:
    connection = await aio_pika.connect(os.environ["RABBITMQ_URL"])
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=1_000)
    queue = await channel.get_queue(queue_name, ensure=False)
    times: list[float] = []
    began = 0.0
    done = asyncio.Event()

    async def take(message: AbstractIncomingMessage) -> None:
        nonlocal began
        began = began or time.process_time()
        times.append(time.perf_counter())
        if len(times) % _BATCH == 0 or len(times) == count:
            await message.ack(multiple=True)
        if len(times) == count:
            done.set()

    await queue.consume(take)
    await done.wait()
    print(times[-1] - times[0], time.process_time() - began, flush=True)  # noqa: T201 - the result
    await connection.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
