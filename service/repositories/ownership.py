"""Whether the user, bot, account and symbol that a command names belong together."""

from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.errors import ErrorCode, Refusal
from service.models import Bot, Exchange, Order, Symbol


class Parties(NamedTuple):
    """Who and what an order or a trade is about."""

    bot_id: int | None
    uid: int
    ex_id: int
    symbol_id: int


async def catalog_of(session: AsyncSession, parties: Parties) -> int:
    """The catalog exchange of the account, once everything named belongs to the user; one query.

    ``not_found`` for what does not exist, ``forbidden`` for what is someone else's or listed elsewhere; the first
    thing wrong is named. The composite foreign keys of the tables hold the same; this says it in a sentence.
    """
    bot_id, uid, ex_id, symbol_id = parties
    account = select(Exchange).where(Exchange.ex_id == ex_id)
    row = (
        await session.execute(
            select(
                select(Bot.uid).where(Bot.bot_id == bot_id).scalar_subquery().label("bot_owner"),
                account.with_only_columns(Exchange.uid).scalar_subquery().label("account_owner"),
                account.with_only_columns(Exchange.cat_ex_id).scalar_subquery().label("catalog"),
                select(Symbol.exchange_id).where(Symbol.id == symbol_id).scalar_subquery().label("listed_on"),
            )
        )
    ).one()
    if bot_id is not None:
        check_owner("bot_id", f"bot {bot_id}", row.bot_owner, uid)
    check_owner("ex_id", f"exchange account {ex_id}", row.account_owner, uid)
    if row.listed_on is None:
        raise Refusal(ErrorCode.NOT_FOUND, f"there is no symbol {symbol_id}", field="symbol_id")
    if row.listed_on != row.catalog:
        raise Refusal(
            ErrorCode.FORBIDDEN,
            f"symbol {symbol_id} is not listed on the exchange of account {ex_id}",
            field="symbol_id",
        )
    catalog: int = row.catalog
    return catalog


def check_owner(field: str, thing: str, owner: int | None, uid: int) -> None:
    """Refuse what does not exist or is another user's."""
    if owner is None:
        raise Refusal(ErrorCode.NOT_FOUND, f"there is no {thing}", field=field)
    if owner != uid:
        raise Refusal(ErrorCode.FORBIDDEN, f"{thing} does not belong to user {uid}", field=field)


async def check_order(session: AsyncSession, order_id: int, parties: Parties) -> None:
    """Refuse an order that is not about the same user, account, symbol and bot."""
    order = (
        await session.execute(
            select(Order.uid, Order.ex_id, Order.symbol_id, Order.bot_id).where(Order.order_id == order_id)
        )
    ).one_or_none()
    check_owner("order_id", f"order {order_id}", order.uid if order else None, parties.uid)
    if order is not None and (
        (order.ex_id, order.symbol_id) != (parties.ex_id, parties.symbol_id)
        or order.bot_id not in (None, parties.bot_id)
    ):
        raise Refusal(
            ErrorCode.FORBIDDEN, f"order {order_id} is about another account, symbol or bot", field="order_id"
        )
