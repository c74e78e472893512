"""Users in the database."""

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.user import UserCreated, UserView
from service.models import RoleEnum, User
from service.outbox import record
from service.repositories.base import BaseRepository


class UserRepository(BaseRepository[User]):
    """Users by id and by mail address."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, User)

    async def add_user(self, user_data: dict[str, Any]) -> User:
        """A new user. ``role`` may be a string; the password is expected to be hashed already.

        Raises IntegrityError if the mail address, in any case, or the external id is taken.
        """
        role = user_data.get("role", RoleEnum.USER)
        user = User(**{**user_data, "role": RoleEnum(role)})
        self.session.add(user)
        await self.session.flush()
        record(self.session, UserCreated, after=UserView.model_validate(user))
        return user

    async def get_by_email(self, email: str) -> User | None:
        """The user with this mail address, in any case, or None."""
        return await self.session.scalar(select(User).where(func.lower(User.mail) == email.lower()))

    async def get_user_id(self, email: str) -> int | None:
        """The id of the user with this mail address, in any case, or None."""
        return await self.session.scalar(select(User.uid).where(func.lower(User.mail) == email.lower()))
