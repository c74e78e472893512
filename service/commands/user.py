"""Commands about users."""

from contracts.user import AddUser, UserView
from service.registry import CommandTable
from service.unit_of_work import UnitOfWork

handlers = CommandTable()


@handlers.handles(AddUser)
async def add_user(command: AddUser, work: UnitOfWork) -> UserView:
    values = command.model_dump(exclude_unset=True)
    if "password_hash" in values:
        values["password"] = values.pop("password_hash")
    return UserView.model_validate(await work.users.add_user(values))
