"""A read-through cache that no late writer can make stale (extra ``cache``).

Each key holds either a value or a lease: a nonce that a reader puts there before it loads. The value is stored by
compare-and-set against that nonce, and invalidation is a plain UNLINK, which removes values and leases alike. So a
load that began before an invalidation can no longer be stored after it. The idea is the lease of R. Nishtala et al.,
"Scaling Memcache at Facebook", NSDI 2013. Who waits too long for the holder of a lease loads under the same one: it
was there before that load as well, and whoever stores first takes its place.

As long as Redis answers and every invalidation is applied: a read that begins after an invalidation never gives what
was loaded before it, and no reader is given an older value after anybody was given a newer one. tests/cache shows it.
"""

import asyncio
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from redis.asyncio import Redis, RedisCluster

from contracts.cache_entry import LEASE, Entry, Load, Loaded, new_lease, only
from contracts.cache_store import Away, Store, connect
from contracts.cancellation import end
from contracts.certificate import UNCERTIFIED, Certificate, CertificateSource, name_of
from contracts.key_spec import ANY, SPECS, spec_of
from contracts.loads import Loads

__all__ = ["Away", "LeasedCache", "Load", "LoadMany", "Loaded", "connect"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Count = Callable[[str, str], None]
LoadMany = Callable[[Sequence[str]], Awaitable[Mapping[str, Loaded | bytes | None]]]
"""Reads the values of many keys together; what it leaves out is absent. Otherwise like `Load`."""

_LEASE_MS: Final = 60_000
"""Longer than a load takes: what takes longer is never stored. Nobody has to wait for a lease to run out."""
_END_MS: Final = 1
_TRIES: Final = 3
_GRACE_SECONDS: Final = 0.05
_KEPT_AT_MOST: Final = 64
_OWED_AT_MOST: Final = 100_000


@dataclass(eq=False, slots=True)
class _Flight:
    """A load under a lease, which other readers of this process may wait for."""

    lease: bytes
    """Its own, or that of another process which was there first."""
    landed: asyncio.Future[Entry | None]
    """None if nothing was stored."""


class LeasedCache:
    """Values by logical key, in one namespace of a Redis, a Valkey or a cluster of these.

    With Redis away every read goes to its source; nothing is ever served that an invalidation has removed.
    """

    def __init__(
        self,
        redis: Redis | RedisCluster,
        *,
        namespace: str,
        certificate: CertificateSource | None = None,
        ttl: float = 86_400.0,
        timeout: float = 0.1,
        loads_at_once: int = 100,
        count: Count = lambda _, __: None,
    ) -> None:
        """``certificate`` tells whether the cache may be read, and for which keys; without one it always may.

        Keys of other kinds, and keys that no `KeySpec` declares, are then read from their source each time: nobody
        would remove them when they become stale. It is logged once for each kind.

        ``ttl`` is how long values live whose kind says nothing else. ``timeout`` is how long a read waits, for Redis
        and for other readers' loads, before it loads itself. Both are in seconds. ``count`` is told the pattern of a
        key and what became of a read of it: ``hit``, ``absent`` (a hit that says there is nothing), ``miss``,
        ``join`` (another reader's load), ``stale`` (uncertain, but young enough) or ``bypass``. It is also told what
        happened besides: ``refreshed``, ``rejected`` (a load that came too late), ``shared`` (another process's
        lease, whose load took too long to wait for), ``last_resort`` and ``forgotten``: of a cache without a
        certificate, which loaded more than 100,000 keys while Redis was away, that one of them may be old there.
        """
        self._store = Store(redis, timeout=timeout)
        self._namespace = namespace
        self._certificate = certificate or (lambda: UNCERTIFIED)
        self._is_certified = certificate is not None
        self._not_before = UNCERTIFIED.as_of
        """A certificate of before that does not count: what was given out since may be newer than what it is for."""
        self._last: Certificate | None = None
        self._ttl = ttl
        self._count = count
        self._loads = Loads[Loaded](loads_at_once)
        self._flights: dict[str, _Flight] = {}
        """Loads under a lease whose value was not sent to Redis yet, by name."""
        self._kept: OrderedDict[str, tuple[Entry, Any, Any]] = OrderedDict()
        self._owed: dict[str, object] = {}
        """Keys to be removed before they are read again: something newer than they may hold was given out."""
        self._not_kept: set[str] = set()
        """Kinds of keys that the certificate was not for, which was logged."""
        self._refreshing: set[str] = set()
        self._background: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End what is done in the background. The connection is the caller's."""
        await end(*self._background)

    async def get(self, key: str, load: Load, *, after: str | None = None) -> bytes | None:
        """The value of ``key``, loaded and stored if it is not cached; None if there is none. Only ``load`` can fail.

        With ``after``, the commit token of a command's reply, the value shows what that command did. To be found in
        the cache again by who asks with another token, it has to be `Loaded` with its snapshot.
        """
        if spec_of(key).is_large:
            return await self.get_decoded(key, load, _as_it_is, after=after)
        return (await self._read(key, load, after)).value

    async def get_decoded(
        self, key: str, load: Load, decode: Callable[[bytes | None], T], *, after: str | None = None
    ) -> T:
        """What ``decode`` makes of the value of ``key``, kept in this process while the cache holds that very value.

        Each read asks Redis for the few bytes that tell whether it does. All readers are given the same object, which
        they must not change.
        """
        certificate = self._current(key)
        name = "" if certificate is None else self._name(key, certificate)
        kept = self._kept.get(name)
        if kept is not None and kept[1] is decode and key not in self._owed and kept[0].shows(after):
            with suppress(Away):
                if self._store.may_be_asked() and await self._store.head(name) == kept[0].head:
                    self._hit(key, name, kept[0], load)
                    decoded: T = kept[2]
                    return decoded
        entry = await self._read(key, load, after)
        decoded = decode(entry.value)
        if entry.is_cached:
            self._kept[name] = (entry, decode, decoded)
            self._kept.move_to_end(name)
            if len(self._kept) > _KEPT_AT_MOST:
                self._kept.popitem(last=False)
        return decoded

    async def cached(self, keys: Sequence[str]) -> dict[str, bytes | None]:
        """Of these keys the values that are at hand in one round trip; it loads nothing and never fails.

        It leaves out those that a reader should load anew, and large ones.
        """
        certificate = self._current()
        if certificate is None:
            return {}
        wanted = [
            key
            for key in dict.fromkeys(keys)
            if key not in self._owed and not spec_of(key).is_large and certificate.is_for(key)
        ]
        # Asked last: who is let through to find out whether Redis is back has to ask it.
        if not wanted or not self._store.may_be_asked():
            return {}
        try:
            held = await self._store.get_many([self._name(key, certificate) for key in wanted])
        except Away:
            return {}
        now = time.time()
        found = {
            key: entry
            for key, entry in zip(wanted, map(_entry_in, held), strict=True)
            if entry is not None and not entry.is_due(now)
        }
        for key in keys:
            if key in found:
                self._count(spec_of(key).pattern, "absent" if found[key].is_absent else "hit")
        return {key: entry.value for key, entry in found.items()}

    async def get_many(self, keys: Sequence[str], load: LoadMany) -> dict[str, bytes | None]:
        """The values of many keys, in few round trips; ``load`` is given those that are not cached."""
        wanted = list(dict.fromkeys(keys))
        certificate = self._current()
        not_kept = [key for key in wanted if certificate is None or not self._is_for(certificate, key)]
        if certificate is None or len(not_kept) == len(wanted) or not self._store.may_be_asked():
            return await self._many_around(wanted, load)
        found = await self._many_around(not_kept, load) if not_kept else {}
        wanted = [key for key in wanted if key not in found]
        try:
            await self._settle(wanted, certificate)
            names = [self._name(key, certificate) for key in wanted]
            for key, name, held in zip(wanted, names, await self._store.get_many(names), strict=True):
                if (entry := _entry_in(held)) is not None:
                    self._hit(key, name, entry, _only(key, load))
                    found[key] = entry.value
            found |= await self._fill([key for key in wanted if key not in found], load, certificate)
        except Away:
            return found | await self._many_around([key for key in wanted if key not in found], load)
        # What others load at this moment, or could not be stored, goes the way of a single one.
        left = [key for key in wanted if key not in found]
        values = await asyncio.gather(*(self._read(key, _only(key, load), None) for key in left))
        return found | {key: entry.value for key, entry in zip(left, values, strict=True)}

    async def fill(self, keys: Sequence[str], load: LoadMany) -> int:
        """Load the keys that are not cached, together, and store them; gives how many were stored.

        Two round trips for every 500 keys. Raises RedisError if Redis is away.
        """
        certificate = self._current()
        if certificate is None:
            return 0
        return len(
            await self._fill([key for key in dict.fromkeys(keys) if certificate.is_for(key)], load, certificate)
        )

    async def around(self, key: str, load: Load) -> bytes | None:
        """The value from its source. Only ``load`` can fail.

        Those who ask while it is loaded share the next load. What is cached is removed afterwards, so that nobody
        reads an older value after this one.
        """
        return (await self._around(key, load, ask=self._store.may_be_asked())).value

    async def invalidate(self, keys: Iterable[str]) -> None:
        """Remove values and leases; raises RedisError if it is not certain that they are gone.

        That is so without a certificate, which tells the names, and for whole kinds of keys (``exchange:params:*``),
        which only who writes the certificate can leave behind.
        """
        wanted = list(keys)
        certificate = self._current()
        known = certificate or self._last
        if known is not None:
            await self._store.unlink([self._name(key, known) for key in wanted])
        if certificate is None:
            raise Away("without a certificate it is not known by which names the keys are cached")
        if kinds := [key for key in wanted if ANY in key]:
            raise Away(f"all keys of a kind cannot be removed here: {', '.join(kinds)}")

    async def _read(self, key: str, load: Load, after: str | None) -> Entry:
        certificate = self._current(key)
        if certificate is None:
            return await self._uncertain(key, load)
        if not self._store.may_be_asked():
            return await self._around(key, load, ask=False)
        name = name_of(self._namespace, key, certificate)
        try:
            if key in self._owed:
                await self._settle([key], certificate)
            waited_for = None
            for _ in range(_TRIES):
                until = asyncio.get_running_loop().time() + self._store.timeout
                held = await self._store.get(name, until)
                # As `_entry_in`, without the calls: this is on the way of every hit.
                entry = None if held is None or held[0] == LEASE else Entry(held)
                if entry is not None and (after is None or entry.shows(after)):
                    self._hit(key, name, entry, load)
                    return entry
                flight = self._flights.get(name)
                if flight is None or (flight is waited_for and held != flight.lease):
                    loaded = await self._lead(key, name, load, entry, until=until, after=after)
                else:
                    waited_for = flight
                    loaded = await self._join(
                        key, flight, after, None if held == flight.lease else self._store.timeout
                    )
                if loaded is not None:
                    return loaded
        except Away:
            return await self._around(key, load, ask=False)
        # Invalidations keep coming in between. Load first, then remove what others may have stored meanwhile: in
        # this order nobody reads an older value after this one was returned.
        self._count(spec_of(key).pattern, "last_resort")
        return await self._around(key, load, ask=True)

    async def _join(self, key: str, flight: _Flight, after: str | None, timeout: float | None) -> Entry | None:
        """What another reader of this process stored; None if that does not do, or takes too long.

        A load whose lease was removed is not worth waiting for, but whether it was cannot be told yet from a lease
        that was not there a moment ago.
        """
        await asyncio.wait([flight.landed], timeout=timeout)
        entry = flight.landed.result() if flight.landed.done() else None
        if entry is None or not entry.shows(after):
            return None
        self._count(spec_of(key).pattern, "join")
        return entry

    async def _lead(
        self, key: str, name: str, load: Load, stale: Entry | None, *, until: float, after: str | None
    ) -> Entry | None:
        """Load under a lease and store; None if the value may be old by now, or another reader's is there."""
        flight = self._flights[name] = _Flight(new_lease(), asyncio.get_running_loop().create_future())
        result: Entry | None = None
        try:
            if not await self._acquire(key, name, flight, stale, until):
                return None
            lease = flight.lease
            entry = await self._load_under(key, name, lease, load, after)
            # Who comes from now on must not be given this: it may be stale when the answer arrives.
            self._take_out(name, flight)
            try:
                is_stored = await self._store.swap(name, lease, entry.held, self._ttl_ms(key, entry))
            except Away:
                # It was loaded after this read began, so it is right for this reader, and for no other one.
                self._owe(key)
                self._count(spec_of(key).pattern, "bypass")
                return Entry(entry.held, is_cached=False)
            self._count(spec_of(key).pattern, "miss" if is_stored else "rejected")
            result = entry if is_stored else None
        except Exception as error:
            if not isinstance(error, Away):
                flight.landed.set_exception(error)
                flight.landed.exception()  # whether or not anybody joined
            raise
        finally:
            self._take_out(name, flight)
            if not flight.landed.done():
                flight.landed.set_result(result)
        return result

    def _take_out(self, name: str, flight: _Flight) -> None:
        if self._flights.get(name) is flight:
            del self._flights[name]

    async def _load_under(self, key: str, name: str, lease: bytes, load: Load, after: str | None) -> Entry:
        try:
            return await self._load(key, lease, load, after)
        except BaseException:
            # Nobody shall wait for a lease that is not going to be used.
            self._in_background(self._store.swap(name, lease, lease, _END_MS))
            raise

    async def _acquire(self, key: str, name: str, flight: _Flight, stale: Entry | None, until: float) -> bool:
        """Whether a lease is there to load under, as ``flight.lease``; if not, a value is.

        It may be another reader's whose load takes longer than this read waits. The lease is left there: what is
        loaded from now on was loaded while it was there, so it may take its place as well as what that one loads.
        """
        lease = flight.lease
        if stale is not None and await self._store.swap(name, stale.head, lease, _LEASE_MS, until=until):
            return True
        loop = asyncio.get_running_loop()
        held = await self._store.lease(name, lease, _LEASE_MS, until=until)
        pause = 0.002
        while held is not None and held[0] == LEASE and loop.time() < until:
            flight.lease = held
            await asyncio.sleep(min(pause * random.uniform(0.5, 1.5), until - loop.time()))
            pause = min(pause * 2, 0.05)
            held = await self._store.lease(name, lease, _LEASE_MS, until=until + _GRACE_SECONDS)
        if held is None:
            flight.lease = lease
            return True
        if held[0] != LEASE:
            return False
        flight.lease = held
        self._count(spec_of(key).pattern, "shared")
        return True

    def _hit(self, key: str, name: str, entry: Entry, load: Load) -> None:
        self._count(spec_of(key).pattern, "absent" if entry.is_absent else "hit")
        if entry.is_due(time.time()) and name not in self._refreshing:
            self._refreshing.add(name)
            self._in_background(self._refresh(key, name, entry, load))

    async def _refresh(self, key: str, name: str, entry: Entry, load: Load) -> None:
        """Put another value in the place of this very one, which must not have been removed meanwhile."""
        try:
            newer = await self._load(key, new_lease(), load)
            await self._store.swap(name, entry.head, newer.held, self._ttl_ms(key, newer))
            self._count(spec_of(key).pattern, "refreshed")
        finally:
            self._refreshing.discard(name)

    async def _uncertain(self, key: str, load: Load) -> Entry:
        """A read without a certificate."""
        may_be_asked = self._store.may_be_asked()
        last = self._last if self._last is not None and self._last.is_for(key) else None
        if spec_of(key).when_uncertain == "serve_stale" and last is not None and may_be_asked:
            with suppress(Away):
                entry = _entry_in(await self._store.get(self._name(key, last)))
                if entry is not None and entry.is_young(time.time()):
                    self._count(spec_of(key).pattern, "stale")
                    return Entry(entry.held, is_cached=False)
        return await self._around(key, load, ask=may_be_asked)

    async def _around(self, key: str, load: Load, *, ask: bool) -> Entry:
        self._count(spec_of(key).pattern, "bypass")
        loaded = await self._loads.shared(key, lambda: self._loaded(load))
        await self._remove_older([key], ask=ask)
        return Entry(self._entry(key, new_lease(), loaded, 0.0).held, is_cached=False)

    async def _many_around(self, keys: Sequence[str], load: LoadMany) -> dict[str, bytes | None]:
        for key in keys:
            self._count(spec_of(key).pattern, "bypass")
        loaded = await load(keys) if keys else {}
        await self._remove_older(keys, ask=self._store.may_be_asked())
        return {key: _as_loaded(loaded.get(key)).value for key in keys}

    async def _remove_older(self, keys: Sequence[str], *, ask: bool) -> None:
        """Remove what may be older than what is about to be given out: now, or before it is read again."""
        for key in keys:
            self._owe(key)
        certificate = self._current()
        if ask and certificate is not None:
            with suppress(Away):
                await self._settle(keys, certificate)
        elif ask and self._last is not None:
            # It is owed still: these may not be the names that will be read.
            with suppress(Away):
                await self._store.unlink([self._name(key, self._last) for key in keys])

    async def _settle(self, keys: Sequence[str], certificate: Certificate) -> None:
        """Remove those of the keys that are to be removed before they are read."""
        due = {key: self._owed[key] for key in keys if key in self._owed}
        await self._store.unlink([self._name(key, certificate) for key in due])
        for key, since in due.items():
            # Who went around the cache meanwhile owes it anew.
            if self._owed.get(key) is since:
                del self._owed[key]

    def _owe(self, key: str) -> None:
        self._owed[key] = object()
        if len(self._owed) <= _OWED_AT_MOST:
            return
        if self._is_certified:
            # Too many to remember each: the events of all that was given out are applied under a later certificate.
            self._owed.clear()
            self._not_before = datetime.now(UTC)
        else:
            oldest = next(iter(self._owed))
            del self._owed[oldest]
            self._count(spec_of(oldest).pattern, "forgotten")

    async def _fill(self, keys: Sequence[str], load: LoadMany, certificate: Certificate) -> dict[str, bytes | None]:
        """What was loaded under leases of its own and stored."""
        names = {key: self._name(key, certificate) for key in keys}
        leases = {names[key]: new_lease() for key in keys}
        taken = await self._store.lease_many(leases, _LEASE_MS)
        mine = [key for key, is_taken in zip(keys, taken, strict=True) if is_taken]
        if not mine:
            return {}
        began = time.monotonic()
        try:
            loaded = await load(mine)
        except BaseException:
            unused = {names[key]: leases[names[key]] for key in mine}
            self._in_background(
                self._store.swap_many({name: (lease, lease, _END_MS) for name, lease in unused.items()})
            )
            raise
        took = time.monotonic() - began
        entries = {key: self._entry(key, leases[names[key]], _as_loaded(loaded.get(key)), took) for key in mine}
        stored = await self._store.swap_many(
            {names[key]: (leases[names[key]], entry.held, self._ttl_ms(key, entry)) for key, entry in entries.items()}
        )
        for key, is_stored in zip(mine, stored, strict=True):
            self._count(spec_of(key).pattern, "miss" if is_stored else "rejected")
        return {key: entries[key].value for key, is_stored in zip(mine, stored, strict=True) if is_stored}

    def _current(self, key: str | None = None) -> Certificate | None:
        """The certificate, if there is one, and if it is for this key."""
        certificate = self._certificate()
        if certificate is not None:
            self._last = certificate
            if certificate.as_of < self._not_before:
                return None
            if key is not None and not self._is_for(certificate, key):
                return None
        return certificate

    def _is_for(self, certificate: Certificate, key: str) -> bool:
        if certificate.is_for(key):
            return True
        spec = spec_of(key)
        if spec.pattern not in self._not_kept:
            self._not_kept.add(spec.pattern)
            why = (
                f"who certifies the cache {self._namespace} has to be bound to {', '.join(sorted(spec.events))}, and "
                f"to know such keys"
                if spec.pattern in SPECS
                else "no KeySpec declares such keys"
            )
            log.warning("%s is not cached, since it would not be removed when it becomes stale: %s", key, why)
        return False

    def _name(self, key: str, certificate: Certificate) -> str:
        return name_of(self._namespace, key, certificate)

    async def _load(self, key: str, lease: bytes, load: Load, after: str | None = None) -> Entry:
        began = time.monotonic()
        loaded = await self._loads.run(lambda: self._loaded(load))
        if after is not None and not loaded.snapshot:
            # It was committed before this read, which somebody with its token asked for.
            loaded = Loaded(loaded.value, only(after))
        return self._entry(key, lease, loaded, time.monotonic() - began)

    @staticmethod
    async def _loaded(load: Load) -> Loaded:
        return _as_loaded(await load())

    def _entry(self, key: str, lease: bytes, loaded: Loaded, load_seconds: float) -> Entry:
        spec = spec_of(key)
        soft = spec.absent_ttl if loaded.value is None else min(spec.soft_ttl, spec.ttl or self._ttl)
        return Entry.under(lease, loaded, soft_expiry=time.time() + soft, load_seconds=load_seconds)

    def _ttl_ms(self, key: str, entry: Entry) -> int:
        spec = spec_of(key)
        ttl = spec.absent_ttl if entry.is_absent else spec.ttl or self._ttl
        # What was stored together does not expire together.
        return round(ttl * 1_000 * random.uniform(0.9, 1.0))

    def _in_background(self, work: Coroutine[Any, Any, object]) -> None:
        async def quietly() -> None:
            with suppress(Exception):  # what is there is right, and the next reader tries again
                await work

        task = asyncio.create_task(quietly())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _entry_in(held: bytes | None) -> Entry | None:
    return None if held is None or held[0] == LEASE else Entry(held)


def _as_loaded(found: Loaded | bytes | None) -> Loaded:
    return found if isinstance(found, Loaded) else Loaded(found)


def _only(key: str, load: LoadMany) -> Load:
    async def load_one() -> Loaded | bytes | None:
        return (await load([key])).get(key)

    return load_one


def _as_it_is(value: bytes | None) -> bytes | None:
    return value
