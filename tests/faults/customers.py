"""Bots that publish, ask, repeat and contradict themselves, and readers of a cache: a process that may be killed.

``python -m tests.faults.customers JSON`` runs until SIGTERM; started again with the same ledger, it first sends
everything again that it does not know the outcome of, the same bytes under the same ids.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel

from tests.faults import planted
from tests.faults.ledger import Entry, Ledger, read


class Desk(BaseModel):
    """Who a bot trades for."""

    uid: int
    bot_id: int
    ex_id: int
    cat_ex_id: int
    symbol_id: int
    symbol: str


class Plan(BaseModel):
    """What the customers are to do."""

    url: str
    readers_url: str
    redis_url: str
    ledger: Path
    desks: list[Desk]
    seed: int
    pause: float
    bug: str | None = None
    with_slow_commits: bool = False
    """Whether some trades say that their commit takes long or fails, as triggers of the database make it."""


CANARY: Final = "hunter2-do-not-tell"
_SECONDS_TO_BE_FOUND_OUT: Final = 6.5

# What a bot does next, and how often. Sums up to 100.
MIX: Final = {
    "trade": 51,
    "log": 20,
    "update": 10,
    "call": 6,
    "again": 4,
    "new id": 3,
    "dearer": 2,
    "other body": 1,
    "nobody": 1,
    "secret": 1,
    "slow": 1,
}


class Bot:
    """Sends one message after the other, and the next only when it knows what became of the last."""

    def __init__(self, number: int, desk: Desk, ledger: Ledger, plan: Plan, client: Any) -> None:
        self._number = number
        self._desk = desk
        self._ledger = ledger
        self._client = client
        self._plan = plan
        self._random = random.Random(plan.seed * 1_000 + number)
        self._seq = 0
        self._past: list[Entry] = []

    def remember(self, entries: list[Entry]) -> list[Entry]:
        """Go on where an earlier process stopped; gives what it did not know the outcome of."""
        mine = [entry for entry in entries if entry.bot == self._number]
        self._seq = max((entry.seq for entry in mine), default=0)
        known = {entry.message_id for entry in mine if entry.verdict == "confirmed"}
        return list({e.message_id: e for e in mine if e.what == "intent" and e.message_id not in known}.values())

    async def run(self, open_ends: list[Entry], stopping: asyncio.Event) -> None:
        for entry in open_ends:
            await self._deliver(entry)
        kinds, weights = list(MIX), list(MIX.values())
        while not stopping.is_set():
            kind = self._random.choices(kinds, weights)[0]
            await self._do("trade" if kind == "slow" and not self._plan.with_slow_commits else kind)
            await asyncio.sleep(self._random.uniform(0, 2 * self._plan.pause))

    async def _do(self, kind: str) -> None:
        from contracts.client import new_message_id  # noqa: PLC0415 - after bugs are planted

        self._seq += 1
        new_id = str(new_message_id())
        match kind:
            case "trade" | "call" | "slow":
                await self._deliver(self._trade(kind, new_id))
            case "log":
                entry = f"{self._number}:{self._seq}"
                body = {"bot_id": self._desk.bot_id, "message": entry}
                await self._deliver(self._entry(kind, new_id, "save_bot_log", body, key=entry))
            case "update":
                updates = {"decimals": self._seq % 9}
                body = {"symbol_id": self._desk.symbol_id, "updates": updates}
                await self._deliver(self._entry(kind, new_id, "update_symbol", body, key=str(self._desk.symbol_id)))
            case "nobody":
                await self._deliver(self._trade(kind, new_id, expect="refused", bot_id=2**31 - 1))
            case "secret":
                await self._deliver(self._trade(kind, new_id, expect="refused", api_key=CANARY))
            case "again" if self._past:
                await self._deliver(self._about(kind, self._random.choice(self._past), new_id))
            case _ if trades := [past for past in self._past if past.command == "record_trade"]:
                await self._deliver(self._about(kind, self._random.choice(trades), new_id))

    def _about(self, kind: str, past: Entry, new_id: str) -> Entry:
        """Something about a message that was sent before: the same, or a contradiction to it."""
        body = json.loads(past.body)
        match kind:
            case "again":
                return self._entry(kind, past.message_id, past.command, body, key=past.key, expect="duplicate")
            case "new id":
                return self._entry(kind, new_id, past.command, body, key=past.key, expect="duplicate")
            case "dearer":
                dearer = {**body, "price": "9.5"}
                return self._entry(kind, new_id, past.command, dearer, key=past.key, expect="refused")
        other = {**body, "ex_trade_id": f"{self._number}-{self._seq}"}
        return self._entry(kind, past.message_id, past.command, other, expect="refused")

    def _trade(self, kind: str, message_id: str, *, expect: str = "applied", **changes: Any) -> Entry:
        key = f"{self._number}-{self._seq}"
        body = {
            **{name: getattr(self._desk, name) for name in ("uid", "bot_id", "ex_id", "symbol_id")},
            "side": self._random.choice(("buy", "sell")),
            "size": f"{self._random.randint(1, 10**6) / 1000:.3f}",
            "price": f"{self._random.randint(1, 10**6) / 100000:.5f}",
            "ex_trade_id": key,
            **changes,
        }
        if kind == "slow":
            body["fee_currency"] = "SLOW" if self._seq % 2 else "NEVER"
            expect = "applied" if self._seq % 2 else "refused"
        return self._entry(kind, message_id, "record_trade", body, key=key, expect=expect)

    def _entry(
        self,
        kind: str,
        message_id: str,
        command: str,
        body: dict[str, Any],
        *,
        key: str = "",
        expect: str = "applied",
    ) -> Entry:
        return Entry(
            what="intent",
            bot=self._number,
            seq=self._seq,
            at=0,
            kind=kind,
            expect=expect,
            message_id=message_id,
            command=command,
            body=json.dumps(body),
            key=key,
        )

    async def _deliver(self, entry: Entry) -> None:
        """Send until it is known that it arrived."""
        from contracts.errors import NotConfirmed, Refusal, Unroutable  # noqa: PLC0415 - after bugs are planted

        told = entry.model_dump(exclude={"what", "bot", "seq", "at"}, exclude_defaults=True)
        while True:
            self._ledger.note("intent", self._number, entry.seq, **told)
            try:
                await self._send(entry)
                verdict = "confirmed"
            except Unroutable:
                verdict = "returned"
            except NotConfirmed:
                verdict = "unknown"
            except Refusal as refusal:
                # An answer, even this one, says that it arrived; no answer says nothing.
                verdict = "unknown" if refusal.code == "timeout" else "confirmed"
            self._ledger.note("verdict", self._number, entry.seq, message_id=entry.message_id, verdict=verdict)
            if verdict == "confirmed":
                break
            await asyncio.sleep(0.1)
        if entry.kind in ("trade", "call", "log") and entry.expect == "applied":
            self._past = [*self._past[-49:], entry]

    async def _send(self, entry: Entry) -> None:
        command = _command(entry)
        message_id = UUID(entry.message_id)
        if entry.kind not in ("call", "update"):
            await self._client.publish(command, message_id=message_id, timeout=15)
            return
        answer, meta = await self._client.call_with_meta(command, message_id=message_id, timeout=15)
        key = answer.ex_trade_id if entry.kind == "call" else str(answer.symbol_id)
        self._ledger.note(
            "reply",
            self._number,
            entry.seq,
            message_id=entry.message_id,
            key=key,
            version=getattr(answer, "row_version", None) if entry.kind == "update" else None,
            is_removed=meta.cache is None and not meta.duplicate,
            durable=False,
        )


def _command(entry: Entry) -> Any:
    """The command, also one that its own class would not take."""
    command = _as_is(entry.command).model_construct()
    command._body = entry.body
    return command


@cache
def _as_is(name: str) -> Any:
    from pydantic import PrivateAttr  # noqa: PLC0415

    from contracts.base import COMMAND_TYPES  # noqa: PLC0415 - after bugs are planted

    kind = COMMAND_TYPES[name]

    class AsIs(kind):  # type: ignore[misc, valid-type]
        _body: str = PrivateAttr("")

        def model_dump_json(self, **_: Any) -> str:
            return self._body

    return AsIs


class Reader:
    """Reads symbols through a cache: the service's own, or another service's, which takes its time to load."""

    def __init__(
        self, number: int, cache: str, desks: list[Desk], ledger: Ledger, read_symbol: Any, *, delay: float = 0
    ) -> None:
        self._number = number
        self._cache = cache
        self._desks = desks
        self._delay = delay
        self._ledger = ledger
        self._read = read_symbol
        self._random = random.Random(number)

    async def run(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            desk = self._random.choice(self._desks)
            began = time.monotonic_ns()
            version = None
            with suppress(Exception):  # no answer is no stale answer
                version = await self._read(desk, self._delay)
            if version is not None:
                self._ledger.note(
                    "read",
                    self._number,
                    0,
                    key=str(desk.symbol_id),
                    version=version,
                    cache=self._cache,
                    process=os.getpid(),
                    began=began,
                    durable=False,
                )
            # What a slow one has stored has to be seen before it evicts it.
            await asyncio.sleep(0.02 + self._delay / 3)


async def run(plan: Plan) -> None:
    # After bugs are planted.
    from contracts import GetSymbol, SymbolView, cache_keys  # noqa: PLC0415
    from contracts.client import PersistenceClient  # noqa: PLC0415
    from contracts.invalidator import CacheInvalidator  # noqa: PLC0415
    from contracts.leased_cache import LeasedCache, connect  # noqa: PLC0415

    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    past = list(read(plan.ledger))
    ledger = Ledger(plan.ledger)
    redis = connect(plan.redis_url, timeout=0.2)
    client = PersistenceClient(plan.url, app_id="bots")
    asking = PersistenceClient(plan.readers_url, app_id="readers", answer_timeout=3)

    async def note_applied(event: Any) -> None:
        for change in event.changes:
            if change.after is not None:
                key = str(change.after.symbol_id)
                ledger.note("applied", -1, 0, key=key, version=change.version, cache="readers", durable=False)

    invalidator = CacheInvalidator(
        plan.readers_url,
        redis,
        queue="readers.cache",
        namespace="readers",
        bindings=["symbol.#", "symbols.#"],
        on_event=note_applied,
    )
    leased = LeasedCache(redis, namespace="readers", certificate=invalidator.certificate, ttl=60)
    task = asyncio.create_task(invalidator.run())

    async def of_service(desk: Desk, _: float) -> int | None:
        view = await asking.lookup(GetSymbol(symbol=desk.symbol, cat_ex_id=desk.cat_ex_id))
        return view.row_version if view is not None else None

    async def of_cache(desk: Desk, delay: float) -> int:
        async def load() -> bytes:
            view = await asking.lookup(GetSymbol(symbol=desk.symbol, cat_ex_id=desk.cat_ex_id), fresh=True)
            await asyncio.sleep(delay)
            assert view is not None
            return view.model_dump_json().encode()

        key = cache_keys.symbol(desk.symbol, desk.cat_ex_id)
        if delay:
            await leased.invalidate([key])  # as if it had been evicted
        value = await leased.get(key, load)
        return SymbolView.model_validate_json(value or b"null").row_version

    bots = [Bot(number, desk, ledger, plan, client) for number, desk in enumerate(plan.desks)]
    # One is nearly always loading, slowly, what the others read.
    contended = plan.desks[:1]
    readers = [
        Reader(100, "service", plan.desks, ledger, of_service),
        Reader(101, "readers", contended, ledger, of_cache, delay=0.3),
        Reader(102, "readers", contended, ledger, of_cache),
        Reader(103, "readers", contended, ledger, of_cache),
    ]
    enough = asyncio.Event()
    reading = asyncio.gather(*(reader.run(enough) for reader in readers))
    try:
        await asyncio.gather(*(bot.run(bot.remember(past), stopping) for bot in bots))
        # Whoever still reads an old value now will be found out.
        await asyncio.sleep(_SECONDS_TO_BE_FOUND_OUT)
        enough.set()
        await reading
    finally:
        reading.cancel()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.gather(client.close(), asking.close(), invalidator.close(), return_exceptions=True)
        await redis.aclose()


if __name__ == "__main__":
    its_plan = Plan.model_validate_json(sys.argv[1])
    if its_plan.bug is not None:
        planted.plant(its_plan.bug)
    asyncio.run(run(its_plan))
