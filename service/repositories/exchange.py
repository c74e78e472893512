"""The catalog of exchanges and users' accounts in the database."""

from typing import Any, Final

from sqlalchemy import delete, func, literal, select, union_all
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.errors import ErrorCode, Refusal
from contracts.exchange import (
    CREDENTIAL_FIELDS,
    CatExchangeView,
    ExchangeCreated,
    ExchangeCredentials,
    ExchangeDeleted,
    ExchangeDeletion,
    ExchangeInstalled,
    ExchangeParamsChange,
    ExchangeParamsChanged,
    ExchangeUpdated,
    ExchangeView,
)
from service.cache import cache_manager
from service.models import (
    OPEN_STATUSES,
    BotExchange,
    CatExchange,
    CatExchangeParam,
    DryTrade,
    Exchange,
    ExchangeCredential,
    ExchangeParam,
    Order,
    Symbol,
    Trade,
)
from service.outbox import record
from service.repositories.base import (
    BaseRepository,
    check_version,
    delete_in_steps,
    differing,
    fitting,
    locked,
    moves_key,
    refuse_secret_names,
)
from service.repositories.bot_exchange import BotExchangeRepository
from service.repositories.symbol import SymbolRepository
from service.repositories.trade import TradeRepository
from service.vault import NotReadable, Place, Renewal, vault_of

# A change of the catalog's params names the accounts it concerns; so many fit well into one change.
_ACCOUNTS_PER_CHANGE: Final = 1_000


