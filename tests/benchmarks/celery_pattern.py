"""The baseline with Celery: two worker processes, a task per message, acknowledged when it is committed.

The same rows as the manual's pattern writes; the database is asked through the event loop that each worker keeps.
"""

import asyncio
import json
from typing import Any

from celery import Celery, Task
from celery.signals import worker_process_init
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from contracts import RecordTrade, TradeRecorded
from service.config import Settings
from service.engine import build_engine
from service.outbox import record
from tests.benchmarks.manual_pattern import is_new
from tests.benchmarks.manual_pattern import record_trade as store

QUEUE = "celery.trading"
TASK = "record_trade"


def build(url: str) -> Celery:
    """An application on this broker, with a quorum queue and confirmed publishing."""
    app = Celery("bench", broker=url)
    app.conf.update(
        task_default_queue=QUEUE,
        task_default_queue_type="quorum",
        task_default_exchange_type="topic",
        broker_transport_options={"confirm_publish": True},
        broker_connection_retry_on_startup=True,
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=10,
        worker_hijack_root_logger=False,
    )
    return app


def worker() -> Celery:
    """What ``celery -A tests.benchmarks.celery_pattern:worker_app worker`` runs."""
    settings = Settings.read()
    app = build(settings.rabbitmq_url.get_secret_value())
    state: dict[str, Any] = {}

    def begin(**_: Any) -> None:
        state["loop"] = asyncio.new_event_loop()
        state["sessions"] = async_sessionmaker(build_engine(settings), expire_on_commit=False)

    async def carry_out(message_id: str, body: dict[str, Any]) -> None:
        session: AsyncSession
        async with state["sessions"]() as session, session.begin():
            if await is_new(session, message_id, TASK, json.dumps(body).encode()):
                trade = await store(session, RecordTrade.model_validate(body))
                record(session, TradeRecorded, after=trade)

    def record_trade(task: Task, body: dict[str, Any]) -> None:
        state["loop"].run_until_complete(carry_out(task.request.id, body))

    worker_process_init.connect(begin, weak=False)
    app.task(name=TASK, bind=True)(record_trade)
    return app


def __getattr__(name: str) -> Any:
    """The worker's application, made when Celery asks for it: only a worker has the settings in its environment."""
    if name == "worker_app":
        return worker()
    raise AttributeError(name)
