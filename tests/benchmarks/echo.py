"""The limit of question and answer: an aio-pika consumer that sends back what it gets."""

import asyncio
import os

import aio_pika
import uvloop
from aio_pika.abc import AbstractIncomingMessage


async def main() -> None:
    connection = await aio_pika.connect(os.environ["RABBITMQ_URL"])
    channel = await connection.channel()
    answers = await (await aio_pika.connect(os.environ["RABBITMQ_URL"])).channel(publisher_confirms=False)
    await channel.set_qos(prefetch_count=500)
    queue = await channel.declare_queue("echo")

    async def answer(message: AbstractIncomingMessage) -> None:
        reply = aio_pika.Message(message.body, correlation_id=message.correlation_id)
        await answers.default_exchange.publish(reply, message.reply_to or "")

    await queue.consume(answer, no_ack=True)
    print("ready", flush=True)  # noqa: T201 - who started it waits for this
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
