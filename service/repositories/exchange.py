"""The catalog of exchanges and users' accounts in the database."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.errors import ErrorCode, Refusal
from contracts.exchange import CatExchangeView, ExchangeCreated, ExchangeInstalled, ExchangeView
from service.models import CatExchange, CatExchangeParam, Exchange
from service.outbox import record
from service.repositories.base import BaseRepository


class ExchangeRepository(BaseRepository[Exchange]):
    """Accounts by id and owner, and the catalog they are made from."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, Exchange)

    async def install_exchange(
        self, name: str, *, ohlcv_view: str = "", params: dict[str, str] | None = None
    ) -> tuple[CatExchange, bool]:
        """The catalog exchange of that name, and whether it is new.

        ``conflict`` if there is one with another view or other params.
        """
        params = params or {}
        new = await self.session.scalar(
            insert(CatExchange)
            .values(name=name, ohlcv_view=ohlcv_view)
            .on_conflict_do_nothing(index_elements=["name"])
            .returning(CatExchange)
        )
        if new is None:
            return await self._installed(name, ohlcv_view, params), False
        self.session.add_all(
            CatExchangeParam(cat_ex_id=new.cat_ex_id, name=param, value=value) for param, value in params.items()
        )
        await self.session.flush()
        record(self.session, ExchangeInstalled, after=CatExchangeView.model_validate(new))
        return new, True

    async def _installed(self, name: str, ohlcv_view: str, params: dict[str, str]) -> CatExchange:
        existing = (await self.session.scalars(select(CatExchange).where(CatExchange.name == name))).one()
        stored = await self.session.execute(
            select(CatExchangeParam.name, CatExchangeParam.value).where(
                CatExchangeParam.cat_ex_id == existing.cat_ex_id
            )
        )
        if existing.ohlcv_view != ohlcv_view or {row.name: row.value for row in stored} != params:
            raise Refusal(ErrorCode.CONFLICT, "the catalog has it with other content", field="name")
        return existing

    async def create(self, exchange_data: dict[str, Any]) -> Exchange:
        """A new account. ``not_found`` if user or catalog exchange do not exist.

        Raises IntegrityError if the user has an account of that name there.
        """
        exchange = Exchange(**exchange_data)
        self.session.add(exchange)
        await self.session.flush()
        record(self.session, ExchangeCreated, after=ExchangeView.model_validate(exchange))
        return exchange

    async def get_exchanges_by_user(self, uid: int) -> list[Exchange]:
        """A user's accounts, oldest first."""
        return list(await self.session.scalars(select(Exchange).where(Exchange.uid == uid).order_by(Exchange.ex_id)))

    async def get_exchange_catalog(self) -> list[CatExchange]:
        """All catalog exchanges by name."""
        return list(await self.session.scalars(select(CatExchange).order_by(CatExchange.name)))
