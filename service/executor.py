"""Carries out commands: a batch of them in one transaction, each with its effects, its inbox entry and its events.

Nothing here knows the broker. The transaction is opened and committed in `Executor._attempt`, and nowhere else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.base import COMMAND_TYPES, Command, ErrorBody, Meta, Reply, Request, answer_adapter
from contracts.errors import ErrorCode, Refusal
from service import dead_letters, inbox
from service.commands import HANDLERS
from service.database import SessionMaker
from service.errors import is_transient, refusal_for
from service.observability import COMMANDS_HANDLED
from service.outbox import set_cause
from service.received import Received
from service.registry import CommandHandler, Existing
from service.unit_of_work import UnitOfWork

log = structlog.get_logger()

REPLAY_HEADER = "x-replay"
"""Set by ``persistence dead-letters replay``: carry out a message although it was refused before."""


class _Isolate(Exception):  # noqa: N818 - a signal of this module
    """One message of the batch failed: begin again with a savepoint around each."""


@dataclass(slots=True)
class _Task:
    """A message with what reading it came to."""

    received: Received
    message_id: UUID | None = None
    request: Request[Any] | None = None
    refusal: Refusal | None = None


@dataclass(slots=True)
class _Handled:
    """What is known of a message id: from the inbox, or from earlier in the same batch."""

    payload_hash: bytes
    refused: bool
    reply: dict[str, Any] | None


class Executor:
    """Turns received commands into rows and replies."""

    def __init__(
        self,
        sessions: SessionMaker,
        handlers: Mapping[type[Command[Any]], CommandHandler] = HANDLERS,
        *,
        require_user: bool = False,
    ) -> None:
        self._sessions = sessions
        self._handlers = handlers
        self._require_user = require_user

    async def execute(self, batch: Sequence[Received]) -> list[Reply]:
        """Carry out ``batch`` in order and commit it; gives a reply for each message.

        A message that cannot succeed becomes a dead letter in the same commit as its neighbours' effects. Raises
        only what `is_transient`; nothing is committed then, and the same batch may be tried again.
        """
        tasks = [self._read(received) for received in batch]
        try:
            return await self._attempt(tasks, isolate=False)
        except _Isolate:
            pass
        try:
            return await self._attempt(tasks, isolate=True)
        except Exception as error:
            if is_transient(error):
                raise
            return await self._one_by_one(tasks, error)

    async def _one_by_one(self, tasks: list[_Task], error: Exception) -> list[Reply]:
        """The commit itself failed, so no savepoint could tell whose fault it was: commit each alone."""
        if len(tasks) > 1:
            return [reply for task in tasks for reply in await self.execute([task.received])]
        [task] = tasks
        task.refusal = refusal_for(error) or _defect(task.received, error)
        return await self._attempt(tasks, isolate=True)

    def _read(self, received: Received) -> _Task:
        task = _Task(received)
        try:
            task.message_id = received.identity()
            task.request = received.read_as(COMMAND_TYPES, require_user=self._require_user)
        except Refusal as refusal:
            task.refusal = refusal
        return task

    async def _attempt(self, tasks: Sequence[_Task], *, isolate: bool) -> list[Reply]:
        # The one transaction: effects, events, inbox and dead letters of the whole batch, or nothing.
        async with self._sessions.begin() as session:
            ids = {task.message_id for task in tasks if task.message_id is not None}
            known = {
                message_id: _Handled(row.payload_hash, row.refused, row.reply)
                for message_id, row in (await inbox.find(session, ids)).items()
            }
            token = await _transaction_id(session) if any(task.received.reply_to for task in tasks) else None
            new: list[dict[str, Any]] = []
            replies = [await self._carry_out(session, task, known, new, token, isolate=isolate) for task in tasks]
            await inbox.remember(session, new)
        for task, reply in zip(tasks, replies, strict=True):
            _report(task, reply)
        return replies

    async def _carry_out(
        self,
        session: AsyncSession,
        task: _Task,
        known: dict[UUID, _Handled],
        new: list[dict[str, Any]],
        token: str | None,
        *,
        isolate: bool,
    ) -> Reply:
        set_cause(session, task.message_id)
        received = task.received
        digest = inbox.payload_hash(received.command, received.body)
        before = known.get(task.message_id) if task.message_id is not None else None
        if before is not None and before.payload_hash != digest:
            refusal = Refusal(ErrorCode.CONFLICT, "was used for a message with another content", field="message_id")
            await dead_letters.add(session, received, refusal)
            return _refused(refusal)
        replay = before is not None and before.refused and REPLAY_HEADER in received.headers
        if before is not None and not replay:
            return _repeated(before)

        reply = await self._effect(session, task, token, isolate=isolate)
        if isinstance(reply, Refusal):
            await (dead_letters.refused_again if replay else dead_letters.add)(session, received, reply)
            reply = _refused(reply)
        elif replay:
            await dead_letters.resolved(session, received)
        if task.message_id is not None:
            kept = reply.model_dump(mode="json") if received.reply_to or not reply.ok else None
            entry = {
                "message_id": task.message_id,
                "command": received.command,
                "payload_hash": digest,
                "refused": not reply.ok,
                "reply": kept,
            }
            if replay:
                await inbox.replace(session, entry)
            else:
                new.append(entry)
            known[task.message_id] = _Handled(digest, refused=not reply.ok, reply=kept)
        return reply

    async def _effect(
        self, session: AsyncSession, task: _Task, token: str | None, *, isolate: bool
    ) -> Reply | Refusal:
        """What the handler answers, or why it does not. Without ``isolate`` the first failure ends the attempt."""
        if task.refusal is not None:
            return task.refusal
        assert isinstance(task.request, Command)  # noqa: S101 - reading gave a command or a refusal
        handler = self._handlers[type(task.request)]
        try:
            if not isolate:
                return _answered(task.request, await handler(task.request, UnitOfWork(session)), token)
            async with session.begin_nested():
                return _answered(task.request, await handler(task.request, UnitOfWork(session)), token)
        except Exception as error:
            if is_transient(error):
                raise
            if not isolate:
                raise _Isolate from error
            return refusal_for(error) or _defect(task.received, error)


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


def _refused(refusal: Refusal) -> Reply:
    return Reply(
        ok=False,
        error=ErrorBody(code=refusal.code, message=refusal.message, field=refusal.field, retryable=refusal.retryable),
    )


def _repeated(before: _Handled) -> Reply:
    """The answer the message got the first time. If nobody asked for it then, that it was handled is the answer."""
    first = Reply(ok=True) if before.reply is None else Reply.model_validate(before.reply)
    return first.model_copy(update={"meta": first.meta.model_copy(update={"duplicate": True})})


def _defect(received: Received, error: BaseException) -> Refusal:
    log.error("command_failed", command=received.command, message_id=received.message_id, exc_info=error)
    return Refusal(ErrorCode.INTERNAL, "the service failed on this message; its log says where")


def _report(task: _Task, reply: Reply) -> None:
    command = task.received.command if task.received.command in COMMAND_TYPES else "unknown"
    if reply.error is not None:
        outcome = reply.error.code.value
        log.warning(
            "command_refused",
            command=task.received.command[:100],
            message_id=task.received.message_id,
            code=outcome,
            field=reply.error.field,
            reason=reply.error.message,
        )
    else:
        outcome = "duplicate" if reply.meta.duplicate else "done"
    COMMANDS_HANDLED.labels(command=command, outcome=outcome).inc()
