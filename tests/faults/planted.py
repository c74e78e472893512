"""Bugs put into the code on purpose, in a process of the test only, to see that the checker finds each of them.

A bug is a change of the source, made while a module is compiled. One that no longer fits the source is an error.
"""

import ast
import runpy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tests.faults.points import compile_changed


@dataclass(frozen=True)
class Bug:
    """What is replaced in which module, and which invariants have to notice."""

    changes: Mapping[str, tuple[tuple[str, str], ...]]
    found_by: frozenset[str]
    statement: str = ""
    """What has to happen to the database first."""
    side: str = "service"
    """Whose code it is: the service's, or that of its customers."""


def _bug(module: str, *changes: tuple[str, str], found_by: str, statement: str = "", side: str = "service") -> Bug:
    return Bug({module: changes}, frozenset(found_by.split()), statement, side)


_ACKNOWLEDGE: Final = "await self._acknowledge(batch)\n"
_COMMIT: Final = "        replies = await self._until_committed([delivery.task for delivery in batch])\n"
_REMEMBER: Final = "            await inbox.remember(session, attempt.handled)\n"
_COMMITTED: Final = "        if self._remove is not None and (keys"
_SENT: Final = "        numbers = {row.type: sequences[row.type] for row in rows}\n"
_CONFIRMED: Final = "        await self._publisher.confirmed(sent)\n"
_SEND: Final = "        sent = await self._publisher.send_events("
_OTHER_TRANSACTION: Final = """\
{indent}if changes:
{indent}    from sqlalchemy import insert
{indent}    from service.models import OutboxEvent
{indent}    async with self._sessions.begin() as other:
{indent}        await other.execute(insert(OutboxEvent), [outbox._row(run) for run in outbox._runs(changes)])
"""
_OLDEST: Final = "    return (await session.execute(_OLDEST, asked)).all()\n"
_DELETE_FIRST: Final = """\
        if rows:
            async with self._autocommit() as session:
                await _delete(session, rows, {row.type: sequences[row.type] for row in rows}, term)
"""
_AGAIN: Final = "                # Full jitter on a doubling base"
_UNDER_A_NEW_ID: Final = """\
                new = str(new_message_id())
                head = message.properties.replace(message.message_id.encode(), new.encode())
                message = message._replace(properties=head, message_id=new)
"""
_HELD: Final = (
    "                if not is_transient(error):\n                    raise\n                self.is_held = True"
)
_TAKE_CHANGES: Final = """\
            await inbox.remember(session, attempt.handled)
            from service import outbox
            changes = list(session.info.get(outbox._PENDING, []))
            session.info.get(outbox._PENDING, []).clear()
"""

