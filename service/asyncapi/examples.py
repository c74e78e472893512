"""Examples of the messages, made from their schemas."""

from typing import Any, Final

from contracts.base import Change, Event

Schema = dict[str, Any]

_UUID: Final = "01890a5d-ac96-774b-bcce-b302099a8057"
_INSTANT: Final = "2019-10-11T00:00:11.620000Z"
_TRANSACTION: Final = "7341"
_PUBLIC_KEY: Final = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
_SEALED: Final = (
    "sealed.v1.300c9c9603b92a4b.WlhXCjDSMMPpEhS5hpNisBZMpRwwgLLxR2LgocvaCxUi7uiaerHVVLzB-iagxhs2SXtKWUAeNA"
)
_HASHED: Final = "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHRzb21lc2FsdA$RdescudvJCsgt3ub+b4dWRWJTmaaJObG"

# What a field of this name holds. Of the fields that may be left out or null, only those named here have a value.
_VALUES: Final[dict[str, Any]] = {
    "uid": 42,
    "bot_id": 17,
    "ex_id": 5,
    "cat_ex_id": 1,
    "symbol_id": 8,
    "ex_trade_id": "T-88213",
    "ex_order_id": "O-5107",
    "mail": "ada@example.org",
    "name": "alpha",
    "ex_name": "main",
    "symbol": "BTC/USDT",
    "currency": "USDT",
    "free": "900.00",
    "used": "100.50",
    "BalanceFields.total": "1000.50",
    "BalanceView.total": "1000.50",
    "volume": "0.25000000",
    "PositionFields.side": "long",
    "PositionView.side": "long",
    "SearchSymbols.query": "BTC",
    "worker": "worker 1",
    "base": "BTC",
    "quote": "USDT",
    "decimals": 2,
    "tick_size": "0.01",
    "trading_currency": "USDT",
    "order_type": "limit",
    "size": "0.25000000",
    "price": "27431.50",
    "cost": "6857.875",
    "fee": "6.85",
    "fee_currency": "USDT",
    "leverage": "1",
    "updateframe": "1h",
    "timeframe": "1h",
    "win_rate": 0.67,
    "cat_str_id": 3,
    "str_id": 12,
    "action": "ENTRY",
    "message": "crossed the average",
    "timestamp": _INSTANT,
    "api_key": _SEALED,
    "public_key": _PUBLIC_KEY,
    "password_hash": _HASHED,
    "params": {"rate_limit": "20"},
    "query": "ada",
    "next_cursor": "WzQyXQ",
    "cursor": "WzQyXQ",
    "key_id": "300c9c9603b92a4b",
    "SetExchangeParams.cat_ex_id": None,
    "initial_balance": "10000.00",
    "final_balance": "11250.50",
    "EditStrategyParams.params": {"period": "14"},
    "InvalidateCache.keys": ["symbol:BTC/USDT:1"],
    "InvalidateCache.cat_ex_id": None,
    "InvalidateCache.uid": None,
    "InvalidationView.keys": ["symbol:BTC/USDT:1"],
    "InvalidationView.cat_ex_id": None,
    "InvalidationView.uid": None,
    "DelCatStrategy.name": None,  # it is named by its id
    "Heartbeat.timeline": "7342018845510345682.16384.00000001",
    "Heartbeat.sequences": {"symbol.updated": 42},
    "duplicate": False,
    "ErrorBody.code": "not_found",
    "ErrorBody.message": "there is no symbol 8",
    "ErrorBody.field": "symbol_id",
    "RejectionView.message_id": _UUID,
    "RejectionView.command": "record_trade",
    "RejectionView.code": "not_found",
    "RejectionView.field": "symbol_id",
    "RejectionView.reason": "there is no symbol 8",
}


_TEXTS: Final = {"uuid": _UUID, "date-time": _INSTANT, "decimal": "0.5"}


def example(schema: Schema, schemas: dict[str, Schema]) -> Any:
    """A value that ``schema`` admits."""
    if "$ref" in schema:
        return example(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if "properties" in schema:
        owner = schema.get("title", "")
        return {
            name: _example_of_field(part, schemas, _named(owner, name))
            for name, part in schema["properties"].items()
            if "default" not in part or _named(owner, name) is not None
        }
    for choices in ("anyOf", "allOf", "oneOf"):
        if choices in schema:
            return example(schema[choices][0], schemas)
    return _plain_example(schema, schemas)


def _named(owner: str, name: str) -> Any:
    return _VALUES.get(f"{owner}.{name}", _VALUES.get(name))


def _example_of_field(schema: Schema, schemas: dict[str, Schema], named: Any) -> Any:
    if named is not None:
        return named
    choices = schema.get("anyOf", [])
    return None if {"type": "null"} in choices and "$ref" not in choices[0] else example(schema, schemas)


def _plain_example(schema: Schema, schemas: dict[str, Schema]) -> Any:
    if schema["type"] == "array":
        return [example(schema["items"], schemas)]
    if schema["type"] == "string":
        return _TEXTS.get(schema.get("format", ""), "")
    return {"object": {}, "boolean": True, "integer": 1, "number": 1}[schema["type"]]


def example_of_event(event: type[Event[Any]], schemas: dict[str, Schema]) -> Any:
    """An event with one change of the kind its name says, and the cache keys that this very change makes stale."""
    view = event.view_type()
    before, after = None, example(schemas[view.__name__], schemas)
    if event.wire_name.endswith(("updated", "changed")):
        before, after = after, {**after, "row_version": 2}
        if "status" in after:
            after["status"] = schemas[view.__name__]["properties"]["status"]["enum"][1]
    change = Change[Any](
        key={name: after[name] for name in event.key_fields},
        version=after.get("row_version", 1),
        before=before and view.model_validate(before),
        after=view.model_validate(after),
        changed=[name for name in after if before is None or before[name] != after[name]],
    )
    fields = {
        "event_id": _UUID,
        "type": event.wire_name,
        "sequence": 1,
        "occurred_at": _INSTANT,
        "transaction": _TRANSACTION,
        "causation_ids": [_UUID],
        "changes": [change.model_dump(mode="json")],
        "stale_keys": event.stale_keys_of([change]),
    }
    return event.model_validate(fields).model_dump(mode="json")
