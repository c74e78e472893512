"""What users have on exchanges, in the database."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Final

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.account import BalanceUpdated, BalanceView, PositionUpdated, PositionView
from contracts.errors import ErrorCode, Refusal
from service.cursor import behind
from service.models import Balance, Bot, Exchange, ExchangeHistory, Position, Symbol
from service.outbox import record
from service.repositories.base import BaseRepository, exact, in_utc
from service.repositories.ownership import check_owner

# What a position that is not described further has.
_NOTHING: Final[dict[str, Any]] = {
    "price": 0,
    "cost": 0,
    "fee": 0,
    "realized_pnl": 0,
    "count": 0,
    "bot_id": None,
}


class AccountRepository(BaseRepository[Balance]):
    """Balances, positions and the history of accounts."""

    never: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("create", "update", "delete"), "a balance is what the newest snapshot says; use upsert_balances"
    )

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, Balance)

    async def upsert_balances(
        self,
        ex_id: int,
        balances: Sequence[dict[str, Any]],
        timestamp: datetime,
        *,
        comment: str | None = None,
        uid: int | None = None,
    ) -> list[Balance]:
        """The balances that ``balances`` are newer than, as they are now; the others are left alone.

        Each is a currency with ``free``, ``used`` and, if it is not the two together, ``total``. A total that is new
        or changed is noted in the account's history. ``not_found`` without such an account, ``forbidden`` if it is
        not ``uid``'s. Four statements for any number.
        """
        account = await self._owned(ex_id, uid)
        timestamp = in_utc(timestamp)
        rows = {}
        for said in map(exact, balances):
            total = said.get("total", said["free"] + said["used"])
            rows[said["currency"]] = {"ex_id": ex_id, **said, "total": total, "timestamp": timestamp}
        stored = await self._stored(Balance, Balance.ex_id == ex_id, Balance.currency.in_(rows))
        before = {balance.currency: BalanceView.model_validate(balance) for balance in stored}
        newer = [row for currency, row in rows.items() if _is_newer(before.get(currency), timestamp)]
        updated: list[Balance] = await self._put(Balance, ["ex_id", "currency"], newer)
        for balance in updated:
            record(
                self.session,
                BalanceUpdated,
                before=before.get(balance.currency),
                after=BalanceView.model_validate(balance),
            )
        await self._note(account, before, updated, comment)
        return updated

    async def upsert_positions(
        self, ex_id: int, positions: Sequence[dict[str, Any]], timestamp: datetime, *, uid: int | None = None
    ) -> list[Position]:
        """The positions that ``positions`` are newer than, as they are now; the others are left alone.

        Each is a ``symbol_id`` with a ``volume``, negative for a short position. ``not_found`` or ``forbidden`` for
        an account, a symbol or a bot that does not exist or belong. Five statements for any number.
        """
        account = await self._owned(ex_id, uid)
        timestamp = in_utc(timestamp)
        await self._check_symbols_and_bots(account, positions)
        rows = {
            position["symbol_id"]: {
                **_NOTHING,
                **position,
                "side": _side(position["volume"]),
                "ex_id": ex_id,
                "uid": account.uid,
                "cat_ex_id": account.cat_ex_id,
                "timestamp": timestamp,
            }
            for position in map(exact, positions)
        }
        stored = await self._stored(Position, Position.ex_id == ex_id, Position.symbol_id.in_(rows))
        before = {position.symbol_id: PositionView.model_validate(position) for position in stored}
        newer = [row for symbol_id, row in rows.items() if _is_newer(before.get(symbol_id), timestamp)]
        updated: list[Position] = await self._put(Position, ["ex_id", "symbol_id"], newer)
        for position in updated:
            record(
                self.session,
                PositionUpdated,
                before=before.get(position.symbol_id),
                after=PositionView.model_validate(position),
            )
        return updated

    async def get_balances(self, ex_id: int, currency: str | None = None) -> list[Balance]:
        """What an account has, by currency."""
        balances = select(Balance).where(Balance.ex_id == ex_id).order_by(Balance.currency)
        if currency is not None:
            balances = balances.where(Balance.currency == currency)
        return list(await self.session.scalars(balances))

    async def get_positions(self, ex_id: int, symbol_id: int | None = None) -> list[Position]:
        """What an account holds, by symbol id."""
        positions = select(Position).where(Position.ex_id == ex_id).order_by(Position.symbol_id)
        if symbol_id is not None:
            positions = positions.where(Position.symbol_id == symbol_id)
        return list(await self.session.scalars(positions))

    async def get_exchange_history(
        self,
        ex_id: int,
        currency: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        *,
        limit: int = 100,
        cursor: str | None = None,
    ) -> list[ExchangeHistory]:
        """How an account's totals changed, newest first; from ``start_date`` on, before ``end_date``."""
        history = select(ExchangeHistory).where(
            ExchangeHistory.ex_id == ex_id,
            behind(cursor, ExchangeHistory.timestamp, ExchangeHistory.history_id, newest_first=True),
        )
        if currency is not None:
            history = history.where(ExchangeHistory.currency == currency)
        if start_date is not None:
            history = history.where(ExchangeHistory.timestamp >= in_utc(start_date))
        if end_date is not None:
            history = history.where(ExchangeHistory.timestamp < in_utc(end_date))
        newest_first = (ExchangeHistory.timestamp.desc(), ExchangeHistory.history_id.desc())
        return list(await self.session.scalars(history.order_by(*newest_first).limit(limit)))

    async def _owned(self, ex_id: int, uid: int | None) -> Exchange:
        """The account, locked against other snapshots of it until the transaction ends; trades pass the lock."""
        account = await self.session.scalar(
            select(Exchange).where(Exchange.ex_id == ex_id).with_for_update(key_share=True)
        )
        if account is None:
            raise Refusal(ErrorCode.NOT_FOUND, f"there is no exchange account {ex_id}", field="ex_id")
        if uid is not None:
            check_owner("ex_id", f"exchange account {ex_id}", account.uid, uid)
        return account

    async def _stored(self, model: type[Any], *where: ColumnElement[bool]) -> list[Any]:
        return list(await self.session.scalars(select(model).where(*where).execution_options(populate_existing=True)))

    async def _put(self, model: type[Any], key: list[str], rows: list[dict[str, Any]]) -> list[Any]:
        """The rows, inserted or written over what has the same key."""
        if not rows:
            return []
        upsert = insert(model).values(rows)
        written = {name: upsert.excluded[name] for name in rows[0] if name not in key}
        stored = await self.session.scalars(
            upsert.on_conflict_do_update(
                index_elements=key, set_={**written, "row_version": model.row_version + 1, "updated_at": func.now()}
            ).returning(model),
            execution_options={"populate_existing": True},
        )
        return list(stored)

    async def _note(
        self, account: Exchange, before: Mapping[str, BalanceView], balances: Sequence[Balance], comment: str | None
    ) -> None:
        entries = [
            {
                "ex_id": account.ex_id,
                "uid": account.uid,
                "currency": balance.currency,
                "balance": balance.total,
                "change": None if old is None else balance.total - old.total,
                "comment": comment,
                "timestamp": balance.timestamp,
            }
            for balance, old in ((balance, before.get(balance.currency)) for balance in balances)
            if old is None or old.total != balance.total
        ]
        if entries:
            await self.session.execute(insert(ExchangeHistory).values(entries))

    async def _check_symbols_and_bots(self, account: Exchange, positions: Sequence[dict[str, Any]]) -> None:
        symbols = await self.session.execute(
            select(Symbol.id, Symbol.exchange_id).where(
                Symbol.id.in_({position["symbol_id"] for position in positions})
            )
        )
        listed_on = {row.id: row.exchange_id for row in symbols}
        bot_ids = {position["bot_id"] for position in positions if position.get("bot_id") is not None}
        bots = await self.session.execute(select(Bot.bot_id, Bot.uid).where(Bot.bot_id.in_(bot_ids)))
        owners = {row.bot_id: row.uid for row in bots}
        for place, position in enumerate(positions):
            symbol_id, bot_id = position["symbol_id"], position.get("bot_id")
            if symbol_id not in listed_on:
                raise Refusal(
                    ErrorCode.NOT_FOUND, f"there is no symbol {symbol_id}", field=f"positions.{place}.symbol_id"
                )
            if listed_on[symbol_id] != account.cat_ex_id:
                raise Refusal(
                    ErrorCode.FORBIDDEN,
                    f"symbol {symbol_id} is not listed on the exchange of account {account.ex_id}",
                    field=f"positions.{place}.symbol_id",
                )
            if bot_id is not None:
                check_owner(f"positions.{place}.bot_id", f"bot {bot_id}", owners.get(bot_id), account.uid)


def _is_newer(stored: BalanceView | PositionView | None, timestamp: datetime) -> bool:
    return stored is None or stored.timestamp < timestamp


def _side(volume: Any) -> str:
    if volume == 0:
        return "flat"
    return "long" if volume > 0 else "short"
