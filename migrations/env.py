"""Runs migrations on the connection that `service.schema` hands over."""

from typing import Any

from alembic import context
from sqlalchemy import Connection

import service.models  # noqa: F401 - fills the metadata
from service.base import Base, is_partition
from service.schema import is_optional


def _include(_: Any, name: str | None, kind: str, __: bool, ___: Any) -> bool:
    return not ((kind == "table" and is_partition(name)) or is_optional(name))


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_object=_include,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("run `persistence migrate`; it knows the database and locks it against a second migration")
run(connection)
