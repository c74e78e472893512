"""The manual's functions: each opens a session of its own, calls repositories, and gives what the manual says."""

from service.library.bot import get_bots_with_details_batch
from service.library.exchange import sync_exchange_data
from service.library.health import (
    check_database_health,
    collect_performance_metrics,
    get_cache_health,
    monitor_connection_health,
)
from service.library.job import cache_warming_job, daily_cleanup_job
from service.library.order import process_trades_background
from service.library.symbol import bulk_create_symbols, get_symbols_with_fallback, warm_symbol_cache
from service.library.trade import (
    get_trades_paginated,
    get_user_trading_stats,
    get_user_trading_summary,
    use_postgresql_features,
)
from service.library.trading_setup import complex_operation_with_cleanup, create_complete_trading_setup
from service.library.user import create_user_with_retry, get_user_with_bots_optimized, get_users_for_api

__all__ = [
    "bulk_create_symbols",
    "cache_warming_job",
    "check_database_health",
    "collect_performance_metrics",
    "complex_operation_with_cleanup",
    "create_complete_trading_setup",
    "create_user_with_retry",
    "daily_cleanup_job",
    "get_bots_with_details_batch",
    "get_cache_health",
    "get_symbols_with_fallback",
    "get_trades_paginated",
    "get_user_trading_stats",
    "get_user_trading_summary",
    "get_user_with_bots_optimized",
    "get_users_for_api",
    "monitor_connection_health",
    "process_trades_background",
    "sync_exchange_data",
    "use_postgresql_features",
    "warm_symbol_cache",
]
