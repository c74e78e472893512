"""Users in the database."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, delete, func, literal_column, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import joinedload

from contracts.errors import ErrorCode, Refusal
from contracts.exchange import ExchangeDeleted, ExchangeView
from contracts.user import (
    UserCreated,
    UserDeleted,
    UserDeletion,
    UserPasswordChanged,
    UserRef,
    UserUpdated,
    UserView,
    is_password_hash,
)
from service.cursor import behind
from service.models import OPEN_STATUSES, Bot, Exchange, Order, RoleEnum, Trade, User
from service.models.user import SEARCHED_TEXT
from service.outbox import record
from service.repositories.base import BaseRepository, check_version, delete_in_steps
from service.repositories.bot import BotRepository
from service.vault import NotReadable, Place, Renewal, vault_of


class UserRepository(BaseRepository[User]):
    """Users by id and by mail address."""

    view = UserView
    created = UserCreated
    updated = UserUpdated
    deleted = UserDeleted

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, User)

    async def create(self, data: dict[str, Any]) -> User:
        """A new user. ``role`` may be a string; the password is expected to be hashed already.

        Raises IntegrityError if the mail address, in any case, or the external id is taken.
        """
        if data.get("f2a"):
            raise Refusal(
                ErrorCode.VALIDATION, "is sealed for a user who exists: set it with modify_user", field="f2a"
            )
        _check_hash(data.get("password"))
        return await super().create(_with_role(data))

    async def add_user(self, user_data: dict[str, Any]) -> User:
        """A new user. See `create`."""
        return await self.create(user_data)

    async def update(self, id: int, updates: dict[str, Any], *, expected_version: int | None = None) -> User:  # noqa: A002
        """The user with ``updates`` applied; ``f2a`` comes sealed, or is None to take it away."""
        values = _with_role(updates)
        if "password" in values:
            raise Refusal(ErrorCode.VALIDATION, "is changed with update_password", field="password")
        if "f2a" in values:
            sealed = values["f2a"]
            values["f2a"] = vault_of(self.session).take_in(sealed, _place_of_f2a(id)) if sealed else ""
        return await super().update(id, values, expected_version=expected_version)

    async def modify_user(self, uid: int, updates: dict[str, Any]) -> User:
        """The user with ``updates`` applied. See `update`."""
        return await self.update(uid, updates)

    async def update_password(self, uid: int, new_password: str, *, expected_version: int | None = None) -> None:
        """Give the user another password, hashed already."""
        _check_hash(new_password)
        user = await self._locked(uid, "uid")
        check_version(user, expected_version)
        if user.password == new_password:
            return
        before = UserRef.model_validate(user)
        user.password = new_password
        await self.session.flush()
        record(self.session, UserPasswordChanged, before=before, after=UserRef.model_validate(user))

    async def toggle_active(self, uid: int, active: bool) -> None:
        """Make the user active or not; it sets and does not flip."""
        await self.update(uid, {"active": active})

    async def delete(self, id: int, *, force: bool = False) -> None:  # noqa: A002
        """Delete a user with all that is theirs. See `remove_user`."""
        await self.remove_user(id, force=force)

    async def remove_user(
        self, user: int | str, *, force: bool = False, expected_version: int | None = None
    ) -> UserDeletion:
        """Delete a user, named by id or mail address, with accounts, bots, orders and trades; says how many.

        ``conflict`` while there are open orders or an active bot that trades for real, unless ``force``.
        """
        uid = await self.get_user_id(user) if isinstance(user, str) else user
        if uid is None:
            raise Refusal(ErrorCode.NOT_FOUND, "there is no user with this address", field="mail")
        # Whatever refers to one of these waits for the locks, so nothing is added from here on.
        row = await self._locked(uid, "uid", whole=True)
        check_version(row, expected_version)
        bots = (
            await self.session.scalars(select(Bot).where(Bot.uid == uid).order_by(Bot.bot_id).with_for_update())
        ).all()
        exchanges = (
            await self.session.scalars(
                select(Exchange).where(Exchange.uid == uid).order_by(Exchange.ex_id).with_for_update()
            )
        ).all()
        if not force:
            await self._check_idle(uid, bots)
        before = UserView.model_validate(row)
        await self._release_managed(uid)
        # The ledger first, so that no trade needs to be changed because its order or bot goes.
        trades = await delete_in_steps(self.session, Trade.trade_id, Trade.uid == uid)
        orders = await delete_in_steps(self.session, Order.order_id, Order.uid == uid)
        await BotRepository(self.session).remove(bots)
        for exchange in exchanges:
            record(self.session, ExchangeDeleted, before=ExchangeView.model_validate(exchange))
            self.session.expunge(exchange)
        await self.session.execute(
            delete(User).where(User.uid == uid), execution_options={"synchronize_session": False}
        )
        self.session.expunge(row)
        record(self.session, UserDeleted, before=before)
        return UserDeletion(uid=uid, bots=len(bots), exchanges=len(exchanges), orders=orders, trades=trades)

    async def _check_idle(self, uid: int, bots: Sequence[Bot]) -> None:
        live = [bot.bot_id for bot in bots if bot.is_live]
        if live:
            raise Refusal(
                ErrorCode.CONFLICT, f"bot {live[0]} of the user is active; stop it, or use force", field="uid"
            )
        if await self.session.scalar(
            select(Order.order_id).where(Order.uid == uid, Order.status.in_(OPEN_STATUSES)).limit(1)
        ):
            raise Refusal(ErrorCode.CONFLICT, "the user has open orders; cancel them, or use force", field="uid")

    async def _release_managed(self, uid: int) -> None:
        """Have the user manage nobody; the foreign key would do the same without a word."""
        managed = await self.session.scalars(
            update(User)
            .where(User.manager == uid)
            .values(manager=None, row_version=User.row_version + 1, updated_at=func.now())
            .returning(User),
            execution_options={"populate_existing": True, "synchronize_session": False},
        )
        for user in managed:
            after = UserView.model_validate(user)
            before = after.model_copy(update={"manager": uid, "row_version": after.row_version - 1})
            record(self.session, UserUpdated, before=before, after=after)

    async def get_by_email(self, email: str) -> User | None:
        """The user with this mail address, in any case, or None."""
        return await self.session.scalar(select(User).where(func.lower(User.mail) == email.lower()))

    async def get_user_id(self, email: str) -> int | None:
        """The id of the user with this mail address, in any case, or None."""
        return await self.session.scalar(select(User.uid).where(func.lower(User.mail) == email.lower()))

    async def get_f2a(self, user: User, public_key: str) -> str | None:
        """The secret of the user's second factor, sealed for the holder of ``public_key``; None if there is none."""
        if not user.f2a:
            return None
        return vault_of(self.session).give_out(user.f2a, _place_of_f2a(user.uid), public_key)

    async def search(self, query: str, limit: int = 100) -> list[User]:
        """Users who have ``query`` in names, mail address, external id, phone or id number, in any case; by id."""
        escaped = query.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        found = literal_column(SEARCHED_TEXT).like(func.lower(f"%{escaped}%"), escape="\\")
        return list(await self.session.scalars(select(User).where(found).order_by(User.uid).limit(limit)))

    async def get_user_list(
        self, manager_id: int | None = None, *, limit: int | None = None, offset: int = 0, cursor: str | None = None
    ) -> list[User]:
        """Users by id, all or those of a manager; of a long list ``limit`` from ``offset`` or behind ``cursor``."""
        query = select(User) if manager_id is None else select(User).where(User.manager == manager_id)
        return await self._part_of(query, limit, offset, cursor)

    async def get_active_users(
        self, *, limit: int | None = None, offset: int = 0, cursor: str | None = None
    ) -> list[User]:
        """Active users by id. See `get_user_list`."""
        return await self._part_of(select(User).where(User.active), limit, offset, cursor)

    async def _part_of(self, query: Any, limit: int | None, offset: int, cursor: str | None) -> list[User]:
        page = query.where(behind(cursor, User.uid)).order_by(User.uid).limit(limit).offset(offset or None)
        return list(await self.session.scalars(page))

    async def get_user_with_bots(self, uid: int) -> User | None:
        """The user with ``bots`` loaded, in one query, or None."""
        found = await self.session.scalars(
            select(User).where(User.uid == uid).options(joinedload(User.bots)),
            execution_options={"populate_existing": True},
        )
        return found.unique().one_or_none()

    async def renew_secrets(self, after: int, limit: int) -> Renewal:
        """Store the second factors of some users, from behind the id ``after`` on, under the present storage key."""
        vault = vault_of(self.session)
        users = (
            await self.session.execute(
                select(User.uid, User.f2a)
                .where(User.uid > after, User.f2a != "")
                .order_by(User.uid)
                .limit(limit)
                .with_for_update(key_share=True)
            )
        ).all()
        renewed: list[dict[str, Any]] = []
        unreadable = []
        for uid, stored in users:
            try:
                if not vault.is_current(stored):
                    renewed.append({"of": uid, "f2a": vault.renew(stored, _place_of_f2a(uid))})
            except NotReadable:
                unreadable.append(uid)
        if renewed:
            # Past the ORM, which would count it as a new version of the user.
            connection = await self.session.connection()
            await connection.execute(
                update(User).where(User.uid == bindparam("of")).values(f2a=bindparam("f2a")), renewed
            )
        return Renewal(users[-1].uid if users else None, len(users), len(renewed), unreadable)


def _place_of_f2a(uid: int) -> Place:
    return Place("users", uid, uid, "f2a")


def _with_role(data: dict[str, Any]) -> dict[str, Any]:
    if "role" not in data:
        return dict(data)
    try:
        return {**data, "role": RoleEnum(data["role"])}
    except ValueError:
        raise Refusal(ErrorCode.VALIDATION, "must be ADMIN or USER", field="role") from None


def _check_hash(password: str | None) -> None:
    if password is not None and not is_password_hash(password):
        raise Refusal(
            ErrorCode.VALIDATION, "must be hashed already: argon2id, bcrypt, or 64 hex digits", field="password"
        )
