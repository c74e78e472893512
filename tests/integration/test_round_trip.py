"""What was sent is what is found: of every command, every field, every digit."""

import json
from typing import Any

import pytest
from pydantic import BaseModel

from contracts.base import decode
from service.executor import Executor
from service.vault import Vault
from tests.builders import Asking, Direct, received
from tests.cases import CASES, Case, a_scene, without_a_case


def test_every_command_has_a_case() -> None:
    assert without_a_case() == set()


@pytest.mark.parametrize("case", [pytest.param(case, id=kind.wire_name) for kind, case in CASES.items()])
async def test_a_lookup_gives_what_was_sent(
    executor: Executor, direct: Direct, asking: Asking, vault: Vault, case: Case
) -> None:
    scene = await a_scene(direct, vault)
    command = case.send(scene)
    message = received(command)

    answer = await direct.call(command)

    found = await _asked(asking, case.ask(scene, answer))
    assert_holds(case.pick(found) if found is not None else None, case.expected(json.loads(message.body)))


async def test_cases_state_every_field(direct: Direct, vault: Vault) -> None:
    """Else a field could be lost on its way and nobody would see it."""
    scene = await a_scene(direct, vault)

    unsaid = {f"{kind.wire_name}.{field}" for kind, case in CASES.items() for field in _unsaid(case.send(scene))}

    assert {field for field in unsaid if not field.endswith((".expected_version", ".force"))} == {
        # One or the other is said.
        *("add_bot_strategy.size_pct", "edit_strategy.updates.size", "del_cat_strategy.cat_str_id"),
        *("update_order_status.ex_id", "set_exchange_params.cat_ex_id", "del_bot_strategy.str_id"),
        # They say what is done, and no row keeps them.
        *("cancel_open_orders.from_status", "fill_order.worker", "claim_pending_orders.limit"),
        *("claim_pending_orders.lease_seconds", "upsert_balances.uid", "upsert_positions.uid"),
        # Of a user who is new, and of rows that no list is about.
        *("create_trading_setup.user.manager", "create_trading_setup.exchange.sandbox"),
        *("create_trading_setup.exchange.active", "upsert_balances.comment"),
        # As in the command for one.
        *("record_trades.trades.order_id", "record_trades.trades.ex_order_id", "edit_feeds.feeds.ex_id"),
        # Sealed for whom they belong to, or about another owner: tests/integration/test_credentials.py.
        *("modify_user.updates.f2a", "update_exchange.updates.uid"),
    }


def _unsaid(part: BaseModel) -> set[str]:
    """Fields that nothing is said of, nowhere."""
    unsaid = set(type(part).model_fields) - part.model_fields_set
    for name in part.model_fields_set:
        value = getattr(part, name)
        parts = [value] if isinstance(value, BaseModel) else value if isinstance(value, list) else []
        inner = [_unsaid(item) for item in parts if isinstance(item, BaseModel)]
        unsaid |= {f"{name}.{field}" for field in set.intersection(*inner)} if inner else set()
    return unsaid


async def _asked(asking: Asking, lookup: Any) -> Any:
    return json.loads(await asking.server.answer(decode(type(lookup), lookup.model_dump_json().encode()), fresh=True))


def assert_holds(found: Any, expected: Any, path: str = "") -> None:
    """That everything expected is found, digit by digit; what is found may say more."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for name, value in expected.items():
            assert name in found, f"{path}.{name} is not there"
            assert_holds(found[name], value, f"{path}.{name}")
    elif isinstance(expected, list) and isinstance(found, list):
        assert len(found) == len(expected), path
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_holds(one, other, f"{path}.{place}")
    else:
        assert found == expected, path
        assert type(found) is type(expected), path