BUGS: Final[Mapping[str, Bug]] = {
    "acknowledges before the commit": _bug(
        "service.consumers",
        (f"            {_ACKNOWLEDGE}", "            pass\n"),
        (_COMMIT, f"        {_ACKNOWLEDGE}{_COMMIT}"),
        found_by="I1",
    ),
    "publishes before the commit": _bug(
        "service.executor",
        (_REMEMBER, _TAKE_CHANGES + _OTHER_TRANSACTION.format(indent=" " * 12)),
        found_by="I6",
    ),
    "announces in a transaction of its own": _bug(
        "service.executor",
        (_REMEMBER, _TAKE_CHANGES),
        (_COMMITTED, _OTHER_TRANSACTION.format(indent=" " * 8) + _COMMITTED),
        found_by="I6",
    ),
    "forgets which messages it handled": _bug(
        "service.inbox",
        ("    return {row[0]: Handled(*row) for row in rows}", "    return {}"),
        ('CAST(:row_ids AS bigint[]))"', 'CAST(:row_ids AS bigint[])) ON CONFLICT DO NOTHING"'),
        ("payload_hash IS NOT NULL AND {which}", "payload_hash IS NOT NULL AND {which} ON CONFLICT DO NOTHING"),
        found_by="I3 I4",
    ),
    "knows a repetition by its message id only": Bug(
        {
            "service.repositories.trade_statements": (
                ("    ON CONFLICT (ex_id, ex_trade_id) WHERE ex_trade_id IS NOT NULL DO NOTHING\n", ""),
            ),
            "service.repositories.trade": (
                (
                    'index_elements=["ex_id", "ex_trade_id"], index_where=Trade.ex_trade_id.is_not(None)\n',
                    "\n",
                ),
            ),
        },
        frozenset({"I3"}),
        "DROP INDEX uq_trades_ex_id_ex_trade_id",
    ),
    "swallows another content under a known id": _bug(
        "service.executor",
        ("is_other = before is not None and before.payload_hash != task.payload_hash", "is_other = False"),
        found_by="I4",
    ),
    "takes a returned message for a stored one": _bug(
        "contracts.client",
        (
            "            except (PublishError, ChannelNotFoundEntity):\n",
            "            except PublishError:\n                return\n            except ChannelNotFoundEntity:\n",
        ),
        found_by="I1",
        side="customers",
    ),
    "acknowledges the newest delivery": _bug(
        "service.consumers",
        (_ACKNOWLEDGE, _ACKNOWLEDGE.replace("batch", "[*batch, *self._arrived]")),
        found_by="I1",
    ),
    "reads the outbox behind a watermark": _bug(
        "service.relay",
        ('_LEASE = "relay"\n', '_LEASE = "relay"\n_seen = [0]\n'),
        (_OLDEST, f"    return [row for row in {_OLDEST.split(maxsplit=1)[1].rstrip()} if row.id > _seen[0]]\n"),
        (_SENT, f"{_SENT}        _seen[0] = rows[-1].id if rows else _seen[0]\n"),
        found_by="I6 I7",
    ),
    "does not wait for confirms": _bug(
        "service.relay",
        (_CONFIRMED, ""),
        found_by="I6",
    ),
    "deletes and then publishes": _bug(
        "service.relay",
        (_SEND, f"{_DELETE_FIRST}{_SEND}"),
        found_by="I6",
    ),
    "sends again under a new id": _bug(
        "contracts.client",
        (
            _AGAIN,
            _UNDER_A_NEW_ID + _AGAIN,
        ),
        found_by="I3",
        side="customers",
    ),
    "gives held messages back": _bug(
        "service.consumers",
        (
            _COMMIT,
            """\
        try:
            replies = await self._executor.carry_out([delivery.task for delivery in batch])
        except Exception as error:
            if not is_transient(error):
                raise
            for delivery in batch:
                await delivery.channel.basic_nack(delivery.tag, requeue=True)
            return
""",
        ),
        found_by="I5",
    ),
    "caches without a lease": _bug(
        "contracts.leased_cache",
        (
            "is_stored = await self._store.swap(name, lease, entry.held, self._ttl_ms(key, entry))",
            "is_stored = await self._store._redis.set(name, entry.held, px=self._ttl_ms(key, entry))",
        ),
        found_by="I8",
        side="customers",
    ),
    "invalidates before the commit": _bug(
        "service.outbox",
        (
            "    session.execute(insert(OutboxEvent), rows)\n",
            """\
    import os, redis
    with redis.Redis.from_url(os.environ["REDIS_URL"]) as cache:
        for key in {key for change in changes for key in change.stale_keys}:
            cache.unlink("none", *cache.scan_iter(f"c:*:*:*:{key}"))
    rows = [row | {"stale_keys": []} for row in rows]
    session.execute(insert(OutboxEvent), rows)
""",
        ),
        found_by="I8",
    ),
    "answers whoever asked last": _bug(
        "service.consumers",
        (
            "received.answerable, received.correlation_id, body",
            "received.answerable, batch[-1].task.received.correlation_id, body",
        ),
        found_by="I9",
    ),
    "acknowledges whatever happened": _bug(
        "service.consumers",
        (
            _HELD,
            "                return [Reply(ok=True) for _ in batch]",
        ),
        found_by="I1",
    ),
    "takes a lost link for a confirm": _bug(
        "contracts.wire",
        ("                batch.confirmed.set_exception(error)", "                batch.confirmed.set_result(None)"),
        found_by="I6",
    ),
}


def plant(name: str, bugs: Mapping[str, Bug] = BUGS) -> None:
    """Have this process run with a bug, from before anything of it is imported."""
    bug = bugs[name]
    compile_changed(frozenset(bug.changes), lambda module, source: ast.parse(changed(module, source, bug)))


def changed(module: str, source: str, bug: Bug) -> str:
    """The source of a module with the bug in it."""
    for old, new in bug.changes[module]:
        if source.count(old) != 1:
            raise ValueError(f"{module} has {source.count(old)} places for this bug: {old!r}")
        source = source.replace(old, new)
    return source


if __name__ == "__main__":
    plant(sys.argv.pop(1))
    sys.argv[0] = "persistence"
    runpy.run_module("service", run_name="__main__")
