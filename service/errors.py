"""Which exceptions are answers, which are outages, and which are defects.

Exception
├── Refusal               an answer: code, field and sentence (contracts.errors)
├── IntegrityError, ...   an answer too, once the violated constraint is named here
├── transient errors      nobody's fault: hold what is in hand and try again
└── anything else         a defect; the message that set it off is refused as ``internal``
"""

import asyncio
from functools import cache
from typing import Final

import asyncpg
from sqlalchemy import Index
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.sql.schema import ColumnCollectionConstraint

from contracts.errors import ErrorCode, Refusal
from service.base import Base, is_partition

# Classes 08 (connection), 53 (resources), 57 (operator intervention) and single codes that pass by themselves or
# by an operator's hand: serialization, deadlock, lock timeout, read-only server, wrong password, missing table.
_TRANSIENT_CLASSES: Final = ("08", "53", "57", "28")
_TRANSIENT_STATES: Final = frozenset(
    {"40001", "40P01", "55P03", "25006", "42P01", "42501", "58030", "25P03", "25P04"}
)

_CHECK: Final = "23514"

# What asyncpg says of a connection that is no more: "connection is closed", "cannot switch to state".
_BROKEN_CONNECTION: Final = (asyncpg.InterfaceError, asyncpg.InternalClientError)

# What a violated constraint means to the sender: code, field and sentence.
_CONSTRAINTS: Final[dict[str, tuple[ErrorCode, str, str]]] = {
    "uq_users_lower_mail": (ErrorCode.CONFLICT, "mail", "is taken by another user"),
    "uq_users_external_id": (ErrorCode.CONFLICT, "external_id", "is taken by another user"),
    "fk_users_manager_users": (ErrorCode.NOT_FOUND, "manager", "there is no such user"),
    "ck_users_manager_is_another": (ErrorCode.VALIDATION, "manager", "is the user's own id"),
    "fk_exchanges_uid_users": (ErrorCode.NOT_FOUND, "uid", "there is no such user"),
    "fk_exchanges_cat_ex_id_cat_exchanges": (ErrorCode.NOT_FOUND, "cat_ex_id", "there is no such exchange"),
    "uq_exchanges_uid_cat_ex_id_ex_name": (
        ErrorCode.CONFLICT,
        "ex_name",
        "the user has an account of that name on this exchange",
    ),
    "uq_symbols_cat_ex_id_symbol": (ErrorCode.CONFLICT, "symbol", "this exchange already lists it"),
    "uq_bots_uid_name": (ErrorCode.CONFLICT, "name", "the user has a bot of that name"),
    "uq_feeds_bot_id_order": (ErrorCode.CONFLICT, "order", "another feed of the bot stands there"),
    "fk_feeds_symbol_id_cat_ex_id_symbols": (ErrorCode.CONFLICT, "cat_ex_id", "bots listen to the symbol"),
    "ck_strategies_one_size": (ErrorCode.VALIDATION, "size", "excludes size_pct"),
    "uq_orders_ex_id_ex_order_id": (ErrorCode.CONFLICT, "ex_order_id", "another order has it on this account"),
    "uq_orders_client_order_id": (ErrorCode.CONFLICT, "client_order_id", "another order has it"),
    "fk_orders_symbol_id_cat_ex_id_symbols": (ErrorCode.CONFLICT, "cat_ex_id", "the symbol has orders"),
    "fk_trades_symbol_id_cat_ex_id_symbols": (ErrorCode.CONFLICT, "cat_ex_id", "the symbol has trades"),
    "fk_dry_trades_symbol_id_cat_ex_id_symbols": (ErrorCode.CONFLICT, "cat_ex_id", "the symbol has dry trades"),
    "fk_positions_symbol_id_cat_ex_id_symbols": (ErrorCode.CONFLICT, "cat_ex_id", "the symbol has positions"),
}
_BY_SQLSTATE: Final = {
    "23505": (ErrorCode.CONFLICT, "is taken"),
    "23503": (ErrorCode.NOT_FOUND, "names something that does not exist"),
    "23502": (ErrorCode.VALIDATION, "is required"),
    "23514": (ErrorCode.VALIDATION, "breaks a rule of the table"),
    # The driver's own, before it asks the server: a value is none of its parameter's type.
    "22000": (ErrorCode.VALIDATION, "a value is out of range or of another type"),
    "22001": (ErrorCode.VALIDATION, "is too long"),
    "22003": (ErrorCode.VALIDATION, "is out of range"),
    "22021": (ErrorCode.VALIDATION, "holds characters that cannot be stored"),
    "22P05": (ErrorCode.VALIDATION, "holds characters that cannot be stored"),
    "22008": (ErrorCode.VALIDATION, "is out of the range of dates"),
}


