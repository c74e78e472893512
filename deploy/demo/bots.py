"""A trading bot as a process of its own: ``python -m deploy.demo.bots RUN BOT BOTS TRADES CAT_EX_ID SYMBOL_ID``.

It registers itself, opens orders, reports the trades that fill them and logs as it goes, all by messages.
"""

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Final, Literal
from uuid import UUID, uuid4

from pydantic import BaseModel

from contracts import (
    AddBot,
    AddExchange,
    AddExchangeToBot,
    AddUser,
    CreateOrder,
    RecordTrade,
    SaveBotLog,
    UpdateOrderStatus,
)
from contracts.client import PersistenceClient
from deploy.demo import market
from deploy.demo.children import report
from deploy.demo.market import Trade

_TRADES_PER_LOG: Final = 25
_LOGS_PER_ORDER: Final = 4

# The bots publish faster than one database stores; a bot that waits for its next order waits for the queue.
_ANSWER_SECONDS: Final = 60.0


class Desk(BaseModel):
    """Who a bot is, once it is registered."""

    uid: int
    ex_id: int
    bot_id: int
    cat_ex_id: int
    symbol_id: int


class Order(BaseModel):
    """An order as its bot knows it: what the database must say in the end."""

    client_order_id: UUID
    order_id: int
    side: Literal["buy", "sell"]
    size: Decimal
    price: Decimal
    status: str
    filled_size: Decimal = Decimal(0)
    avg_fill_price: Decimal | None = None
    row_version: int = 1
    """One for its placing and one for each change of its status."""


class Journal(BaseModel):
    """All that a bot did, so that somebody else can check it."""

    desk: Desk
    trades: int = 0
    """Trades reported, not counting repetitions."""
    repeated_with_new_id: int = 0
    repeated_with_same_id: int = 0
    orders: list[Order] = []
    logs: list[str] = []


class BotReport(BaseModel):
    """What a bot says: first its desk, then its progress, at last its journal."""

    desk: Desk | None = None
    published: int = 0
    journal: Journal | None = None


