"""Commands about the caches of this service and of others."""

from collections.abc import Iterable
from typing import Final

from contracts import cache_keys
from contracts.base import Change, Event, V
from contracts.bot import BotDeleted, BotExchangeRemoved, BotExchangeView, BotView
from contracts.cache import CacheInvalidated, InvalidateCache, Invalidated, InvalidationView
from contracts.errors import ErrorCode, Refusal
from contracts.exchange import ExchangeDeleted, ExchangeView
from contracts.symbol import SymbolDeleted, SymbolView
from contracts.user import UserDeleted, UserView
from service.models import CatExchange
from service.outbox import record
from service.registry import CommandTable
from service.unit_of_work import UnitOfWork

handlers = CommandTable()

_KEYS_PER_CHANGE: Final = 1_000


@handlers.handles(InvalidateCache)
async def invalidate_cache(command: InvalidateCache, work: UnitOfWork) -> Invalidated:
    keys: Iterable[str] = command.keys or ()
    if command.cat_ex_id is not None:
        keys = await _keys_of_catalog(command.cat_ex_id, work)
    elif command.uid is not None:
        keys = await _keys_of_user(command.uid, work)
    stale = list(dict.fromkeys(keys))
    for start in range(0, len(stale), _KEYS_PER_CHANGE):
        some = stale[start : start + _KEYS_PER_CHANGE]
        record(
            work.session,
            CacheInvalidated,
            after=InvalidationView(cat_ex_id=command.cat_ex_id, uid=command.uid, keys=some),
        )
    return Invalidated(keys=len(stale))


async def _keys_of_catalog(cat_ex_id: int, work: UnitOfWork) -> Iterable[str]:
    if await work.session.get(CatExchange, cat_ex_id) is None:
        raise Refusal(ErrorCode.NOT_FOUND, f"there is no catalog exchange {cat_ex_id}", field="cat_ex_id")
    symbols = [SymbolView.model_validate(symbol) for symbol in await work.symbols.get_by_exchange_id(cat_ex_id)]
    return (
        cache_keys.exchange_catalog(),
        cache_keys.symbols_of_exchange(cat_ex_id),
        cache_keys.all_symbols(),
        *_keys_of(SymbolDeleted, symbols),
    )


async def _keys_of_user(uid: int, work: UnitOfWork) -> Iterable[str]:
    user = await work.users.get_by_id(uid)
    if user is None:
        raise Refusal(ErrorCode.NOT_FOUND, f"there is no user {uid}", field="uid")
    accounts = [ExchangeView.model_validate(account) for account in await work.exchanges.get_exchanges_by_user(uid)]
    bots = await work.bots.get_bots_by_user(uid)
    details = await work.bots.get_bots_with_details([bot.bot_id for bot in bots])
    links = [BotExchangeView.model_validate(link) for bot in details for link in bot.bot_exchanges]
    # Whatever would go stale if all of it were deleted.
    return (
        *_keys_of(UserDeleted, [UserView.model_validate(user)]),
        *_keys_of(ExchangeDeleted, accounts),
        *_keys_of(BotDeleted, [BotView.model_validate(bot) for bot in bots]),
        *_keys_of(BotExchangeRemoved, links),
    )


def _keys_of(event: type[Event[V]], images: Iterable[V]) -> list[str]:
    return event.stale_keys_of(Change(key={}, version=0, before=image) for image in images)