def sqlstate(error: BaseException) -> str | None:
    """The five characters PostgreSQL gives an error, or None if the error is not PostgreSQL's."""
    cause = getattr(error, "orig", error)
    state = getattr(cause, "sqlstate", None)
    return state if isinstance(state, str) else None


def constraint_of(error: BaseException) -> str | None:
    """The name of the constraint that was violated, if one was."""
    return _named(error, "constraint_name")


def _named(error: BaseException, detail: str) -> str | None:
    """What PostgreSQL names in a detail of an error, if it does."""
    driver_error = getattr(getattr(error, "orig", None), "__cause__", None)
    name = getattr(driver_error, detail, None)
    return name if isinstance(name, str) else None


def refusal_for(error: BaseException) -> Refusal | None:
    """The answer this exception amounts to, or None if it is an outage or a defect."""
    if isinstance(error, Refusal):
        return error
    state = sqlstate(error)
    if not isinstance(error, DBAPIError) or state not in _BY_SQLSTATE:
        return None
    constraint = constraint_of(error)
    if constraint in _CONSTRAINTS:
        code, field, sentence = _CONSTRAINTS[constraint]
        return Refusal(code, sentence, field=field)
    code, sentence = _BY_SQLSTATE[state]
    return Refusal(code, sentence, field=_column_in(constraint) or _named(error, "column_name"))


@cache
def _columns_by_constraint() -> dict[str, str]:
    """The first column that each constraint and unique index is about."""
    named: list[ColumnCollectionConstraint | Index] = [
        item
        for table in Base.metadata.tables.values()
        for item in (*table.constraints, *table.indexes)
        if isinstance(item, ColumnCollectionConstraint | Index)
    ]
    return {str(item.name): item.columns[0].name for item in named if item.name and len(item.columns)}


def _column_in(constraint: str | None) -> str | None:
    if constraint is None:
        return None
    if (column := _columns_by_constraint().get(constraint)) is not None:
        return column
    # A check's columns are in its text; ``ck_orders_size`` is named for the one it is about.
    check = next((name for name in Base.metadata.tables if constraint.startswith(f"ck_{name}_")), None)
    return constraint.removeprefix(f"ck_{check}_") if check else None


def is_transient(error: BaseException) -> bool:
    """Whether the same work can succeed later without anybody changing the message.

    A unique violation of the inbox is among them: the same message is being handled elsewhere at this moment, and
    the next attempt finds its answer. So is a row that does not fit the partition that was chosen for it: another one
    was made for it in between.
    """
    if isinstance(error, IntegrityError):
        constraint = constraint_of(error)
        if constraint is not None:
            return "inbox" in constraint
        return sqlstate(error) == _CHECK and is_partition(_named(error, "table_name"))
    if isinstance(error, DBAPIError):
        state = sqlstate(error)
        if error.connection_invalidated or state is None:
            return True
        return state.startswith(_TRANSIENT_CLASSES) or state in _TRANSIENT_STATES
    if isinstance(error, StatementError):
        return False
    # asyncpg raises all but the first two unwrapped while it connects or gives up what broke.
    return isinstance(error, (PoolTimeout, StaleDataError, OSError, asyncio.TimeoutError, *_BROKEN_CONNECTION)) or (
        sqlstate(error) or ""
    ).startswith(_TRANSIENT_CLASSES)


def sentence(error: BaseException) -> str:
    """What to tell a caller about an error: the refusal it amounts to, or its kernel."""
    refusal = refusal_for(error)
    return str(refusal) if refusal is not None else reason(error)


def reason(error: BaseException) -> str:
    """The kernel of an error, without a statement, parameter or URL."""
    cause = getattr(error, "orig", None) or error
    text = str(cause).splitlines()[0] if str(cause) else ""
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__


def advice(error: BaseException, server: str) -> str:
    """What to do about a server that cannot be used."""
    said = f"{type(error).__name__} {reason(error)}".lower()
    if any(word in said for word in ("auth", "password", "access_refused", "noauth", "wrongpass")):
        return "the server is there and refuses the login: check user and password in the URL"
    if "gaierror" in said:
        return "is the host name right, and are @, / and # in the password escaped?"
    return f"is {server} running there?"
