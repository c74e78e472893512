"""``persistence cache`` beside a running service: what it shows, what it compares, and what it does to caches."""

import json
from typing import Any

import pytest

from contracts import GetSymbol
from contracts.client import PersistenceClient
from tests.builders import Desk, a_desk
from tests.e2e.conftest import SharedService
from tests.e2e.run import all_is_announced
from tests.e2e.wire import certified, eventually, value


async def cache(shared: SharedService, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Exit code and what it writes."""
    return await shared.persistence("cache", *arguments, **environment)


async def as_json(shared: SharedService, *arguments: str) -> tuple[int, Any]:
    code, out, err = await cache(shared, *arguments, "--json")
    assert out, err
    return code, json.loads(out)


async def test_show_audit_warm_and_leave_behind(shared: SharedService) -> None:
    async with PersistenceClient(shared.rabbitmq_url, answer_timeout=10) as client:
        desk: Desk = await a_desk(client)
        await all_is_announced(shared.database_url)
        certificate = await certified(shared.redis_url)
        key = f"symbol:{desk.symbol.symbol}:{desk.catalog.cat_ex_id}"
        question = GetSymbol(symbol=desk.symbol.symbol, cat_ex_id=desk.catalog.cat_ex_id)

        code, shown = await as_json(shared, "show", "symbol:NO/NE:1")
        assert (code, shown["cached"], shown["epoch"]) == (1, False, certificate.epoch)
        assert "will store it" in (await cache(shared, "show", "symbol:NO/NE:1"))[1]
        assert "no lookup is answered under it" in (await cache(shared, "show", "nonsense"))[1]
        await client.lookup(question)
        code, shown = await as_json(shared, "show", key)
        assert (code, shown["value"]["symbol_id"]) == (0, desk.symbol.symbol_id)
        assert desk.symbol.symbol in (await cache(shared, "show", key))[1]

        code, done = await as_json(shared, "warm", "--cat-ex-id", str(desk.catalog.cat_ex_id))
        assert (code, done["keys"] <= 3) == (0, True)  # the service has perhaps done so itself
        code, report = await as_json(shared, "audit")
        assert (code, report["stale"]) == (0, [])
        assert report["compared"]["get_symbol"] == report["compared"]["get_symbols_by_exchange"] == 1

        # Past the service, so that no event tells.
        await value(shared.database_url, "UPDATE symbols SET decimals = 7 RETURNING 1")
        code, said, _ = await cache(shared, "audit")
        assert code == 1
        assert f"{key}: stale for 5 s at least" in said

        code, announced = await as_json(shared, "bump-epoch")
        assert (code, announced) == (0, {"announced": "*"})
        await eventually(lambda: has_left(shared, certificate.epoch))
        found = await client.lookup(question)
        assert found is not None
        assert found.decimals == 7


async def has_left(shared: SharedService, epoch: int) -> bool:
    return (await certified(shared.redis_url)).epoch > epoch


async def test_say_what_to_do_where_nobody_keeps_the_cache_fresh(shared: SharedService) -> None:
    code, _, err = await cache(shared, "audit", CACHE_NAMESPACE="nobody")

    assert code == 2
    assert "is `persistence serve` running" in err


async def test_name_the_setting_of_a_server_that_does_not_answer(shared: SharedService) -> None:
    code, _, err = await cache(shared, "show", "symbols:all", REDIS_URL="redis://127.0.0.1:1/0")

    assert code == 2
    assert err.startswith("persistence: REDIS_URL: ")


@pytest.mark.parametrize("kind", ["symbol:BTC/USDT:1", ""])
async def test_refuse_to_leave_a_single_key_behind(shared: SharedService, kind: str) -> None:
    code, _, err = await cache(shared, "bump-epoch", "--kind", kind)

    assert code == 2
    assert "ends with *" in err
