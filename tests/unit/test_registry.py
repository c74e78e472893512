"""The lists are whole: every message has someone who serves it, and every event says what it makes stale."""

from contracts import cache_keys
from contracts.base import COMMAND_TYPES, EVENT_TYPES, LOOKUP_TYPES, answer_adapter
from contracts.cache import CacheInvalidated
from contracts.symbol import GetSymbol
from contracts.topology import Lane
from service.commands import HANDLERS
from service.lookups import ANSWERS
from service.topology import bindings


def test_every_command_has_a_handler() -> None:
    assert set(HANDLERS) == set(COMMAND_TYPES.values())


def test_every_lookup_has_an_answer() -> None:
    assert set(ANSWERS) == set(LOOKUP_TYPES.values())


def test_every_message_says_what_it_is_answered_with() -> None:
    for request in (*COMMAND_TYPES.values(), *LOOKUP_TYPES.values()):
        assert answer_adapter(request)


def test_every_event_makes_something_stale_or_is_said_to_make_nothing_stale() -> None:
    named = {CacheInvalidated.wire_name}  # its sender says what is stale

    assert set(EVENT_TYPES) == cache_keys.events() | cache_keys.NOT_CACHED | named
    assert not cache_keys.events() & cache_keys.NOT_CACHED
    for event in EVENT_TYPES.values():
        assert set(event.key_fields) <= set(event.view_type().model_fields)


def test_every_name_is_bound_to_one_queue() -> None:
    keys = [(binding.exchange, binding.routing_key) for binding in bindings()]

    assert len(keys) == len(set(keys))


def test_a_storm_of_logs_has_a_queue_of_its_own() -> None:
    assert [name for name, command in COMMAND_TYPES.items() if command.lane is Lane.BOT_LOGS] == [
        "save_bot_log",
        "save_bot_logs",
    ]


def test_keys_of_strange_symbols_do_not_collide() -> None:
    assert cache_keys.symbol("BTC/USDT:USDT", 1) == "symbol:BTC/USDT%3AUSDT:1"
    assert cache_keys.symbol("A:1", 2) != cache_keys.symbol("A", 12)
    assert cache_keys.symbol("A%3A1", 2) != cache_keys.symbol("A:1", 2)
    assert GetSymbol(symbol="1000BONK/USDC:USDC", cat_ex_id=1)
