"""The cache of programs that use the library: the same keys and values in Redis that the service's lookups have.

What is cached is JSON of views, never a pickled row; an object that comes out of it belongs to no session. Whether it
may be read is the leased cache's to know: without a service that removes what became stale, and without Redis, every
read goes to the database.
"""

import inspect
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from copy import copy
from functools import cache, cached_property, reduce, wraps
from operator import or_
from types import UnionType
from typing import Any, Final, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter
from redis.asyncio import Redis
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, make_transient_to_detached

from contracts import cache_keys
from contracts.base import View
from contracts.cache_store import REDIS_AWAY
from contracts.certificate_watch import CertificateWatch
from contracts.exchange import CatExchangeView, ExchangeView
from contracts.leased_cache import LeasedCache, connect
from contracts.symbol import SymbolView
from service.base import Base
from service.config import LibrarySettings
from service.engine import get_engine
from service.models import CatExchange, Exchange, Symbol
from service.observability import count_cache_request
from service.outbox import pending_stale_keys, stale_keys

P = ParamSpec("P")
R = TypeVar("R")
Key = Callable[..., str]

_VIEWS: Final[Mapping[type[Base], type[View]]] = {
    Symbol: SymbolView,
    Exchange: ExchangeView,
    CatExchange: CatExchangeView,
}
_MODELS: Final = {view: model for model, view in _VIEWS.items()}

_KEYS_OF_SYMBOL_METHODS: Final[Mapping[str, Key]] = {
    "get_by_symbol": cache_keys.symbol,
    "get_by_exchange_id": cache_keys.symbols_of_exchange,
    "get_decimals": cache_keys.symbol_decimals,
}
_KEYS_OF_EXCHANGE_METHODS: Final[Mapping[str, Key]] = {
    "get_exchanges_by_user": cache_keys.exchanges_of_user,
    "get_exchange_params": cache_keys.exchange_params,
    "get_exchange_catalog": cache_keys.exchange_catalog,
    "get_active_exchanges": cache_keys.active_exchanges,
}

_TO_REMOVE: Final = "keys_to_remove"


