"""Carries out commands: many at once, each with its effects, its inbox entry and its events in one commit.

Nothing here knows the broker. There are two ways to commit. Plain commands at the beginning of a batch are stored by
one statement for each type, which is a transaction by itself (`Executor._at_once`). Whatever is left, because it is
of another kind or has to be looked at by itself, is carried out in one transaction (`Executor._attempt`).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.base import COMMAND_TYPES, Command, ErrorBody, Meta, Reply, Request, answer_adapter
from contracts.errors import ErrorCode, Refusal
from contracts.topology import MAX_CHANGES_PER_EVENT
from service import dead_letters, inbox, producers
from service.commands import HANDLERS
from service.database import AutocommitSessions, SessionMaker
from service.errors import is_transient, reason, refusal_for
from service.inbox import Handled, Sent
from service.observability import COMMANDS_HANDLED
from service.outbox import set_cause, stale_keys
from service.received import Received
from service.registry import Existing, Handler
from service.removal import Remove
from service.senders import Senders
from service.unit_of_work import UnitOfWork

log = structlog.get_logger()

REPLAY_HEADER = "x-replay"
"""Set by ``persistence dead-letters replay``: carry out a message although it was refused before."""


_DONE: Final = Reply(ok=True)
_TAKEN: Final = Refusal(ErrorCode.CONFLICT, "was used for a message with another content", field="message_id")


@dataclass(eq=False, slots=True)
class Task:
    """A message with what reading it came to; `Executor.read` makes it."""

    received: Received
    message_id: UUID | None = None
    payload_hash: bytes = b""
    request: Request[Any] | None = None
    refusal: Refusal | None = None
    is_plain: bool = False
    """Whether it may be carried out with its like: its handler takes many, and nobody waits for its answer."""
    reply: Reply | None = None
    is_committed: bool = False
    """Whether it is done with, whatever becomes of the rest of its batch."""

    @property
    def identity(self) -> UUID:
        """The message id of a task that has one."""
        assert self.message_id is not None  # noqa: S101 - who asks has seen that it has
        return self.message_id

    @property
    def forbidden(self) -> Refusal | None:
        """Why its sender may not send it, if that is so."""
        return self.refusal if self.refusal is not None and self.refusal.code is ErrorCode.FORBIDDEN else None


class Executor:
    """Turns received commands into rows and replies."""

    def __init__(
        self,
        sessions: SessionMaker,
        handlers: Mapping[type[Command[Any]], Handler] = HANDLERS,
        *,
        require_user: bool = False,
        senders: Senders | None = None,
        remove: Remove | None = None,
        autocommit: AutocommitSessions | None = None,
    ) -> None:
        """``remove`` takes what a commit made stale out of the cache, before the commit is told of.

        ``autocommit`` is for who keeps connections; they are of the same database as ``sessions``.
        """
        self._remove = remove
        self._sessions = sessions
        self._autocommit = autocommit or AutocommitSessions(sessions)
        self._senders = senders or Senders()
        self._handlers = handlers
        self._require_user = require_user

    async def execute(self, batch: Sequence[Received]) -> list[Reply]:
        """Read and carry out a batch."""
        return await self.carry_out([self.read(received) for received in batch])

    def read(self, received: Received) -> Task:
        """Decode a message, which needs no server, so it can be done while another batch is being committed."""
        task = Task(received)
        task.payload_hash = inbox.payload_hash(received.command, received.body)
        try:
            task.message_id = received.identity()
            task.request = received.read_as(COMMAND_TYPES, require_user=self._require_user)
        except Refusal as refusal:
            task.refusal = refusal
        except Exception as error:  # noqa: BLE001 - whatever a body makes of the decoder, it is one message's matter
            task.refusal = _defect(received, error)
        else:
            handler = self._handlers[type(task.request)] if isinstance(task.request, Command) else None
            task.is_plain = handler is not None and handler.many is not None and not received.reply_to
        return task

    async def carry_out(self, tasks: Sequence[Task]) -> list[Reply]:
        """Carry out messages in order; gives a reply for each when all is committed.

        No message is ever half done: its effects, its events, what the inbox remembers of it and, if it cannot
        succeed, its dead letter are of one commit. Raises only what `is_transient`; the same batch may be tried again
        then: what of it is known to be committed is left alone, and what may be is looked for in the inbox.
        """
        left = [task for task in tasks if not task.is_committed]
        await self._judge_senders(left)
        await self._in_order(left)
        return _report(tasks)

    async def can_commit(self) -> bool:
        """Whether the database stores something, seen by storing something and taking it away again."""
        try:
            async with self._sessions.begin() as session:
                await inbox.probe(session)
        except Exception as error:
            if is_transient(error):
                return False
            raise
        return True

    async def _in_order(self, tasks: Sequence[Task]) -> None:
        """The plain ones that a batch begins with at once, then the rest in one transaction."""
        left = await self._at_once(tasks)
        if not left:
            return
        try:
            await self._attempt(left)
        except Exception as error:
            if is_transient(error):
                raise
            await self._one_by_one(left, error)

    async def _at_once(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """Carry out what can be with one statement for each type, which commits by itself; gives what is left.

        Nothing overtakes what it may depend on: this ends at the first message that is not plain, and what a
        statement leaves alone comes next, in order.
        """
        runs = _leading_runs(tasks, self._handlers)
        if not runs:
            return tasks
        async with self._autocommit() as session:
            for run in runs:
                stored = await self._store(run, session)
                # Not before: a number counts as arrived when its message is done.
                await producers.note(session, (task.received.headers for task in stored))
                _are_committed(stored)
        return [task for task in tasks if not task.is_committed]

    async def _store(self, run: Sequence[Task], session: AsyncSession) -> list[Task]:
        """Carry out commands of one type with one statement; gives those that are done."""
        try:
            done = await _together(run, self._handlers, UnitOfWork(session))
        except Exception as error:
            if inbox.is_repetition(error):
                return []  # the transaction asks first which ones are known
            if is_transient(error):
                raise
            _taken_apart(run, error)
            done = {}
        stored = []
        for position, task in enumerate(run):
            if position in done:
                task.reply = _DONE
                stored.append(task)
            else:
                task.is_plain = False
        return stored

    async def _one_by_one(self, tasks: Sequence[Task], error: Exception) -> None:
        """The commit itself failed, so no savepoint could tell whose fault it was: commit each alone."""
        if len(tasks) > 1:
            for task in tasks:
                await self._in_order([task])
            return
        [task] = tasks
        task.refusal, task.is_plain = refusal_for(error) or _defect(task.received, error), False
        await self._attempt(tasks)

    async def _attempt(self, tasks: Sequence[Task]) -> None:
        # The one transaction: effects, events, inbox and dead letters of all these messages, or nothing.
        async with self._sessions.begin() as session:
            ids = {task.message_id for task in tasks if task.message_id is not None}
            known = await inbox.find(session, ids)
            token = await _transaction_id(session) if any(task.received.reply_to for task in tasks) else None
            attempt = _Attempt(session, self._handlers, known, token)
            for task in tasks:
                await attempt.take(task)
            await attempt.carry_out_runs()
            await inbox.remember(session, attempt.handled)
            await producers.note(session, (task.received.headers for task in tasks))
        _are_committed(tasks)
        if self._remove is not None and (keys := stale_keys(session)) and not await _is_done(self._remove, keys):
            for task in tasks:
                task.reply = _pending(task.reply)

    async def _judge_senders(self, tasks: Sequence[Task]) -> None:
        if not self._senders.are_limited:
            return
        read = [(task, task.request) for task in tasks if task.request is not None]
        async with self._sessions() as session:
            refusals = await self._senders.judge(
                session, [(task.received.user_id, request) for task, request in read]
            )
        for (task, _), refusal in zip(read, refusals, strict=True):
            if refusal is not None:
                task.request, task.refusal, task.is_plain = None, refusal, False


async def _is_done(remove: Remove, keys: Sequence[str]) -> bool:
    """Whether the cache certainly holds these no more. The commit stands whatever happens here."""
    try:
        return await remove(keys)
    except Exception:
        log.exception("cache_removal_failed")
        return False


def _are_committed(tasks: Iterable[Task]) -> None:
    for task in tasks:
        task.is_committed = True


def _leading_runs(tasks: Sequence[Task], handlers: Mapping[type[Command[Any]], Handler]) -> list[list[Task]]:
    """The plain messages that a batch begins with, by type, of those types that are stored at once."""
    runs: dict[type[Command[Any]], list[Task]] = {}
    ids: set[UUID | None] = set()
    for task in tasks:
        if not task.is_plain or task.message_id in ids:
            break
        run = runs.setdefault(type(task.request), [])  # type: ignore[arg-type]
        if len(run) == MAX_CHANGES_PER_EVENT:
            break
        run.append(task)
        ids.add(task.message_id)
    return [run for kind, run in runs.items() if handlers[kind].stores_at_once]


class _Attempt:
    """A batch on its way through one transaction."""

    def __init__(
        self,
        session: AsyncSession,
        handlers: Mapping[type[Command[Any]], Handler],
        known: dict[UUID, Handled],
        token: str | None,
    ) -> None:
        self._session = session
        self._work = UnitOfWork(session)
        self._handlers = handlers
        self._known = known
        self._token = token
        self._runs: dict[type[Command[Any]], list[Task]] = {}
        """Commands of a type that are carried out together, by type, in the order in which the types came up."""
        self._running: set[UUID] = set()
        self.handled: list[Handled] = []
        """What the inbox has to remember."""

    async def take(self, task: Task) -> None:
        """Carry out ``task`` after all before it that it may depend on, at once or together with its like."""
        run = self._runs.get(type(task.request), ())  # type: ignore[arg-type]
        if task.message_id in self._running or len(run) == MAX_CHANGES_PER_EVENT:
            await self.carry_out_runs()
        # Asked only now: the runs may have carried out the very same message, sent twice.
        if task.is_plain and task.message_id not in self._known:
            self._runs.setdefault(type(task.request), []).append(task)  # type: ignore[arg-type]
            self._running.add(task.identity)
        else:
            await self.carry_out_runs()
            await self._carry_out(task)

    async def carry_out_runs(self) -> None:
        """Carry out each run with one call, then one by one what that left over."""
        runs, self._runs, self._running = self._runs, {}, set()
        for run in runs.values():
            made = await self._carry_out_many(run)
            for position, task in enumerate(run):
                if position in made:
                    self._note(task, made[position])
                else:
                    await self._carry_out(task)

    def _note(self, task: Task, made: Any) -> None:
        """What one of many came to: the id of the row it made, or its answer."""
        done = partial(Handled, task.identity, task.received.command, task.payload_hash, refused=False)
        if isinstance(made, int):
            task.reply = _DONE
            handled = done(row_id=made)  # the statement that made the row has remembered it
        else:
            assert isinstance(task.request, Command)  # noqa: S101 - it is plain
            task.reply = _answered(task.request, made, self._token)
            handled = done(reply=task.reply.model_dump(mode="json"))
            self.handled.append(handled)
        self._known[task.identity] = handled

    async def _carry_out_many(self, run: list[Task]) -> Mapping[int, Any]:
        try:
            async with self._session.begin_nested():
                return await _together(run, self._handlers, self._work)
        except Exception as error:
            if is_transient(error):
                raise
            _taken_apart(run, error)
            return {}

    async def _carry_out(self, task: Task) -> None:
        received = task.received
        set_cause(self._session, task.message_id)
        before = self._known.get(task.message_id) if task.message_id is not None else None
        is_other = before is not None and before.payload_hash != task.payload_hash
        # Who may not send this is not told what came of the id, and touches neither inbox nor letters of it.
        if before is not None and (refusal := task.forbidden or (_TAKEN if is_other else None)):
            if is_other:
                await dead_letters.add(self._session, received, refusal)
            task.reply = _refused(refusal)
            return
        replay = before is not None and before.refused and REPLAY_HEADER in received.headers
        if before is not None and not replay:
            task.reply = await self._repeated(task, before)
            return
        reply = await self._effect(task)
        if isinstance(reply, Refusal):
            await (dead_letters.refused_again if replay else dead_letters.add)(self._session, received, reply)
            reply = _refused(reply)
        elif replay:
            await dead_letters.resolved(self._session, received)
        task.reply = reply
        if task.message_id is None:
            return
        kept = reply.model_dump(mode="json")
        handled = Handled(task.identity, received.command, task.payload_hash, refused=not reply.ok, reply=kept)
        self._known[task.identity] = handled
        if replay:
            await inbox.replace(self._session, handled)
        else:
            self.handled.append(handled)

    async def _repeated(self, task: Task, before: Handled) -> Reply:
        """The answer the message got the first time, or would have got had somebody asked."""
        first = Reply(ok=True)
        if before.reply is not None:
            first = Reply.model_validate(before.reply)
        elif before.row_id is not None and task.received.reply_to and isinstance(task.request, Command):
            recall = self._handlers[type(task.request)].recall
            assert recall is not None  # noqa: S101 - who makes rows for many can recall them
            row = await recall(before.row_id, self._work)
            if row is not None:
                first = _answered(task.request, row, None)
        return first.model_copy(update={"meta": first.meta.model_copy(update={"duplicate": True})})

    async def _effect(self, task: Task) -> Reply | Refusal:
        """What the handler answers, or why it does not; a failure takes back what the handler did, and no more."""
        if task.refusal is not None:
            return task.refusal
        assert isinstance(task.request, Command)  # noqa: S101 - reading gave a command or a refusal
        try:
            async with self._session.begin_nested():
                answer = await self._handlers[type(task.request)].one(task.request, self._work)
                return _answered(task.request, answer, self._token)
        except Exception as error:
            if is_transient(error):
                raise
            return refusal_for(error) or _defect(task.received, error)


async def _together(
    run: Sequence[Task], handlers: Mapping[type[Command[Any]], Handler], work: UnitOfWork
) -> Mapping[int, Any]:
    """What plain commands of one type came to, by position."""
    many = handlers[type(run[0].request)].many  # type: ignore[index]
    assert many is not None  # noqa: S101 - they are plain
    sent = Sent([task.identity for task in run], [task.payload_hash for task in run])
    return await many([task.request for task in run], sent, work)


def _taken_apart(run: Sequence[Task], error: Exception) -> None:
    """Whoever is at fault will say so when carried out alone. Slow, so worth a look if it happens often."""
    log.warning("batch_taken_apart", command=run[0].received.command, size=len(run), error=reason(error))


async def _transaction_id(session: AsyncSession) -> str:
    token = await session.scalar(select(func.pg_current_xact_id()))
    return str(token)


def _answered(request: Command[Any], result: Any, token: str | None) -> Reply:
    duplicate = isinstance(result, Existing)
    answer = result.answer if isinstance(result, Existing) else result
    return Reply(
        ok=True,
        data=answer_adapter(type(request)).dump_python(answer, mode="json"),
        meta=Meta(duplicate=duplicate, version=getattr(answer, "row_version", None), commit_token=token),
    )


def _pending(reply: Reply | None) -> Reply | None:
    """The answer, where the cache may still hold what is stale by now."""
    if reply is None or not reply.ok:
        return reply
    return reply.model_copy(update={"meta": reply.meta.model_copy(update={"cache": "pending"})})


def _refused(refusal: Refusal) -> Reply:
    return Reply(
        ok=False,
        error=ErrorBody(code=refusal.code, message=refusal.message, field=refusal.field, retryable=refusal.retryable),
    )


def _defect(received: Received, error: BaseException) -> Refusal:
    log.error("command_failed", command=received.command, message_id=received.message_id, exc_info=error)
    return Refusal(ErrorCode.INTERNAL, "the service failed on this message; its log says where")


def _report(tasks: Sequence[Task]) -> list[Reply]:
    """The replies of a committed batch, counted and, where they are refusals, logged."""
    outcomes: Counter[tuple[str, str]] = Counter()
    replies = []
    for task in tasks:
        assert task.reply is not None  # noqa: S101 - each was carried out
        replies.append(task.reply)
        error = task.reply.error
        outcome = error.code.value if error else "duplicate" if task.reply.meta.duplicate else "done"
        command = task.received.command
        outcomes[command if command in COMMAND_TYPES else "unknown", outcome] += 1
        if error is not None:
            log.warning(
                "command_refused",
                command=command[:100],
                message_id=task.received.message_id,
                code=outcome,
                field=error.field,
                reason=error.message,
            )
    for (command, outcome), number in outcomes.items():
        COMMANDS_HANDLED.labels(command=command, outcome=outcome).inc(number)
    return replies
