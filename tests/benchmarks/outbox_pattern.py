"""The relay of faststream-outbox: one row, one handler call, one confirmed publish, at its best setting.

``python -m tests.benchmarks.outbox_pattern`` relays until it is ended.
"""

import uvloop
from faststream import FastStream
from faststream.rabbit import Channel, ExchangeType, RabbitBroker, RabbitExchange
from faststream_outbox import OutboxBroker, make_outbox_table
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from contracts import TradeRecorded
from contracts.topology import EVENTS
from service.config import Settings
from service.engine import build_engine

QUEUE = "events"
_EXCHANGE = RabbitExchange(EVENTS.name, type=ExchangeType.TOPIC, durable=True)
_METADATA = MetaData()
_TABLE = make_outbox_table(_METADATA, table_name="faststream_outbox")


class Outbox:
    """Its table, written in somebody else's transaction."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._broker = OutboxBroker(engine, outbox_table=_TABLE, logger=None)

    async def create(self) -> None:
        async with self._engine.begin() as connection:
            await connection.run_sync(_METADATA.create_all)

    async def add(self, session: AsyncSession, *bodies: str) -> None:
        await self._broker.publish_batch(*bodies, queue=QUEUE, session=session)


def build(settings: Settings) -> FastStream:
    """Eight workers, and what is done is deleted a hundred rows at a time: more of either makes it no faster."""
    outbox = OutboxBroker(build_engine(settings), outbox_table=_TABLE, logger=None)
    rabbit = RabbitBroker(
        settings.rabbitmq_url.get_secret_value(), default_channel=Channel(on_return_raises=True), logger=None
    )

    async def relay(body: str) -> None:
        await rabbit.publish(
            body.encode(),
            exchange=_EXCHANGE,
            routing_key=TradeRecorded.wire_name,
            persist=True,
            mandatory=False,
            content_type="application/json",
        )

    outbox.subscriber(
        QUEUE, max_workers=8, fetch_batch_size=100, min_fetch_interval=0.01, terminal_flush_batch_size=100
    )(relay)
    return FastStream(outbox, on_startup=[rabbit.connect], logger=None)


if __name__ == "__main__":
    uvloop.run(build(Settings.read()).run())