class CacheManager:
    """The cache of this process, on the Redis of its environment."""

    @cached_property
    def settings(self) -> LibrarySettings:
        """The settings as they were at the first use."""
        return LibrarySettings.read()

    @cached_property
    def redis_client(self) -> Redis:
        """The connection to Redis, which gives up after ``CACHE_TIMEOUT``."""
        return connect(self.settings.redis_url.get_secret_value(), timeout=self.settings.cache_timeout)

    @cached_property
    def certificate(self) -> CertificateWatch:
        """Whether a service keeps the cache fresh."""
        return CertificateWatch(self.redis_client, namespace=self.settings.cache_namespace)

    @cached_property
    def values(self) -> LeasedCache:
        """The cached values by their logical keys."""
        return LeasedCache(
            self.redis_client,
            namespace=self.settings.cache_namespace,
            certificate=self.certificate.current,
            ttl=self.settings.cache_ttl,
            timeout=self.settings.cache_timeout,
            count=count_cache_request,
        )

    async def close(self) -> None:
        """Close the connection; the next use opens another one, with the settings as they are then."""
        if "redis_client" in vars(self):
            await self.redis_client.aclose()
        for name in ("values", "certificate", "redis_client", "settings"):
            vars(self).pop(name, None)

    def cache_on_symbol_methods(self, method: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        """The method, read through the cache: under the manual's key, or for a minute if it is one of your own.

        It is asynchronous, and says what it returns: plain values, views, or symbols and exchanges, one or a list.
        In a session that does not read through the cache, or has changed what is asked for, it is what it was.
        """
        return self._cached(method, "symbol", _KEYS_OF_SYMBOL_METHODS)

    def cache_on_exchange_methods(self, method: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        """The method, read through the cache. See `cache_on_symbol_methods`."""
        return self._cached(method, "exchange", _KEYS_OF_EXCHANGE_METHODS)

    def _cached(
        self, method: Callable[P, Awaitable[R]], kind: str, keys: Mapping[str, Key]
    ) -> Callable[P, Coroutine[Any, Any, R]]:
        name = getattr(method, "__name__", "")
        if not inspect.iscoroutinefunction(method):
            raise TypeError(f"{name} is not asynchronous")
        signature = inspect.signature(method)

        @wraps(method)
        async def cached(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            owner = bound.arguments.get("self")
            session = getattr(owner, "session", None)
            arguments = [value for parameter, value in bound.arguments.items() if parameter != "self"]
            key = keys[name](*arguments) if name in keys else _key_of_query(kind, method, arguments)
            if session is not None and not _reads_through(session, key):
                return await method(*args, **kwargs)
            adapter, has_models = _adapter(method)

            async def load() -> bytes:
                if session is None:
                    return adapter.dump_json(adapter.validate_python(await method(*args, **kwargs)))
                # The caller's session still holds rows as it has read them before; what is cached is read anew.
                async with AsyncSession(session.bind) as fresh:
                    reader: Any = copy(owner)
                    reader.session = fresh
                    bound.arguments["self"] = reader
                    return adapter.dump_json(adapter.validate_python(await method(*bound.args, **bound.kwargs)))

            await self.certificate.look_if_due()
            value = adapter.validate_json(await self.values.get(key, load) or b"null")
            result: R = _as_models(value) if has_models else value
            return result

        return cached

    async def invalidate(self, keys: Sequence[str]) -> None:
        """Remove logical keys at once. With Redis away the service removes them, when it hears of the change."""
        await self.certificate.look_if_due()
        with suppress(*REDIS_AWAY):
            await self.values.invalidate(keys)

    async def invalidate_symbol_caches(self, exchange_id: int) -> None:
        """Remove what is cached about the symbols of a catalog exchange. Changes do so by themselves."""
        async with AsyncSession(get_engine()) as session:
            listed = await session.execute(select(Symbol.id, Symbol.symbol).where(Symbol.exchange_id == exchange_id))
            await self.invalidate(
                [
                    cache_keys.all_symbols(),
                    cache_keys.symbols_of_exchange(exchange_id),
                    *(
                        key
                        for row in listed
                        for key in (
                            cache_keys.symbol(row.symbol, exchange_id),
                            cache_keys.symbol_by_id(row.id),
                            cache_keys.symbol_decimals(row.id),
                        )
                    ),
                ]
            )

    async def invalidate_exchange_caches(self, uid: int) -> None:
        """Remove what is cached about the accounts of a user. Changes do so by themselves."""
        async with AsyncSession(get_engine()) as session:
            accounts = await session.scalars(select(Exchange.ex_id).where(Exchange.uid == uid))
            await self.invalidate(
                [
                    cache_keys.active_exchanges(),
                    cache_keys.exchanges_of_user(uid),
                    *(cache_keys.exchange_params(ex_id) for ex_id in accounts),
                ]
            )


cache_manager: Final = CacheManager()


class _NotingSession(Session):
    """Notes what its commits made stale."""


@event.listens_for(_NotingSession, "after_commit")
def _note(session: Session) -> None:
    # In whatever way it was committed: a block of ``begin()`` passes `CachingSession.commit` by.
    session.info.setdefault(_TO_REMOVE, set()).update(stale_keys(session))


class CachingSession(AsyncSession):
    """A session whose repositories read through `cache_manager`, and which removes there what it made stale."""

    sync_session_class = _NotingSession

    async def commit(self) -> None:
        """Commit; then nobody reads the older values any more."""
        await super().commit()
        await self._remove_stale()

    async def close(self) -> None:
        """Give the connection back; what was committed in a block of ``begin()`` is removed now."""
        await super().close()
        await self._remove_stale()

    async def _remove_stale(self) -> None:
        if keys := self.info.pop(_TO_REMOVE, None):
            await cache_manager.invalidate(sorted(keys))


def _key_of_query(kind: str, method: Callable[..., Any], arguments: Sequence[Any]) -> str:
    return cache_keys.query(kind, method.__qualname__, json.dumps(arguments, default=str, ensure_ascii=False))


def _reads_through(session: AsyncSession, key: str) -> bool:
    """Whether the session may be answered from the cache: not about what it has changed itself."""
    if not isinstance(session, CachingSession):
        return False
    return key not in pending_stale_keys(session) and key not in session.info.get(_TO_REMOVE, ())


@cache
def _adapter(method: Callable[..., Any]) -> tuple[TypeAdapter[Any], bool]:
    """How what a method returns is written as JSON, and whether rows stand in it."""
    returned = get_type_hints(method).get("return")
    if returned is None:
        raise TypeError(f"{method.__qualname__} does not say what it returns")
    shown = _as_views(returned)
    return TypeAdapter(shown), shown != returned


def _as_views(annotation: Any) -> Any:
    """The type with views in the place of rows."""
    if isinstance(annotation, type) and issubclass(annotation, Base):
        if annotation not in _VIEWS:
            raise TypeError(f"a {annotation.__name__} is not cached; return a view of it")
        return _VIEWS[annotation]
    parts = tuple(_as_views(part) for part in get_args(annotation))
    if not parts:
        return annotation
    origin = get_origin(annotation)
    return reduce(or_, parts) if origin in (Union, UnionType) else origin[parts]


def _as_models(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_models(part) for part in value]
    if (model := _MODELS.get(type(value))) is None:
        return value
    return detached(model, value)


def detached(model: type[Base], view: View) -> Any:
    """The row that a view shows, in no session: relationships raise, and columns that views leave out are None."""
    columns = dict.fromkeys(model.__mapper__.column_attrs.keys())
    row = model(**{**columns, **view.model_dump()})
    make_transient_to_detached(row)
    return row
