"""Lookups of users."""

from collections.abc import Sequence

from contracts import cache_keys
from contracts.base import Lookup
from contracts.user import (
    GetActiveUsers,
    GetUser,
    GetUserByEmail,
    GetUserCredentials,
    GetUserId,
    GetUserList,
    GetUserWithBots,
    SearchUsers,
    UserCredentials,
    UsersPage,
    UserView,
    UserWithBotsView,
)
from service.cursor import next_after
from service.models import User
from service.registry import LookupTable
from service.unit_of_work import UnitOfWork

lookups = LookupTable()


@lookups.answers(GetUser, cached_under=lambda lookup: cache_keys.user(lookup.uid))
async def get_user(lookup: GetUser, reads: UnitOfWork) -> UserView | None:
    user = await reads.users.get_by_id(lookup.uid)
    return None if user is None else UserView.model_validate(user)


@lookups.answers(GetUserId, cached_under=lambda lookup: cache_keys.user_id(lookup.mail))
async def get_user_id(lookup: GetUserId, reads: UnitOfWork) -> int | None:
    return await reads.users.get_user_id(lookup.mail)


@lookups.derives(GetUserByEmail, lambda lookup: GetUserId(mail=lookup.mail))
def get_user_by_email(uid: int | None) -> Lookup[UserView | None] | None:
    return None if uid is None else GetUser(uid=uid)


@lookups.answers(GetUserCredentials)
async def get_user_credentials(lookup: GetUserCredentials, reads: UnitOfWork) -> UserCredentials | None:
    user = await reads.users.get_by_email(lookup.mail)
    if user is None:
        return None
    f2a = await reads.users.get_f2a(user, lookup.public_key) if lookup.public_key else None
    return UserCredentials(
        uid=user.uid, password_hash=user.password, f2a=f2a, role=user.role.value, active=user.active
    )


@lookups.answers(SearchUsers)
async def search_users(lookup: SearchUsers, reads: UnitOfWork) -> list[UserView]:
    return [UserView.model_validate(user) for user in await reads.users.search(lookup.query, lookup.limit)]


@lookups.answers(GetUserList)
async def get_user_list(lookup: GetUserList, reads: UnitOfWork) -> UsersPage:
    users = await reads.users.get_user_list(
        lookup.manager_id,
        limit=lookup.page_size,
        offset=(lookup.page - 1) * lookup.page_size,
        cursor=lookup.cursor,
    )
    return _page(users, lookup.page_size)


@lookups.answers(GetActiveUsers)
async def get_active_users(lookup: GetActiveUsers, reads: UnitOfWork) -> UsersPage:
    users = await reads.users.get_active_users(
        limit=lookup.page_size,
        offset=(lookup.page - 1) * lookup.page_size,
        cursor=lookup.cursor,
    )
    return _page(users, lookup.page_size)


@lookups.answers(GetUserWithBots)
async def get_user_with_bots(lookup: GetUserWithBots, reads: UnitOfWork) -> UserWithBotsView | None:
    user = await reads.users.get_user_with_bots(lookup.uid)
    return None if user is None else UserWithBotsView.model_validate(user)


def _page(users: Sequence[User], size: int) -> UsersPage:
    return UsersPage(
        users=[UserView.model_validate(user) for user in users], next_cursor=next_after(users, size, "uid")
    )
