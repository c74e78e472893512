"""Users."""

import asyncio
from typing import Any

from sqlalchemy.exc import IntegrityError

from service.database import get_async_session
from service.errors import is_transient, sentence
from service.models import User
from service.repositories import UserRepository
from service.repositories.base import differing


async def get_user_with_bots_optimized(uid: int) -> User | None:
    """The user with ``bots`` loaded, in one query, or None."""
    async with get_async_session() as session:
        return await UserRepository(session).get_user_with_bots(uid)


async def get_users_for_api(manager_id: int | None = None) -> list[dict[str, Any]]:
    """The users of a manager, or all active ones, as dictionaries without secrets, ready for ``json.dumps``."""
    async with get_async_session() as session:
        users = UserRepository(session)
        found = await (users.get_active_users() if manager_id is None else users.get_user_list(manager_id))
        return [user.to_dict() for user in found]


async def create_user_with_retry(user_data: dict[str, Any], max_retries: int = 3) -> dict[str, Any]:
    """A new user, tried again while the database is away: ``{success, user, attempts}``.

    Otherwise ``{success, error, type, attempts}``, where the type is ``integrity_error``, ``connection_error`` or
    ``unknown_error``. A commit whose outcome got lost makes no second user and no error.
    """
    for attempt in range(max_retries):
        try:
            user = await _create_user(user_data, is_retry=attempt > 0)
        except Exception as error:  # noqa: BLE001 - the caller is told, not interrupted
            if is_transient(error) and attempt < max_retries - 1:
                await asyncio.sleep(2**attempt)
                continue
            return {"success": False, "error": sentence(error), "type": _kind(error), "attempts": attempt + 1}
        return {"success": True, "user": user.to_dict(), "attempts": attempt + 1}
    return {"success": False, "error": "Max retries exceeded", "type": "unknown_error", "attempts": 0}


async def _create_user(user_data: dict[str, Any], *, is_retry: bool) -> User:
    try:
        async with get_async_session() as session:
            return await UserRepository(session).add_user(user_data)
    except IntegrityError:
        # After a lost connection nobody knows whether the first attempt was committed: if it was, this is its user.
        async with get_async_session() as session:
            user = await UserRepository(session).get_by_email(user_data["mail"]) if is_retry else None
        if user is None or differing(user, user_data):
            raise
        return user


def _kind(error: Exception) -> str:
    if isinstance(error, IntegrityError):
        return "integrity_error"
    return "connection_error" if is_transient(error) else "unknown_error"
