"""Every message that a complete service speaks is one that this service speaks."""

import asyncio
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from contracts.base import COMMAND_TYPES, EVENT_TYPES, LOOKUP_TYPES
from contracts.topology import Lane
from service.cli import app
from service.commands import HANDLERS
from service.config import Settings
from service.lookups import ANSWERS
from tests.fresh import environment

TRADING = """
    create_order update_order_status cancel_open_orders claim_pending_orders fill_order record_trade record_trades
    record_dry_trade delete_dry_trades upsert_balances upsert_positions
"""
BOT_LOGS = "save_bot_log save_bot_logs"
CONFIG = """
    add_user modify_user update_password set_user_active toggle_active delete_user add_bot edit_bot delete_bot
    add_exchange_to_bot remove_exchange_from_bot add_feed_to_bot edit_feeds save_simulation add_exchange
    update_exchange delete_exchange set_exchange_params install_exchange add_symbol add_symbols update_symbol
    delete_symbol sync_exchange_symbols record_ticks install_strategy add_bot_strategy edit_strategy
    edit_strategy_params del_bot_strategy del_cat_strategy create_trading_setup warm_cache run_cleanup
    invalidate_cache
"""

LOOKUPS = """
    get_user get_user_by_email get_user_id get_user_credentials search_users get_user_list get_active_users
    get_user_with_bots get_bot get_bot_with_details get_bots_with_details get_bots_by_user get_bot_list
    get_bot_full_list get_bot_params get_trading_currency get_dry_margin get_last_bot_log get_last_actions
    get_bot_logs load_simulation load_simulations_catalog get_exchange get_exchanges_by_user get_exchange_params
    get_exchange_catalog get_active_exchanges get_exchange_credentials get_symbol get_symbol_by_id
    get_id_by_symbol symbol_exists get_decimals get_symbols_by_exchange get_all_symbols get_order
    get_pending_orders get_open_orders get_orders get_trade get_live_trades get_trades_by_user
    get_trades_paginated get_dry_trades get_last_dry_trade get_last_trade get_user_trading_stats
    get_user_trading_summary get_symbol_price_stats get_bot_stats get_balances get_positions get_exchange_history
    get_user_strategies get_cat_strategies get_cat_strategies_params get_cat_str_id get_cat_strategy
    get_base_str_params get_str_params get_bots_strategies check_database_health get_cache_health
    monitor_connection_health collect_performance_metrics
"""

EVENTS = """
    user.created user.updated user.password_changed user.deleted bot.created bot.updated bot.deleted
    bot.exchange_added bot.exchange_removed bot.feeds_changed bot.strategy_changed bot_log.saved exchange.created
    exchange.updated exchange.deleted exchange.params_changed catalog.exchange_installed symbol.created
    symbol.updated symbol.deleted symbols.changed order.created order.status_changed trade.recorded
    dry_trade.recorded dry_trade.cleared balance.updated position.updated simulation.saved
    strategy.catalog_changed cache.invalidated cleanup.completed command.rejected
"""


@pytest.mark.manual("MSG-commands", "every command", differs="X12: claiming orders changes them, so it is a command")
def test_every_command_is_carried_out_in_its_lane() -> None:
    lanes = {Lane.TRADING: TRADING, Lane.BOT_LOGS: BOT_LOGS, Lane.CONFIG: CONFIG}
    expected = {name: lane for lane, names in lanes.items() for name in names.split()}

    found = {kind.wire_name: kind.lane for kind in HANDLERS}
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.manual("MSG-lookups", "every lookup")
def test_every_lookup_is_answered() -> None:
    assert set(LOOKUPS.split()) - {kind.wire_name for kind in ANSWERS} == set()


@pytest.mark.manual("MSG-events", "every event")
def test_every_event_is_declared() -> None:
    assert set(EVENTS.split()) - set(EVENT_TYPES) == set()


async def test_check_lists_them_with_counts_and_lanes(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)

    result = await _run("check", "--json")

    report: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == 0
    assert report["counts"] == {
        "commands": len(COMMAND_TYPES),
        "lookups": len(LOOKUP_TYPES),
        "events": len(EVENT_TYPES),
    }
    assert all(
        report["counts"][kind] >= least for kind, least in {"commands": 45, "lookups": 60, "events": 28}.items()
    )
    assert {name: command["lane"] for name, command in report["commands"].items()} == {
        name: kind.lane.value for name, kind in COMMAND_TYPES.items()
    }
    assert (set(report["lookups"]), report["events"]) == (set(LOOKUP_TYPES), sorted(EVENT_TYPES))


async def _run(*arguments: str) -> Any:
    """The command in a thread of its own, for it starts a loop."""
    return await asyncio.to_thread(CliRunner().invoke, app, list(arguments))