class ExchangeRepository(BaseRepository[Exchange]):
    """Accounts by id and owner, and the catalog they are made from."""

    view = ExchangeView
    created = ExchangeCreated
    updated = ExchangeUpdated
    deleted = ExchangeDeleted

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, Exchange)

    async def install_exchange(
        self, name: str, *, ohlcv_view: str = "", params: dict[str, str] | None = None
    ) -> tuple[CatExchange, bool]:
        """The catalog exchange of that name, and whether it is new.

        ``conflict`` if there is one with another view or other params.
        """
        params = params or {}
        refuse_secret_names(params)
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

    async def create(self, data: dict[str, Any]) -> Exchange:
        """A new account; credentials come sealed, as fields of its owner.

        ``not_found`` if user or catalog exchange do not exist. Raises IntegrityError if the user has an account of
        that name there.
        """
        secrets, values = _split(data)
        secrets = {field: sealed for field, sealed in secrets.items() if sealed is not None}
        exchange = Exchange(**fitting(Exchange, values), has_credentials=bool(secrets))
        # Whoever goes on after a refusal finds nothing half done.
        async with self.session.begin_nested():
            self.session.add(exchange)
            await self.session.flush()
            await self._keep(exchange, None, secrets)
        record(self.session, ExchangeCreated, after=ExchangeView.model_validate(exchange))
        return exchange

    async def add_user_exchange(self, exchange_data: dict[str, Any]) -> Exchange:
        """A new account. See `create`."""
        return await self.create(exchange_data)

    async def update(self, id: int, updates: dict[str, Any], *, expected_version: int | None = None) -> Exchange:  # noqa: A002
        """The account with ``updates`` applied; credentials come sealed, or are None to take them away.

        No new version and no event if nothing differs; credentials that are sent always do. Credentials that are
        not sent anew do not go to another owner. ``conflict`` if a live bot would be left without any.
        """
        secrets, values = _split(updates)
        exchange = await self._locked(id, "ex_id", whole=moves_key(Exchange, values))
        check_version(exchange, expected_version)
        values = self._changeable(values)
        if not secrets and not differing(exchange, values):
            return exchange
        before = ExchangeView.model_validate(exchange)
        kept = await self.session.get(ExchangeCredential, id, with_for_update=True, populate_existing=True)
        if values.get("uid", exchange.uid) != exchange.uid:
            await self._check_movable(id)
            await self._forget(kept)
            kept = None
        held = {field for field in CREDENTIAL_FIELDS if kept is not None and getattr(kept, field) is not None}
        taken = [field for field, sealed in secrets.items() if not sealed]
        held = (held | {field for field, sealed in secrets.items() if sealed}) - set(taken)
        if taken and exchange.has_credentials and not held:
            links = BotExchangeRepository(self.session)
            await links.refuse_to_strand(await links.bots_using(id), id, field=taken[0])
        # One statement and one version, also if only credentials differ.
        async with self.session.begin_nested():
            for name, value in {**values, "has_credentials": bool(held), "updated_at": func.now()}.items():
                setattr(exchange, name, value)
            await self.session.flush()
            if held:
                await self._keep(exchange, kept, secrets)
            else:
                await self._forget(kept)
        record(self.session, ExchangeUpdated, before=before, after=ExchangeView.model_validate(exchange))
        return exchange

    async def _keep(
        self, exchange: Exchange, kept: ExchangeCredential | None, secrets: dict[str, str | None]
    ) -> None:
        """Store what came sealed, and forget what is None."""
        if not secrets:
            return
        vault = vault_of(self.session)
        stored = {
            field: sealed and vault.take_in(sealed, _place(exchange.ex_id, exchange.uid, field))
            for field, sealed in secrets.items()
        }
        if kept is None:
            self.session.add(ExchangeCredential(ex_id=exchange.ex_id, uid=exchange.uid, **stored))
        else:
            for field, value in stored.items():
                setattr(kept, field, value)
        await self.session.flush()

    async def _forget(self, kept: ExchangeCredential | None) -> None:
        if kept is not None:
            await self.session.delete(kept)
            await self.session.flush()

    async def _check_movable(self, ex_id: int) -> None:
        for column, things in (
            (Order.ex_id, "orders"),
            (Trade.ex_id, "trades"),
            (BotExchange.exchange_id, "bots"),
        ):
            if await self.session.scalar(select(column).where(column == ex_id).limit(1)):
                raise Refusal(ErrorCode.CONFLICT, f"an account with {things} cannot change its owner", field="uid")

    async def delete(self, id: int, *, force: bool = False) -> None:  # noqa: A002
        """Delete an account with all that is its. See `remove_user_exchange`."""
        await self.remove_user_exchange(id, force=force)

    async def remove_user_exchange(
        self, ex_id: int, *, force: bool = False, expected_version: int | None = None
    ) -> ExchangeDeletion:
        """Delete an account with credentials, params, orders and trades; says how many.

        ``conflict`` while it has open orders or an active bot trades there for real, unless ``force``.
        """
        exchange = await self._locked(ex_id, "ex_id", whole=True)
        check_version(exchange, expected_version)
        bot_exchanges = BotExchangeRepository(self.session)
        links, live = await bot_exchanges.to_account(ex_id)
        if not force:
            await self._check_idle(ex_id, live)
        before = ExchangeView.model_validate(exchange)
        await bot_exchanges.remove_all(links)
        await TradeRepository(self.session).clear_dry_trades(DryTrade.ex_id == ex_id, ex_id=ex_id)
        # The user is named too, for whose rows there is an index.
        trades = await delete_in_steps(
            self.session, Trade.trade_id, Trade.uid == exchange.uid, Trade.ex_id == exchange.ex_id
        )
        orders = await delete_in_steps(
            self.session, Order.order_id, Order.uid == exchange.uid, Order.ex_id == exchange.ex_id
        )
        await self.session.execute(
            delete(Exchange).where(Exchange.ex_id == ex_id), execution_options={"synchronize_session": False}
        )
        self.session.expunge(exchange)
        record(self.session, ExchangeDeleted, before=before)
        return ExchangeDeletion(ex_id=ex_id, orders=orders, trades=trades)

    async def _check_idle(self, ex_id: int, live_bots: list[int]) -> None:
        if live_bots:
            raise Refusal(
                ErrorCode.CONFLICT, f"bot {live_bots[0]} trades there; stop it, or use force", field="ex_id"
            )
        if await self.session.scalar(
            select(Order.order_id).where(Order.ex_id == ex_id, Order.status.in_(OPEN_STATUSES)).limit(1)
        ):
            raise Refusal(ErrorCode.CONFLICT, "the account has open orders; cancel them, or use force", field="ex_id")

    async def set_exchange_params(
        self,
        params: dict[str, str | None],
        *,
        cat_ex_id: int | None = None,
        ex_id: int | None = None,
        expected_version: int | None = None,
    ) -> ExchangeParamsChange:
        """The settings of a catalog exchange or an account, with ``params`` set and those that are None taken away.

        No event if nothing differs. ``not_found`` without such an exchange or account.
        """
        refuse_secret_names(params)
        owner: Exchange | CatExchange
        param: type[ExchangeParam | CatExchangeParam]
        if ex_id is not None:
            owner, param = await self._locked(ex_id, "ex_id"), ExchangeParam
            of, key = ExchangeParam.ex_id == ex_id, {"ex_id": ex_id}
        else:
            # As a whole: an account that is opened there meanwhile would not be among those concerned.
            owner = await locked(self.session, CatExchange, cat_ex_id or 0, "cat_ex_id", whole=True)
            param = CatExchangeParam
            of, key = CatExchangeParam.cat_ex_id == owner.cat_ex_id, {"cat_ex_id": owner.cat_ex_id}
        check_version(owner, expected_version)
        rows = await self.session.execute(select(param.name, param.value).where(of).order_by(param.name))
        old: dict[str, str] = {row.name: row.value for row in rows}
        new = {name: value for name, value in {**old, **params}.items() if value is not None}
        image = ExchangeParamsChange(
            cat_ex_id=owner.cat_ex_id,
            ex_id=ex_id,
            uid=owner.uid if isinstance(owner, Exchange) else None,
            params=old,
            row_version=owner.row_version,
            accounts=[],
        )
        if new == old:
            return image
        await self.session.execute(
            delete(param).where(of, param.name.in_(params)), execution_options={"synchronize_session": False}
        )
        if said := [{**key, "name": name, "value": value} for name, value in params.items() if value is not None]:
            await self.session.execute(insert(param).values(said))
        owner.updated_at = func.now()
        await self.session.flush()
        accounts = [ex_id] if ex_id is not None else await self._accounts_of(owner.cat_ex_id)
        after = image.model_copy(update={"params": dict(sorted(new.items())), "row_version": owner.row_version})
        # Once also for an exchange without accounts: its version is another one.
        for start in range(0, max(len(accounts), 1), _ACCOUNTS_PER_CHANGE):
            concerned = {"accounts": accounts[start : start + _ACCOUNTS_PER_CHANGE]}
            record(
                self.session,
                ExchangeParamsChanged,
                before=image.model_copy(update=concerned),
                after=after.model_copy(update=concerned),
            )
        return after

    async def _accounts_of(self, cat_ex_id: int) -> list[int]:
        return list(
            await self.session.scalars(
                select(Exchange.ex_id).where(Exchange.cat_ex_id == cat_ex_id).order_by(Exchange.ex_id)
            )
        )

    @cache_manager.cache_on_exchange_methods
    async def get_exchange_params(self, ex_id: int) -> dict[str, str] | None:
        """The settings of an account: the catalog's, and over them its own; None without such an account."""
        of_catalog = (
            select(literal(0).label("rank"), CatExchangeParam.name, CatExchangeParam.value)
            .join(Exchange, Exchange.cat_ex_id == CatExchangeParam.cat_ex_id)
            .where(Exchange.ex_id == ex_id)
        )
        of_account = select(literal(1), ExchangeParam.name, ExchangeParam.value).where(ExchangeParam.ex_id == ex_id)
        rows = (await self.session.execute(union_all(of_catalog, of_account).order_by("rank", "name"))).all()
        if not rows and await self.get_by_id(ex_id) is None:
            return None
        return {row.name: row.value for row in rows}

    async def get_exchange_credentials(self, ex_id: int, public_key: str) -> ExchangeCredentials | None:
        """The credentials of an account, sealed for the holder of ``public_key``; None if there are none."""
        kept = await self.session.get(ExchangeCredential, ex_id)
        if kept is None:
            return None
        vault = vault_of(self.session)
        sealed = {
            field: stored and vault.give_out(stored, _place(ex_id, kept.uid, field), public_key)
            for field in CREDENTIAL_FIELDS
            for stored in [getattr(kept, field)]
        }
        return ExchangeCredentials(ex_id=ex_id, uid=kept.uid, **sealed)

    async def renew_secrets(self, after: int, limit: int) -> Renewal:
        """Store the credentials of some accounts, from behind the id ``after`` on, under the present storage key."""
        vault = vault_of(self.session)
        rows = (
            await self.session.scalars(
                select(ExchangeCredential)
                .where(ExchangeCredential.ex_id > after)
                .order_by(ExchangeCredential.ex_id)
                .limit(limit)
                .with_for_update(key_share=True),
                execution_options={"populate_existing": True},
            )
        ).all()
        renewed = 0
        unreadable = []
        for row in rows:
            stored = {field: getattr(row, field) for field in CREDENTIAL_FIELDS}
            try:
                fresh = {
                    field: value and vault.renew(value, _place(row.ex_id, row.uid, field))
                    for field, value in stored.items()
                }
            except NotReadable:
                unreadable.append(row.ex_id)
                continue
            if fresh != stored:
                renewed += 1
                for field, value in fresh.items():
                    setattr(row, field, value)
        await self.session.flush()
        return Renewal(rows[-1].ex_id if rows else None, len(rows), renewed, unreadable)

    @cache_manager.cache_on_exchange_methods
    async def get_exchanges_by_user(self, uid: int) -> list[Exchange]:
        """A user's accounts, oldest first."""
        return list(await self.session.scalars(select(Exchange).where(Exchange.uid == uid).order_by(Exchange.ex_id)))

    async def get_user_exchanges(self, uid: int) -> list[Exchange]:
        """A user's accounts. See `get_exchanges_by_user`."""
        return await self.get_exchanges_by_user(uid)

    @cache_manager.cache_on_exchange_methods
    async def get_active_exchanges(self) -> list[Exchange]:
        """All active accounts of all users, oldest first."""
        return list(await self.session.scalars(select(Exchange).where(Exchange.active).order_by(Exchange.ex_id)))

    async def get_exchange(
        self,
        *,
        ex_id: int | None = None,
        uid: int | None = None,
        cat_ex_id: int | None = None,
        ex_name: str | None = None,
        active: bool | None = None,
    ) -> list[Exchange]:
        """The accounts that all given filters fit, oldest first."""
        filters = {"ex_id": ex_id, "uid": uid, "cat_ex_id": cat_ex_id, "ex_name": ex_name, "active": active}
        given = {name: value for name, value in filters.items() if value is not None}
        return list(await self.session.scalars(select(Exchange).filter_by(**given).order_by(Exchange.ex_id)))

    async def get_exchange_id(self, name: str, uid: int) -> int | None:
        """The id of the user's account of that name, the oldest if there are several; None without one."""
        return await self.session.scalar(
            select(Exchange.ex_id)
            .where(Exchange.ex_name == name, Exchange.uid == uid)
            .order_by(Exchange.ex_id)
            .limit(1)
        )

    async def get_exchange_cat_id(self, name: str | None = None, *, ex_id: int | None = None) -> int | None:
        """The id of the catalog exchange of that name, or of an account; None without one."""
        if name is not None:
            return await self.session.scalar(select(CatExchange.cat_ex_id).where(CatExchange.name == name))
        return await self.session.scalar(select(Exchange.cat_ex_id).where(Exchange.ex_id == ex_id))

    @cache_manager.cache_on_exchange_methods
    async def get_exchange_catalog(self) -> list[CatExchange]:
        """All catalog exchanges by name."""
        return list(await self.session.scalars(select(CatExchange).order_by(CatExchange.name)))

    async def get_exchange_symbols(self, cat_ex_id: int) -> list[Symbol]:
        """All symbols of a catalog exchange by name."""
        return await SymbolRepository(self.session).get_by_exchange_id(cat_ex_id)


def _place(ex_id: int, uid: int, field: str) -> Place:
    return Place("exchange_credentials", ex_id, uid, field)


def _split(data: dict[str, Any]) -> tuple[dict[str, str | None], dict[str, Any]]:
    """Credentials, and everything else."""
    secrets = {name: value for name, value in data.items() if name in CREDENTIAL_FIELDS}
    return secrets, {name: value for name, value in data.items() if name not in secrets}
