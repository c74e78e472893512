"""The audit tells what is stale from what was only being changed."""

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from contracts import GetCatStrategies, GetSymbol, GetTradingCurrency, GetUserId, GetUserTradingSummary
from contracts.base import Lookup
from contracts.certificate import UNCERTIFIED, name_of
from contracts.leased_cache import LeasedCache
from service.cache_audit import CacheAudit, CacheAuditor, question_of
from service.lookups import ANSWERS
from service.observability import CACHE_STALE
from tests.e2e.wire import eventually

QUESTION = GetSymbol(symbol="BTC/USDT:USDT", cat_ex_id=1)
KEY = "symbol:BTC/USDT%3AUSDT:1"
WINDOWS = (0.05, 0.1, 0.2)


class Truth:
    """A database that says what it is told to say."""

    def __init__(self, redis: Redis) -> None:
        self.says = b'{"a":1}'
        self.cache = LeasedCache(redis, namespace="web")
        self.audit = CacheAudit(redis, namespace="web", certificate=lambda: UNCERTIFIED, ask=self.ask)

    async def ask(self, _: Lookup[Any]) -> bytes:
        return self.says

    async def load(self) -> bytes:
        return self.says


@pytest.fixture
async def truth(redis: Redis) -> Truth:
    truth = Truth(redis)
    await truth.cache.get(KEY, truth.load)
    return truth


@pytest.mark.parametrize("says", [b'{"a":1}', b'{"a": 1}'])
async def test_finds_nothing_where_all_is_right(truth: Truth, says: bytes) -> None:
    truth.says = says

    assert await truth.audit.stale(KEY, QUESTION, WINDOWS) == 0


async def test_says_how_long_the_very_same_entry_was_wrong(truth: Truth) -> None:
    truth.says = b'{"a":2}'

    assert await truth.audit.stale(KEY, QUESTION, WINDOWS) == 0.2


async def test_does_not_blame_an_entry_that_was_stored_anew(truth: Truth) -> None:
    truth.says = b'{"a":2}'
    looking = asyncio.create_task(truth.audit.stale(KEY, QUESTION, (0.3,)))
    await asyncio.sleep(0.1)
    await truth.cache.invalidate([KEY])
    await truth.cache.get(KEY, truth.load)
    truth.says = b'{"a":3}'

    assert await looking == 0


async def test_finds_nothing_where_nothing_is_cached(truth: Truth, redis: Redis) -> None:
    truth.says = b'{"a":2}'
    await redis.unlink(name_of("web", KEY))

    assert await truth.audit.stale(KEY, QUESTION, WINDOWS) == 0


@pytest.mark.parametrize("sampled", ["hit", "event"])
async def test_of_a_sample_counts_what_is_stale(truth: Truth, sampled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cache_audit.WINDOWS", WINDOWS)
    monkeypatch.setattr(CacheAudit.stale, "__defaults__", (WINDOWS,))
    before = stale()
    truth.says = b'{"a":2}'
    auditor = CacheAuditor(truth.audit, events=1, hits=1)
    running = asyncio.create_task(auditor.run())
    if sampled == "hit":
        auditor.after_hit(KEY, QUESTION)
    else:
        auditor.after_event([KEY, "nobody:asks:this"])

    await eventually(counted(before))

    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def stale() -> float:
    return float(CACHE_STALE.labels(window="0.2")._value.get())


def counted(before: float) -> Any:
    async def is_so() -> bool:
        return stale() == before + 1

    return is_so


@pytest.mark.parametrize(
    "question",
    [
        QUESTION,
        GetSymbol(symbol="123", cat_ex_id=4),
        GetUserId(mail="ada@example.org"),
        GetTradingCurrency(bot_id=1, ex_id=2),
        GetCatStrategies(),
    ],
)
def test_knows_the_question_of_a_key(question: Lookup[Any]) -> None:
    key = ANSWERS[type(question)].key
    assert key is not None

    assert question_of(str(key(question))) == question


def test_leaves_alone_what_is_old_by_design() -> None:
    key = ANSWERS[GetUserTradingSummary].key
    assert key is not None

    assert question_of(str(key(GetUserTradingSummary(uid=1)))) is None


def test_knows_a_question_for_every_kind_of_key_that_events_keep_fresh() -> None:
    from service.cache_audit import _patterns  # noqa: PLC0415

    kept = {kind for kind, answer in ANSWERS.items() if answer.key is not None} - {GetUserTradingSummary}

    assert {kind for _, kind in _patterns()} == kept
    assert all(pattern.pattern for pattern, _ in _patterns())
