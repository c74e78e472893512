"""Lookups of the catalog of exchanges and of accounts there."""

from contracts import cache_keys
from contracts.exchange import (
    CatExchangeView,
    ExchangeCredentials,
    ExchangeView,
    GetActiveExchanges,
    GetExchange,
    GetExchangeCatalog,
    GetExchangeCredentials,
    GetExchangeParams,
    GetExchangesByUser,
    GetSealingKey,
    SealingKeyView,
)
from contracts.sealing import key_id_of
from service.registry import LookupTable
from service.unit_of_work import UnitOfWork
from service.vault import vault_of

lookups = LookupTable()


@lookups.answers(GetExchange)
async def get_exchange(lookup: GetExchange, reads: UnitOfWork) -> ExchangeView | None:
    exchange = await reads.exchanges.get_by_id(lookup.ex_id)
    return None if exchange is None else ExchangeView.model_validate(exchange)


@lookups.answers(GetExchangesByUser, cached_under=lambda lookup: cache_keys.exchanges_of_user(lookup.uid))
async def get_exchanges_by_user(lookup: GetExchangesByUser, reads: UnitOfWork) -> list[ExchangeView]:
    return [ExchangeView.model_validate(row) for row in await reads.exchanges.get_exchanges_by_user(lookup.uid)]


@lookups.answers(GetExchangeParams, cached_under=lambda lookup: cache_keys.exchange_params(lookup.ex_id))
async def get_exchange_params(lookup: GetExchangeParams, reads: UnitOfWork) -> dict[str, str] | None:
    return await reads.exchanges.get_exchange_params(lookup.ex_id)


@lookups.answers(GetExchangeCatalog, cached_under=lambda _: cache_keys.exchange_catalog())
async def get_exchange_catalog(_: GetExchangeCatalog, reads: UnitOfWork) -> list[CatExchangeView]:
    return [CatExchangeView.model_validate(row) for row in await reads.exchanges.get_exchange_catalog()]


@lookups.answers(GetActiveExchanges, cached_under=lambda _: cache_keys.active_exchanges())
async def get_active_exchanges(_: GetActiveExchanges, reads: UnitOfWork) -> list[ExchangeView]:
    return [ExchangeView.model_validate(row) for row in await reads.exchanges.get_active_exchanges()]


@lookups.answers(GetExchangeCredentials)
async def get_exchange_credentials(lookup: GetExchangeCredentials, reads: UnitOfWork) -> ExchangeCredentials | None:
    return await reads.exchanges.get_exchange_credentials(lookup.ex_id, lookup.public_key)


@lookups.answers(GetSealingKey)
async def get_sealing_key(_: GetSealingKey, reads: UnitOfWork) -> SealingKeyView | None:
    public_key = vault_of(reads.session).public_key
    return None if public_key is None else SealingKeyView(key_id=key_id_of(public_key), public_key=public_key)
