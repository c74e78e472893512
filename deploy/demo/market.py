"""What happened on the exchange: the trades and symbols of ``data/``, and who reports which."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

_DATA: Final = Path(__file__).parent / "data"

REPEATED: Final = 500
"""How many trades are sent again under a new message id, and as many others under the same."""


@dataclass(frozen=True)
class Trade:
    """A trade with its fields as the file has them, digit by digit."""

    ex_trade_id: str
    timestamp: str
    side: str
    price: str
    size: str


@dataclass(frozen=True)
class Listing:
    """A trading pair as the exchange lists it."""

    symbol: str
    base: str
    quote: str
    ticker: str


TRADED: Final = Listing(symbol="XRP/ETH", base="XRP", quote="ETH", ticker="XRPETH")
"""What the trades are about."""


def trades(count: int | None = None) -> list[Trade]:
    """The first ``count`` trades, or all of them, in the order they happened."""
    with (_DATA / "trades_xrp_eth.csv").open() as file:
        return [Trade(**row) for row in csv.DictReader(file)][:count]


def listings() -> list[Listing]:
    """The symbols of the exchange, first the one that is traded here."""
    with (_DATA / "symbols_binance_futures.csv").open() as file:
        return [TRADED, *(Listing(**row) for row in csv.DictReader(file))]


def share(everything: Sequence[T], bot: int, bots: int) -> Sequence[T]:
    """What bot number ``bot`` of ``bots``, counted from 0, reports: each thing belongs to exactly one of them."""
    return everything[bot::bots]


def repeated(happened: Sequence[Trade]) -> tuple[set[str], set[str]]:
    """The ids of trades to send twice with new message ids, and of those to send twice with the same.

    Spread evenly; no trade is in both. A short run repeats a fifth of its trades instead of 500.
    """
    count = min(REPEATED, len(happened) // 5)
    places = [number * len(happened) // count for number in range(count)]
    return {happened[place].ex_trade_id for place in places}, {happened[place + 1].ex_trade_id for place in places}