class Bot:
    """Reports trades as the fills of its own orders."""

    def __init__(self, client: PersistenceClient, desk: Desk, repeated: tuple[set[str], set[str]]) -> None:
        self.journal = Journal(desk=desk)
        self._client = client
        self._desk = desk
        self._new_ids, self._same_ids = repeated
        self._message_ids: dict[str, UUID] = {}

    async def work(self, trades: Sequence[Trade]) -> None:
        """Go through ``trades``, one set of orders after the other, while an order far from the market rests."""
        resting = await self._place("buy", Decimal(1), Decimal("0.00000001"))
        await self._client.publish(self._move(resting, "open"))
        for run in _chunks(trades, _TRADES_PER_LOG * _LOGS_PER_ORDER):
            await self._fill(run)
        # Answers to the last message of each lane: all before them are carried out then.
        await self._client.call(self._move(resting, "cancelled"))
        await self._client.call(self._entry("done"))

    async def _fill(self, trades: Sequence[Trade]) -> None:
        """Place an order for each side of ``trades``, and report the trades as their fills."""
        orders: dict[str, Order] = {}
        for side in ("buy", "sell"):
            if fills := [trade for trade in trades if trade.side == side]:
                limit = (max if side == "buy" else min)(Decimal(trade.price) for trade in fills)
                orders[side] = await self._place(side, sum(Decimal(trade.size) for trade in fills), limit)
                await self._client.publish(self._move(orders[side], "open"))
        done: list[Trade] = []
        for part in _chunks(trades, _TRADES_PER_LOG):
            await asyncio.gather(*(self._record(trade, orders[trade.side]) for trade in part))
            report(BotReport(published=len(part)))
            done += part
            for order in orders.values():
                await self._note_fills(order, [trade for trade in done if trade.side == order.side])
            text = f"{len(part)} trades up to {part[-1].ex_trade_id} at {part[-1].price}"
            await self._client.publish(self._entry(text))
        for trade in trades:
            await self._repeat(trade, orders[trade.side])

    async def _place(self, side: Literal["buy", "sell"], size: Decimal | int, price: Decimal) -> Order:
        desk = self._desk
        name = uuid4()
        placed = await self._client.call(
            CreateOrder(
                bot_id=desk.bot_id,
                uid=desk.uid,
                ex_id=desk.ex_id,
                symbol_id=desk.symbol_id,
                side=side,
                order_type="limit",
                size=size,
                price=price,
                client_order_id=name,
            )
        )
        order = Order(
            client_order_id=name, order_id=placed.order_id, side=side, size=size, price=price, status="pending"
        )
        self.journal.orders.append(order)
        return order

    def _move(self, order: Order, status: str) -> UpdateOrderStatus:
        order.status = status
        order.row_version += 1
        return UpdateOrderStatus(
            order_id=order.order_id, status=status, filled_size=order.filled_size, avg_fill_price=order.avg_fill_price
        )

    async def _note_fills(self, order: Order, fills: Sequence[Trade]) -> None:
        size = sum((Decimal(trade.size) for trade in fills), Decimal(0))
        if size == order.filled_size:
            return
        cost = sum(Decimal(trade.size) * Decimal(trade.price) for trade in fills)
        order.filled_size = size
        order.avg_fill_price = (cost / size).quantize(Decimal("1e-8"))
        await self._client.publish(self._move(order, "filled" if size == order.size else "partially_filled"))

    async def _record(self, trade: Trade, order: Order) -> None:
        self._message_ids[trade.ex_trade_id] = await self._client.publish(self._command(trade, order))
        self.journal.trades += 1

    async def _repeat(self, trade: Trade, order: Order) -> None:
        """Send a trade once more if it is one of those: a bot that lost its memory, or a confirm."""
        if trade.ex_trade_id in self._new_ids:
            await self._client.publish(self._command(trade, order))
            self.journal.repeated_with_new_id += 1
        if trade.ex_trade_id in self._same_ids:
            message_id = self._message_ids[trade.ex_trade_id]
            await self._client.publish(self._command(trade, order), message_id=message_id)
            self.journal.repeated_with_same_id += 1

    def _command(self, trade: Trade, order: Order) -> RecordTrade:
        desk = self._desk
        return RecordTrade(
            bot_id=desk.bot_id,
            uid=desk.uid,
            ex_id=desk.ex_id,
            symbol_id=desk.symbol_id,
            order_id=order.order_id,
            ex_trade_id=trade.ex_trade_id,
            side=trade.side,
            size=trade.size,
            price=trade.price,
            timestamp=trade.timestamp,
        )

    def _entry(self, message: str) -> SaveBotLog:
        desk = self._desk
        self.journal.logs.append(message)
        return SaveBotLog(
            bot_id=desk.bot_id, ex_id=desk.ex_id, symbol=market.TRADED.symbol, action="trade", message=message
        )


async def register(client: PersistenceClient, *, run: str, bot: int, cat_ex_id: int, symbol_id: int) -> Desk:
    """A user with an account and a bot that may trade there, out of nothing."""
    name = f"bot {bot + 1}"
    user = await client.call(AddUser(mail=f"bot-{bot + 1}@{run}.example", name=name))
    account = await client.call(AddExchange(uid=user.uid, cat_ex_id=cat_ex_id, ex_name="spot"))
    robot = await client.call(AddBot(uid=user.uid, name=name, active=True))
    await client.call(AddExchangeToBot(bot_id=robot.bot_id, ex_id=account.ex_id, trading_currency="ETH"))
    return Desk(uid=user.uid, ex_id=account.ex_id, bot_id=robot.bot_id, cat_ex_id=cat_ex_id, symbol_id=symbol_id)


async def main(run: str, *numbers: int) -> None:
    bot, bots, trades, cat_ex_id, symbol_id = numbers
    happened = market.trades(trades)
    async with PersistenceClient(
        os.environ["RABBITMQ_URL"], app_id=f"{run}-bot-{bot + 1}", answer_timeout=_ANSWER_SECONDS
    ) as client:
        desk = await register(client, run=run, bot=bot, cat_ex_id=cat_ex_id, symbol_id=symbol_id)
        report(BotReport(desk=desk))
        worker = Bot(client, desk, market.repeated(happened))
        await worker.work(market.share(happened, bot, bots))
        report(BotReport(journal=worker.journal))


def _chunks(trades: Sequence[Trade], size: int) -> Iterator[Sequence[Trade]]:
    return (trades[start : start + size] for start in range(0, len(trades), size))


if __name__ == "__main__":
    _, run, *numbers = sys.argv
    asyncio.run(main(run, *map(int, numbers)))
