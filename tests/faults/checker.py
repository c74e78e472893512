"""Compares what bots noted with everything that is left: rows, inbox, dead letters, events, cache reads, replies."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

from tests.faults.customers import CANARY
from tests.faults.ledger import Entry
from tests.faults.reads import STALE_SECONDS, history_of

_SHOWN: Final = 5
_NOT_FRESH: Final[Mapping[str, str]] = {
    "G1": f"a newer one was applied before, or known for {STALE_SECONDS} s",
    "G2": "a newer one was read before",
    "linearizable": "a newer one was answered before, with this one removed",
    "never written": "nobody had asked for it yet",
}

INVARIANTS: Final[Mapping[str, str]] = {
    "I1": "no loss: what was confirmed has its row, or its dead letter if it was wrong",
    "I2": "no invention: every row was sent",
    "I3": "no double: one row per business key and per message",
    "I4": "content: rows are what was sent first, contradictions lie among the dead letters",
    "I5": "order: what a bot sent later was stored later",
    "I6": "event iff commit: every change announced once, in order, to everybody, and nothing else",
    "I7": "quiescence: queues and outbox empty, every message in the inbox",
    "I8": "cache: never backwards, never older than applied, answered or the bound, right in the end",
    "I9": "answers: each to who asked",
    "I10": "liveness: work goes on after every fault",
    "I11": "resources: no transaction left open, no connection left behind, one consumer for each queue",
    "I12": "secrecy: what was a secret is nowhere",
    "I13": "coverage: every kind of fault came while messages were under way",
}


@dataclass(frozen=True)
class Fault:
    """Something that was done to the world."""

    name: str
    began: int
    ended: int
    recovered: float | None = None
    """Seconds until the next row was stored, afterwards."""


@dataclass
class Evidence:
    """What is left at the end, from everywhere."""

    ledger: list[Entry]
    trades: list[dict[str, Any]]
    logs: list[dict[str, Any]]
    symbols: dict[int, int]
    """Version by id."""
    first_symbols: dict[int, int]
    """Version by id when the customers began."""
    inbox: set[str]
    letters: list[dict[str, Any]]
    heard: dict[str, list[dict[str, Any]]]
    cached: dict[int, int]
    """Version by symbol, as caches hold it at the end."""
    left_in_queues: dict[str, int]
    left_in_outbox: int
    sessions: dict[str, int]
    """Connections to the database by state, when the service has ended."""
    artefacts: dict[str, bytes]
    """Where a secret could have got to, by name."""
    faults: list[Fault] = field(default_factory=list)
    consumers: dict[str, int] = field(default_factory=dict)
    """How many the service had at each queue when everything was done."""
    exit_code: int = 0
    settled: bool = True


@dataclass(frozen=True)
class Violation:
    invariant: str
    what: str
    history: tuple[str, ...] = ()


class Checker:
    """The verdict on a run."""

    def __init__(self, evidence: Evidence, *, meetings: int = 1) -> None:
        """Every kind of fault has to have met messages under way ``meetings`` times."""
        self._evidence = evidence
        self._meetings = meetings
        self.violations: list[Violation] = []
        self.compared: Counter[str] = Counter()
        for check in (
            self._confirmed_is_stored,
            self._rows_were_sent,
            self._contradictions_are_refused,
            self._order_is_kept,
            self._changes_are_announced,
            self._subscribers_agree,
            self._nothing_is_left,
            self._reads_are_fresh,
            self._answers_fit,
            self._work_goes_on,
            self._resources_are_given_back,
            self._secrets_stay_secret,
            self._faults_met_messages,
        ):
            check()

    @property
    def broken(self) -> set[str]:
        return {violation.invariant for violation in self.violations}

    def report(self) -> str:
        """What was compared, and for each violation the whole history of its message."""
        lines = [
            f"  {name:4} {'BROKEN' if name in self.broken else 'holds ':6} {self.compared[name]:>8} compared  {text}"
            for name, text in INVARIANTS.items()
        ]
        for name in INVARIANTS:
            some = [violation for violation in self.violations if violation.invariant == name]
            for violation in some[:_SHOWN]:
                lines += [f"{name}: {violation.what}", *(f"    {line}" for line in violation.history)]
            if len(some) > _SHOWN:
                lines.append(f"{name}: and {len(some) - _SHOWN} more")
        return "\n".join(lines)

    # Views of the ledger.

    @cached_property
    def _intents(self) -> dict[str, Entry]:
        """The first attempt at each message, by what it says: the same id may have come with another body."""
        first: dict[str, Entry] = {}
        for entry in self._evidence.ledger:
            if entry.what == "intent":
                first.setdefault(f"{entry.message_id} {entry.kind == 'other body'}", entry)
        return first

    @cached_property
    def _confirmed(self) -> set[tuple[int, int]]:
        return {(e.bot, e.seq) for e in self._evidence.ledger if e.verdict == "confirmed"}

    @cached_property
    def _trades_by_key(self) -> dict[str, list[dict[str, Any]]]:
        return _grouped(self._evidence.trades, "ex_trade_id")

    @cached_property
    def _logs_by_key(self) -> dict[str, list[dict[str, Any]]]:
        return _grouped(self._evidence.logs, "message")

    @cached_property
    def _letters_by_id(self) -> dict[str, list[dict[str, Any]]]:
        return _grouped(self._evidence.letters, "message_id")

    @cached_property
    def _distinct(self) -> dict[str, list[dict[str, Any]]]:
        """What each subscriber heard, in the order in which it came first, without repetitions."""
        distinct: dict[str, dict[str, dict[str, Any]]] = {who: {} for who in self._evidence.heard}
        for who, heard in self._evidence.heard.items():
            for event in heard:
                distinct[who].setdefault(event["event_id"], event)
        return {who: list(events.values()) for who, events in distinct.items()}

    def _fail(self, invariant: str, what: str, *, message_id: str = "", key: str = "") -> None:
        shown = sum(violation.invariant == invariant for violation in self.violations)
        history = self._history(message_id, key) if shown < _SHOWN and (message_id or key) else ()
        self.violations.append(Violation(invariant, what, history))

    def _history(self, message_id: str, key: str) -> tuple[str, ...]:
        """Everything that is known of a message, wherever it is noted."""
        evidence = self._evidence
        lines = [
            (
                entry.at,
                f"{entry.at / 1e9:.3f} {entry.what} {entry.kind} {entry.verdict} {entry.message_id} {entry.body}",
            )
            for entry in evidence.ledger
            if entry.what != "read"
            and ((message_id and entry.message_id == message_id) or (key and entry.key == key))
        ]
        faults = [(fault.began, f"{fault.began / 1e9:.3f} fault {fault.name}") for fault in evidence.faults]
        if lines:
            first, last = lines[0][0] - 10**9, lines[-1][0] + 10**10
            lines += [fault for fault in faults if first <= fault[0] <= last]
        text = [line for _, line in sorted(lines)]
        text += [f"row {_short(row)}" for row in (*self._trades_by_key.get(key, ()), *self._logs_by_key.get(key, ()))]
        text += [f"dead letter {_short(row)}" for row in self._letters_by_id.get(message_id, ())]
        if message_id:
            text.append(f"inbox: {'knows it' if message_id in evidence.inbox else 'does not know it'}")
            for who, events in self._distinct.items():
                told = [e for e in events if message_id in e["causation_ids"]]
                text.append(f"{who} heard {[(e['type'], e['sequence'], e['event_id']) for e in told]}")
        return tuple(text)

    # The invariants.

    def _confirmed_is_stored(self) -> None:
        for entry in self._intents.values():
            if (entry.bot, entry.seq) not in self._confirmed:
                continue
            self.compared["I1"] += 1
            if entry.expect == "refused":
                if not self._letters_by_id.get(entry.message_id):
                    which = "I4" if entry.kind in ("other body", "dearer") else "I1"
                    self._fail(which, f"{entry.kind}: no dead letter", message_id=entry.message_id, key=entry.key)
            elif not self._effects(entry):
                self._fail("I1", f"{entry.kind} {entry.key}: lost", message_id=entry.message_id, key=entry.key)

    def _effects(self, entry: Entry) -> int:
        match entry.command:
            case "record_trade":
                return len(self._trades_by_key.get(entry.key, ()))
            case "save_bot_log":
                return len(self._logs_by_key.get(entry.key, ()))
        return int(entry.message_id in self._evidence.inbox)

    def _rows_were_sent(self) -> None:
        sent = {entry.key: entry for entry in self._intents.values() if entry.expect == "applied"}
        for key, rows in (*self._trades_by_key.items(), *self._logs_by_key.items()):
            self.compared["I3"] += 1
            if len(rows) > 1:
                message_id = sent[key].message_id if key in sent else ""
                self._fail("I3", f"{key}: {len(rows)} rows", message_id=message_id, key=key)
            self.compared["I2"] += 1
            entry = sent.get(key)
            if entry is None:
                self._fail("I2", f"{key}: nobody sent it", key=key)
                continue
            self.compared["I4"] += 1
            said = json.loads(entry.body)
            if said != (found := {name: _as_sent(rows[0][name]) for name in said}):
                self._fail("I4", f"{key}: is {found}", message_id=entry.message_id, key=key)
        ids = {entry.message_id for entry in self._intents.values()}
        for row in self._evidence.letters:
            if row["message_id"] not in ids:
                self._fail("I2", f"dead letter {_short(row)}: nobody sent it")

    def _contradictions_are_refused(self) -> None:
        refused = {entry.message_id for entry in self._intents.values() if entry.expect == "refused"}
        for row in self._evidence.letters:
            self.compared["I4"] += 1
            if row["message_id"] not in refused:
                self._fail("I1", f"refused for {row['code']} {row['field']}", message_id=row["message_id"])
        for message_id, letters in self._letters_by_id.items():
            # Each other content under a known id is a contradiction of its own.
            if len({letter["body_hash"] for letter in letters}) < len(letters):
                self._fail("I3", f"{len(letters)} dead letters", message_id=message_id)

    def _order_is_kept(self) -> None:
        places = {entry.key: entry for entry in self._intents.values() if entry.expect == "applied"}
        for rows, key, number in (
            (self._evidence.trades, "ex_trade_id", "trade_id"),
            (self._evidence.logs, "message", "log_id"),
        ):
            by_bot: defaultdict[int, list[Entry]] = defaultdict(list)
            for row in sorted(rows, key=lambda row: row[number]):
                if row[key] in places:
                    by_bot[places[row[key]].bot].append(places[row[key]])
            for entries in by_bot.values():
                for earlier, later in pairwise(entries):
                    self.compared["I5"] += 1
                    if earlier.seq > later.seq:
                        what = f"{later.key} was stored after {earlier.key}"
                        self._fail("I5", what, message_id=later.message_id, key=later.key)

    def _changes_are_announced(self) -> None:
        told: defaultdict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        for event in self._distinct["steady"]:
            for change in event["changes"]:
                told[event["type"], next(iter(change["key"].values()))].append(change)
        expected = {
            **{("trade.recorded", row["trade_id"]): row for row in self._evidence.trades},
            **{("bot_log.saved", row["log_id"]): row for row in self._evidence.logs},
            **{("command.rejected", row["dead_letter_id"]): row for row in self._evidence.letters},
        }
        for place, row in expected.items():
            self.compared["I6"] += 1
            if len(changes := told.pop(place, [])) != 1:
                key = row.get("ex_trade_id") or row.get("message") or ""
                self._fail("I6", f"{place}: announced {len(changes)} times", key=key)
        for symbol, version in self._evidence.symbols.items():
            first = self._evidence.first_symbols[symbol]
            versions = [change["version"] for change in told.pop(("symbol.updated", symbol), [])]
            self.compared["I6"] += len(versions)
            if versions != list(range(first + 1, version + 1)):
                gaps = sorted(set(range(first + 1, version + 1)) ^ set(versions))[:10]
                self._fail("I6", f"symbol {symbol} at {version}: out of order or missing versions {gaps}")
        for place in told:
            self._fail("I6", f"{place}: announced, and not there")

    def _subscribers_agree(self) -> None:
        bodies: dict[str, str] = {}
        for who, heard in self._evidence.heard.items():
            for event in heard:
                text = json.dumps({**event, "sequence": None}, sort_keys=True)
                if bodies.setdefault(event["event_id"], text) != text:
                    self._fail("I6", f"event {event['event_id']} came with another body")
            sequences: defaultdict[str, list[int]] = defaultdict(list)
            for event in self._distinct[who]:
                sequences[event["type"]].append(event["sequence"])
            for kind, numbers in sequences.items():
                self.compared["I6"] += len(numbers)
                if (gaps := _gaps(numbers)) != []:
                    self._fail("I6", f"{who}: numbers of {kind} do not follow each other at {gaps[:5]}")
        everything = {event["event_id"] for event in self._distinct["steady"]}
        for who in ("flaky", "late"):
            mine = [event["event_id"] for event in self._distinct.get(who, [])]
            missed = everything - set(mine) if who == "flaky" else set()
            if missed:
                self._fail("I6", f"{who} missed {len(missed)} of {len(everything)} events")
            if unknown := set(mine) - everything:
                self._fail("I6", f"{who} heard {len(unknown)} events that steady did not")

    def _nothing_is_left(self) -> None:
        evidence = self._evidence
        if not evidence.settled:
            self._fail("I7", "work did not come to an end in time")
        for queue, messages in evidence.left_in_queues.items():
            self.compared["I7"] += 1
            if messages:
                self._fail("I7", f"{messages} messages in {queue}")
        if evidence.left_in_outbox:
            self._fail("I7", f"{evidence.left_in_outbox} events in the outbox")
        for entry in self._intents.values():
            if (entry.bot, entry.seq) in self._confirmed:
                self.compared["I7"] += 1
                if entry.message_id not in evidence.inbox:
                    self._fail("I7", f"{entry.kind}: not in the inbox", message_id=entry.message_id, key=entry.key)
        if evidence.exit_code:
            self._fail("I7", f"the service ended with {evidence.exit_code}")

    def _reads_are_fresh(self) -> None:
        evidence = self._evidence
        history = history_of(evidence.ledger, evidence.first_symbols, self._distinct["steady"])
        self.compared["I8"] += history.reads
        for guarantee, key, read in history.violations():
            when = f"from {read.began / 1e9:.3f} to {read.ended / 1e9:.3f} s"
            self._fail("I8", f"version {read.version} of {key}, read {when}: {_NOT_FRESH[guarantee]}")
        for symbol, version in self._evidence.cached.items():
            self.compared["I8"] += 1
            if version != self._evidence.symbols[symbol]:
                self._fail(
                    "I8", f"symbol {symbol}: a cache holds {version}, the table {self._evidence.symbols[symbol]}"
                )

    def _answers_fit(self) -> None:
        intents = {entry.message_id: entry for entry in self._intents.values() if entry.kind in ("call", "update")}
        for entry in self._evidence.ledger:
            if entry.what == "reply":
                self.compared["I9"] += 1
                asked = intents[entry.message_id]
                if asked.key != entry.key:
                    what = f"{asked.kind} {asked.key} was answered with {entry.key}"
                    self._fail("I9", what, message_id=entry.message_id)

    def _work_goes_on(self) -> None:
        for fault in self._evidence.faults:
            self.compared["I10"] += 1
            if fault.recovered is None:
                self._fail("I10", f"nothing was stored after {fault.name}")

    def _resources_are_given_back(self) -> None:
        self.compared["I11"] += sum(self._evidence.sessions.values()) + 1
        for state, number in self._evidence.sessions.items():
            self._fail("I11", f"{number} connections to the database left behind, {state}")
        for queue, number in self._evidence.consumers.items():
            self.compared["I11"] += 1
            if number != 1:
                self._fail("I11", f"{queue} has {number} consumers of one service")

    def _secrets_stay_secret(self) -> None:
        for name, content in self._evidence.artefacts.items():
            self.compared["I12"] += 1
            if CANARY.encode() in content:
                self._fail("I12", f"{name} holds the secret")

    def _faults_met_messages(self) -> None:
        met = meetings(self._evidence.ledger, self._evidence.faults)
        self.compared["I13"] += len(self._evidence.faults)
        for name, times in met.items():
            if times < self._meetings:
                self._fail("I13", f"{name} met something under way {times} times, not {self._meetings}")


def meetings(ledger: Iterable[Entry], faults: Iterable[Fault]) -> Counter[str]:
    """How often each kind of fault came while a bot waited to hear of a message."""
    spans: list[tuple[int, int]] = []
    open_: dict[tuple[int, str], int] = {}
    for entry in ledger:
        if entry.what == "intent":
            open_.setdefault((entry.bot, entry.message_id), entry.at)
        elif entry.what == "verdict":
            spans.append((open_.pop((entry.bot, entry.message_id), entry.at), entry.at))
    met: Counter[str] = Counter()
    for fault in faults:
        met[fault.name] += any(began <= fault.ended and fault.began <= ended for began, ended in spans)
    return met


def _grouped(rows: Iterable[Mapping[str, Any]], column: str) -> dict[str, list[dict[str, Any]]]:
    grouped: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[row[column]].append(dict(row))
    return dict(grouped)


def _as_sent(value: Any) -> Any:
    return format(value, "f") if isinstance(value, Decimal) else value


def _gaps(numbers: Sequence[int]) -> list[tuple[int, int]]:
    return [(one, other) for one, other in pairwise(numbers) if other != one + 1]


def _short(row: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in row.items() if value is not None}, default=str)[:400]
