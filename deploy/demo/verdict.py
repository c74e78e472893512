"""The check: does what was found agree with what was sent? Judges evidence, and looks nowhere else."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from contracts import SymbolView, cache_keys
from deploy.demo import market
from deploy.demo.bots import Desk
from deploy.demo.evidence import TABLES, Evidence, Row
from deploy.demo.market import Trade

_SET_UP: Final = ("users", "cat_exchanges", "exchanges", "symbols", "bots", "bot_exchanges")


@dataclass
class Check:
    """A claim, how many things it was tried on, and where it does not hold."""

    claim: str
    tried: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """A claim that was tried on nothing does not hold."""
        return self.tried > 0 and not self.problems

    def expect(self, what: str, expected: object, found: object) -> bool:
        """Try the claim on one thing: whether ``found`` is what was expected."""
        self.tried += 1
        if expected != found:
            self.problems.append(f"{what}: {found} instead of {expected}")
        return expected == found


@dataclass(frozen=True)
class Verdict:
    """All checks, and how many trades passed those of publishing, storing and announcing."""

    checks: Sequence[Check]
    published: int
    stored: int
    announced: int

    @property
    def agrees(self) -> bool:
        return all(check.holds for check in self.checks) and self.published == self.stored == self.announced

    @property
    def sentence(self) -> str:
        """The verdict in one line."""
        if self.agrees:
            return f"ok - {self.published} trades published, stored and announced exactly once"
        failed = [check.claim for check in self.checks if not check.holds]
        return f"FAILED - {'; '.join(failed) or 'the numbers of trades differ'}"


def judge(evidence: Evidence) -> Verdict:
    """Every claim of the demo, checked."""
    stored = _trades_are_stored(evidence)
    announced = _is_announced(evidence, "every trade is announced exactly once, as it is stored", ["trades"])
    checks = [
        _trades_are_published(evidence),
        stored,
        _trades_are_looked_up(evidence),
        _repetitions_are_recognised(evidence),
        announced,
        _orders_are_stored(evidence),
        _is_announced(evidence, "every change of an order is announced once and in order", ["orders"]),
        _logs_are_stored(evidence),
        _is_announced(evidence, "every log entry is announced exactly once", ["bot_logs"]),
        _set_up_is_stored(evidence),
        _is_announced(evidence, "users, accounts, bots and symbols are announced as they are stored", _SET_UP),
        _wrong_messages_are_refused(evidence),
        _is_announced(evidence, "every refusal is announced exactly once", ["dead_letters"]),
        _cache_lost_its_stale_keys(evidence),
        _events_have_no_gap(evidence),
        _nothing_is_left(evidence),
    ]
    return Verdict(
        checks,
        published=sum(journal.trades for journal in evidence.journals),
        stored=stored.tried - len(stored.problems),
        announced=announced.tried - len(announced.problems),
    )


def _trades_are_published(evidence: Evidence) -> Check:
    check = Check("the bots sent every trade of the file, and repeated some")
    new_ids, same_ids = market.repeated(evidence.trades)
    journals = evidence.journals
    check.expect("trades", len(evidence.trades), sum(journal.trades for journal in journals))
    check.expect("with new message ids", len(new_ids), sum(journal.repeated_with_new_id for journal in journals))
    check.expect("with the same ids", len(same_ids), sum(journal.repeated_with_same_id for journal in journals))
    return check


def _trades_are_stored(evidence: Evidence) -> Check:
    check = Check("every trade is stored exactly once, digit by digit")
    expected = _expected_trades(evidence)
    rows = evidence.database.rows["trades"]
    found: defaultdict[tuple[int, str], list[Row]] = defaultdict(list)
    for row in rows:
        found[row["ex_id"], row["ex_trade_id"]].append(row)
    for key, (trade, desk) in expected.items():
        held = [_compared(row, trade, desk) for row in found.pop(key, [])]
        check.expect(f"trade {trade.ex_trade_id}", [_as_reported(trade, desk)], held)
    for ex_id, ex_trade_id in found:
        check.problems.append(f"trade {ex_trade_id} of account {ex_id}: nobody sent it")
    return check


def _trades_are_looked_up(evidence: Evidence) -> Check:
    check = Check("lookups give every trade, and sums that are exact")
    for trades, desk in _shares(evidence):
        answers = evidence.answers[desk.uid]
        by_id = {trade.ex_trade_id: trade for trade in trades}
        for view in answers.trades:
            trade = by_id.pop(view.ex_trade_id or "", None)
            if trade is None:
                check.problems.append(f"trade {view.ex_trade_id} of user {desk.uid}: listed twice, or nobody sent it")
            else:
                found = _compared(view.model_dump(), trade, desk)
                check.expect(f"trade {trade.ex_trade_id}", _as_reported(trade, desk), found)
        check.expect(f"trades of user {desk.uid} that are not listed", [], sorted(by_id))
        newest_first = sorted(answers.trades, key=lambda view: (view.timestamp, view.trade_id), reverse=True)
        check.expect(f"order of the trades of user {desk.uid}", True, list(answers.trades) == newest_first)
        bought, sold = (sum((_cost(t) for t in trades if t.side == side), Decimal(0)) for side in ("buy", "sell"))
        said = answers.stats
        check.expect(f"number of trades of user {desk.uid}", len(trades), said.total_trades)
        check.expect(f"volumes of user {desk.uid}", (bought, sold), (said.buy_volume, said.sell_volume))
        check.expect(f"total volume of user {desk.uid}", bought + sold, said.total_volume)
        check.expect(f"open orders of user {desk.uid}", [], [order.order_id for order in answers.open_orders])
    return check


def _repetitions_are_recognised(evidence: Evidence) -> Check:
    check = Check("the service took every repetition for what it is")
    new_ids, same_ids = market.repeated(evidence.trades)
    check.expect("trades carried out", len(evidence.trades), evidence.commands.get(("record_trade", "done"), 0))
    repeated = len(new_ids) + len(same_ids)
    duplicates = evidence.commands.get(("record_trade", "duplicate"), 0)
    # The broker may have repeated some more.
    check.expect("repetitions", True, duplicates >= repeated > 0)
    return check


def _orders_are_stored(evidence: Evidence) -> Check:
    check = Check("every order is as its bot left it, filled by exactly its trades")
    rows = {row["order_id"]: row for row in evidence.database.rows["orders"]}
    fills: defaultdict[object, Decimal] = defaultdict(Decimal)
    for trade in evidence.database.rows["trades"]:
        fills[trade["order_id"], trade["side"]] += trade["size"]
    for journal in evidence.journals:
        for order in journal.orders:
            row = rows.pop(order.order_id, {})
            said = _plain({**order.model_dump(), **journal.desk.model_dump()})
            check.expect(f"order {order.order_id}", said, _plain({name: row.get(name) for name in said}))
            filled = fills.pop((order.order_id, order.side), Decimal(0))
            check.expect(f"trades of order {order.order_id}", order.filled_size, filled)
    check.expect("orders nobody placed", [], sorted(rows))
    check.expect("trades of other orders", [], list(fills))
    return check


def _logs_are_stored(evidence: Evidence) -> Check:
    check = Check("every log entry is stored, in the order it was sent")
    entries = evidence.database.rows["bot_logs"]
    for journal in evidence.journals:
        desk = journal.desk
        check.expect(
            f"log of bot {desk.bot_id}",
            [(desk.ex_id, message) for message in journal.logs],
            [(entry["ex_id"], entry["message"]) for entry in entries if entry["bot_id"] == desk.bot_id],
        )
    check.expect("log entries", sum(len(journal.logs) for journal in evidence.journals), len(entries))
    return check


def _set_up_is_stored(evidence: Evidence) -> Check:
    check = Check("everybody is registered, and every symbol listed")
    rows, desks = evidence.database.rows, [journal.desk for journal in evidence.journals]
    [exchange] = {desk.cat_ex_id for desk in desks}
    check.expect("users", sorted(desk.uid for desk in desks), [row["uid"] for row in rows["users"]])
    check.expect("catalog exchanges", [exchange], [row["cat_ex_id"] for row in rows["cat_exchanges"]])
    for table in ("exchanges", "bots", "bot_exchanges"):
        columns = sorted(rows[table][0].keys() & Desk.model_fields.keys()) if rows[table] else []
        check.expect(
            table,
            sorted([getattr(desk, name) for name in columns] for desk in desks),
            sorted([row[name] for name in columns] for row in rows[table]),
        )
    check.expect(
        "symbols",
        sorted((exchange, each.symbol, each.base, each.quote, each.ticker) for each in evidence.listings),
        sorted(
            (row["cat_ex_id"], row["symbol"], row["base"], row["quote"], row["ticker"]) for row in rows["symbols"]
        ),
    )
    return check


def _wrong_messages_are_refused(evidence: Evidence) -> Check:
    check = Check("every wrong message is a dead letter, with code and field")
    letters = Counter(
        (row["message_id"], row["command"], row["code"], row["field"], row["state"])
        for row in evidence.database.rows["dead_letters"]
    )
    for wrong in evidence.wrong:
        key = (wrong.message_id, wrong.routing_key, wrong.code.value, wrong.field, "open")
        check.expect(wrong.what, 1, letters.pop(key, 0))
    for _, command, code, name, _ in letters:
        check.problems.append(f"unexpected dead letter: {command} {code} {name}")
    return check


def _is_announced(evidence: Evidence, claim: str, tables: Collection[str]) -> Check:
    """Whether each row has one change event for each of its versions, in order, the last of which shows the row."""
    check = Check(claim)
    for table in (table for table in TABLES if table.name in tables):
        changes: defaultdict[tuple[Any, ...], list[Row]] = defaultdict(list)
        for event in evidence.events:
            if event["type"] in table.events:
                for change in event["changes"]:
                    changes[tuple(change["key"][name] for name in table.key)].append(change)
        for row in evidence.database.rows[table.name]:
            key = tuple(row[name] for name in table.key)
            said = changes.pop(key, [])
            check.expect(f"{table.name} {key}", *_history(row, said))
        for key in changes:
            if key[0] > evidence.baseline.keys[table.name]:
                check.problems.append(f"{table.name} {key}: announced, and not there")
    return check


def _history(row: Row, changes: Sequence[Row]) -> tuple[object, object]:
    """What the events of ``row`` have to say, and what they say."""
    versions = list(range(1, row.get("row_version", 1) + 1))
    images = [change["after"] for change in changes]
    last = images[-1] if images else {}
    # The image before each change is the one after the change before it.
    before = [None, *images[:-1]]
    return (
        (versions, before, {name: _as_json(row.get(name)) for name in last}),
        (
            [change["version"] for change in changes],
            [change["before"] for change in changes],
            {name: _instant(value) if isinstance(row.get(name), datetime) else value for name, value in last.items()},
        ),
    )


def _cache_lost_its_stale_keys(evidence: Evidence) -> Check:
    check = Check("the subscriber's cache lost exactly the stale keys, and reads the new value")
    change, symbols = evidence.change, evidence.database.rows["symbols"]
    for row in (row for row in symbols if row["symbol"] == market.TRADED.symbol):
        stale = [
            cache_keys.symbol(market.TRADED.symbol, row["cat_ex_id"]),
            cache_keys.symbols_of_exchange(row["cat_ex_id"]),
        ]  # its decimals are cached as well, and did not change
        # Each symbol and its decimals, and the list of them all.
        check.expect("keys in the cache", 2 * len(evidence.listings) + 1, evidence.cached)
        check.expect("keys removed", sorted(stale), change.removed)
        check.expect("keys kept", evidence.cached - len(stale), change.kept)
        check.expect("keys altered", [], change.altered)
        fields = SymbolView.model_fields
        check.expect("next read", {name: _as_json(row[name]) for name in fields}, _plain(change.after.model_dump()))
        check.expect("read before", row["row_version"] - 1, change.before.row_version)
        check.expect("changed", True, change.before.min_size != change.after.min_size)
    return check


def _events_have_no_gap(evidence: Evidence) -> Check:
    check = Check("no event is lost: the events of each type are numbered without a gap")
    for kind, last in evidence.database.sequences.items():
        first = evidence.baseline.sequences.get(kind, 0) + 1
        numbers = [event["sequence"] for event in evidence.events if event["type"] == kind]
        check.expect(kind, list(range(first, last + 1)), [number for number in numbers if number >= first])
    return check


def _nothing_is_left(evidence: Evidence) -> Check:
    check = Check("queues and outbox are empty, and the service ended well")
    for queue, messages in evidence.queues.items():
        check.expect(f"messages in {queue}", 0, messages)
    check.expect("events in the outbox", 0, evidence.database.outbox)
    check.expect("exit code of the service", 0, evidence.exit_code)
    return check


def _shares(evidence: Evidence) -> list[tuple[Sequence[Trade], Desk]]:
    """Which trades belong to whom."""
    bots = len(evidence.journals)
    return [
        (market.share(evidence.trades, number, bots), journal.desk)
        for number, journal in enumerate(evidence.journals)
    ]


def _expected_trades(evidence: Evidence) -> dict[tuple[int, str], tuple[Trade, Desk]]:
    return {(desk.ex_id, trade.ex_trade_id): (trade, desk) for trades, desk in _shares(evidence) for trade in trades}


def _as_reported(trade: Trade, desk: Desk) -> Row:
    """A trade as it has to be stored: the file's digits, and whose it is."""
    return {
        "ex_trade_id": trade.ex_trade_id,
        "timestamp": _instant(trade.timestamp),
        "side": trade.side,
        "price": trade.price,
        "size": trade.size,
        "cost": format(_cost(trade), "f"),
        **{name: getattr(desk, name) for name in ("uid", "ex_id", "bot_id", "symbol_id")},
        "fee": "0",
        "leverage": "1",
        "roi": None,
        "row_version": 1,
    }


def _compared(found: Mapping[str, Any], trade: Trade, desk: Desk) -> Row:
    """The same fields of a trade as it was found."""
    return {name: _as_json(found[name]) for name in _as_reported(trade, desk)}


def _cost(trade: Trade) -> Decimal:
    return Decimal(trade.price) * Decimal(trade.size)


def _plain(record: Mapping[str, Any]) -> Row:
    return {name: _as_json(value) for name, value in record.items()}


def _as_json(value: Any) -> Any:
    """A value as events carry it, so that digits are compared and not numbers: 1.50 is not 1.5."""
    match value:
        case Decimal():
            return format(value, "f")
        case datetime():
            return value.astimezone(UTC).isoformat()
        case UUID() | StrEnum():
            return str(value)
    return value


def _instant(text: str) -> str:
    """An instant, however it was written, as `_as_json` writes it."""
    return datetime.fromisoformat(text).astimezone(UTC).isoformat()
