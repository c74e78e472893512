"""Commands about users."""

from typing import Any

from contracts.user import (
    AddUser,
    DeleteUser,
    ModifyUser,
    SetUserActive,
    ToggleActive,
    UpdatePassword,
    UserDeletion,
    UserFields,
    UserView,
)
from service.registry import CommandTable
from service.unit_of_work import UnitOfWork

handlers = CommandTable()


@handlers.handles(AddUser)
async def add_user(command: AddUser, work: UnitOfWork) -> UserView:
    return UserView.model_validate(await work.users.add_user(columns_of(command)))


def columns_of(user: UserFields) -> dict[str, Any]:
    """What is said of a user, by the names of the columns."""
    values = user.model_dump(exclude_unset=True)
    if "password_hash" in values:
        values["password"] = values.pop("password_hash")
    return values


@handlers.handles(ModifyUser)
async def modify_user(command: ModifyUser, work: UnitOfWork) -> UserView:
    user = await work.users.update(command.uid, command.updates.values(), expected_version=command.expected_version)
    return UserView.model_validate(user)


@handlers.handles(UpdatePassword)
async def update_password(command: UpdatePassword, work: UnitOfWork) -> UserView:
    await work.users.update_password(command.uid, command.password_hash, expected_version=command.expected_version)
    return UserView.model_validate(await work.users.get_by_id(command.uid))


@handlers.handles(ToggleActive)
@handlers.handles(SetUserActive)
async def set_user_active(command: SetUserActive, work: UnitOfWork) -> UserView:
    user = await work.users.update(command.uid, {"active": command.active}, expected_version=command.expected_version)
    return UserView.model_validate(user)


@handlers.handles(DeleteUser)
async def delete_user(command: DeleteUser, work: UnitOfWork) -> UserDeletion:
    return await work.users.remove_user(command.uid, force=command.force, expected_version=command.expected_version)
