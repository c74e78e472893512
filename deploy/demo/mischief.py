"""What is wrong on purpose: messages that must be refused, each with the reason the service has to give."""

import dataclasses
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pika

from contracts.client import new_message_id
from contracts.errors import ErrorCode
from contracts.topology import COMMANDS
from deploy.demo.bots import Desk
from deploy.demo.market import Trade

_NOBODY: Final = 2**31 - 1


def _new_id() -> str:
    return str(new_message_id())


@dataclass(frozen=True)
class Wrong:
    """A message that the client library would not let through, as it goes over the wire."""

    what: str
    """What is wrong with it, for people."""
    code: ErrorCode
    field: str
    body: bytes
    routing_key: str = "record_trade"
    message_id: str | None = dataclasses.field(default_factory=_new_id)
    content_encoding: str | None = None


def wrong_messages(desk: Desk, stranger: Desk, known: Trade) -> list[Wrong]:
    """One of each kind, from ``desk``; ``known`` is a trade that is stored for it already."""
    reused = _new_id()
    trade = _trade(desk)
    return [
        Wrong("unknown bot", ErrorCode.NOT_FOUND, "bot_id", _trade(desk, bot_id=_NOBODY)),
        Wrong("account of another user", ErrorCode.FORBIDDEN, "ex_id", _trade(desk, ex_id=stranger.ex_id)),
        Wrong("negative size", ErrorCode.VALIDATION, "size", _trade(desk, size="-23"), message_id=reused),
        Wrong("NaN price", ErrorCode.VALIDATION, "price", _trade(desk, price=float("nan"))),
        Wrong("naive timestamp", ErrorCode.VALIDATION, "timestamp", _trade(desk, timestamp="2019-10-11T00:00:11")),
        Wrong("unknown field", ErrorCode.VALIDATION, "colour", _trade(desk, colour="blue")),
        Wrong("truncated JSON", ErrorCode.VALIDATION, "body", trade[: len(trade) // 2]),
        Wrong("JSON nested 10,000 deep", ErrorCode.VALIDATION, "body", b"[" * 10_000 + b"]" * 10_000),
        Wrong(
            "known trade with another price",
            ErrorCode.CONFLICT,
            "ex_trade_id",
            _trade(
                desk,
                ex_trade_id=known.ex_trade_id,
                side=known.side,
                size=known.size,
                price=f"9{known.price}",
                timestamp=known.timestamp,
            ),
        ),
        Wrong("message id used twice", ErrorCode.CONFLICT, "message_id", _trade(desk, size="24"), message_id=reused),
        Wrong("no message id", ErrorCode.VALIDATION, "message_id", trade, message_id=None),
        Wrong("message id that is no UUID", ErrorCode.VALIDATION, "message_id", trade, message_id="42"),
        Wrong("unknown routing key", ErrorCode.VALIDATION, "routing_key", trade, routing_key="record_a_trade"),
        Wrong("gzip", ErrorCode.VALIDATION, "content_encoding", gzip.compress(trade), content_encoding="gzip"),
    ]


def publish(url: str, messages: Sequence[Wrong], *, app_id: str) -> None:
    """Hand ``messages`` to the broker in order, each confirmed, just as they are.

    With pika, since aio-pika gives an id of its own to a message that has none.
    """
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for wrong in messages:
            properties = pika.BasicProperties(
                content_type="application/json",
                content_encoding=wrong.content_encoding,
                message_id=wrong.message_id,
                app_id=app_id,
                delivery_mode=pika.DeliveryMode.Persistent.value,
            )
            channel.basic_publish(COMMANDS.name, wrong.routing_key, wrong.body, properties, mandatory=True)


def _trade(desk: Desk, **changes: Any) -> bytes:
    fields = {
        "bot_id": desk.bot_id,
        "uid": desk.uid,
        "ex_id": desk.ex_id,
        "symbol_id": desk.symbol_id,
        "side": "sell",
        "size": "23.00000000",
        "price": "0.00141342",
        "ex_trade_id": _new_id(),
    }
    return json.dumps({**fields, **changes}).encode()
