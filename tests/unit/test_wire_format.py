"""What may be said on the wire, and how it is refused."""

import json
import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import ErrorCode, RecordTrade, Refusal, SaveBotLog, SymbolUpdates, TradeView, UpdateOrderStatus
from contracts.base import decode
from contracts.client import new_message_id
from service.dead_letters import _without_secrets

TRADE: dict[str, Any] = {
    "bot_id": 1,
    "uid": 2,
    "ex_id": 3,
    "symbol_id": 4,
    "side": "buy",
    "size": "23.00000000",
    "price": "0.00141342",
}


def body(**changes: Any) -> bytes:
    return json.dumps({**TRADE, **changes}).encode()


class TestMoney:
    @given(
        st.decimals(allow_nan=False, allow_infinity=False, min_value=Decimal("1e-18"), max_value=10**19, places=18)
    )
    def test_comes_back_digit_by_digit(self, amount: Decimal) -> None:
        sent = RecordTrade(**{**TRADE, "price": amount})

        received = decode(RecordTrade, sent.model_dump_json().encode())

        assert received.price.as_tuple() == amount.as_tuple()

    @pytest.mark.parametrize("number", ["0.00141342", "23", "1.5e3", "123456789012345"])
    def test_may_be_a_json_number_of_few_digits(self, number: str) -> None:
        trade = decode(RecordTrade, body().replace(b'"0.00141342"', number.encode()))

        assert trade.price == Decimal(number)

    @pytest.mark.parametrize(
        ("number", "reason"),
        [
            pytest.param("0.1234567890123456", "more than 15 significant digits", id="a long fraction"),
            pytest.param("1234567890123456", "more than 15 significant digits", id="a long integer"),
            pytest.param("0.1000000000000000055", "more than 15 significant digits", id="one that a double rounds"),
            pytest.param("NaN", "must be finite", id="NaN"),
            pytest.param("Infinity", "must be finite", id="infinity"),
            pytest.param('"NaN"', "must be finite", id="NaN in a string"),
            pytest.param('"1e400"', "no more than", id="beyond all columns"),
            pytest.param('"1e999999999"', "no more than", id="a gigabyte of digits"),
            pytest.param("1e999999999", "no more than", id="a gigabyte of digits as a number"),
            pytest.param('"1e-999999999"', "no more than", id="a gigabyte of zeros"),
            pytest.param(f'"{"9" * 100_000}"', "no more than", id="a hundred thousand digits"),
            pytest.param('"0.1234567890123456789"', "decimal places", id="19 decimal places"),
            pytest.param('"-1"', "greater than 0", id="a negative price"),
            pytest.param('"0"', "greater than 0", id="a price of nothing"),
            pytest.param('"1_000"', "underscores", id="Python's underscores"),
            pytest.param('"twelve"', "is not a decimal number", id="words"),
            pytest.param("true", "must be a decimal number", id="a boolean"),
            pytest.param("null", "must be a decimal number", id="null"),
        ],
    )
    def test_is_refused_with_field_and_reason(self, number: str, reason: str) -> None:
        with pytest.raises(Refusal, match=reason) as refusal:
            decode(RecordTrade, body().replace(b'"0.00141342"', number.encode()))

        assert (refusal.value.code, refusal.value.field) == (ErrorCode.VALIDATION, "price")

    def test_of_a_view_keeps_every_digit_of_a_product(self) -> None:
        cost = "0.000000000000000001000000000000000001"
        view = {
            **TRADE,
            **dict.fromkeys(("ex_trade_id", "order_id", "ex_order_id", "fee_currency", "roi", "roi_pct")),
            "trade_id": 1,
            "cost": cost,
            "fee": "0",
            "leverage": "1",
            "timestamp": "2019-10-11T00:00:11.620Z",
            "row_version": 1,
        }

        assert json.loads(TradeView.model_validate(view).model_dump_json())["cost"] == cost


class TestInstant:
    def test_is_kept_in_utc(self) -> None:
        trade = decode(RecordTrade, body(timestamp="2019-10-11T02:00:11.620+02:00"))

        assert trade.timestamp.isoformat() == "2019-10-11T00:00:11.620000+00:00"

    @pytest.mark.parametrize(
        "value",
        [
            pytest.param("2019-10-11T00:00:11", id="naive"),
            pytest.param(1570752011, id="seconds since 1970"),
            pytest.param("yesterday", id="words"),
        ],
    )
    def test_is_refused_without_an_offset(self, value: Any) -> None:
        with pytest.raises(Refusal) as refusal:
            decode(RecordTrade, body(timestamp=value))

        assert refusal.value.field == "timestamp"


class TestBody:
    @pytest.mark.parametrize(
        ("text", "field"),
        [
            pytest.param(b"", "body", id="empty"),
            pytest.param(b'{"bot_id": 1,', "body", id="truncated"),
            pytest.param(b"[1]", "body", id="an array"),
            pytest.param(b"\xff\xfe{}", "body", id="no UTF-8"),
            pytest.param(b"[" * 10_000 + b"]" * 10_000, "body", id="nested 10,000 deep"),
            pytest.param(body().replace(b'"uid": 2', b'"uid": 2, "uid": 3'), "uid", id="a field twice"),
            pytest.param(b'{"\\ud800": 1, "\\ud800": 2}', r"\ud800", id="half a surrogate pair twice"),
            pytest.param(b'{"\\u0000": 1, "\\u0000": 2}', r"\x00", id="a NUL twice"),
            pytest.param(body(uid="2"), "uid", id="an id in a string"),
            pytest.param(body(uid=True), "uid", id="a boolean for an id"),
            pytest.param(body(uid=2.0), "uid", id="a float for an id"),
            pytest.param(body(uid=2**31), "uid", id="an id no column holds"),
            pytest.param(body(amount="1"), "amount", id="an unknown field"),
            pytest.param(body(side="hold"), "side", id="an unknown side"),
            pytest.param(body(fee_currency="E\x00TH"), "fee_currency", id="a NUL"),
            pytest.param(
                body(fee_currency="").replace(b'""', b'"\\ud800"'), "fee_currency", id="half a surrogate pair"
            ),
        ],
    )
    def test_is_refused_with_the_field_at_fault(self, text: bytes, field: str) -> None:
        with pytest.raises(Refusal) as refusal:
            decode(RecordTrade, text)

        assert (refusal.value.code, refusal.value.field) == (ErrorCode.VALIDATION, field)

    def test_is_told_its_length_in_characters(self) -> None:
        for changes in ({"ex_trade_id": "x" * 65}, {"ex_trade_id": ""}):
            with pytest.raises(Refusal, match=r"ex_trade_id: String should have at (most 64|least 1) character"):
                decode(RecordTrade, body(**changes))

    def test_may_nest_brackets_in_text_as_it_likes(self) -> None:
        entry = decode(SaveBotLog, json.dumps({"bot_id": 1, "message": '{["\\"' * 100}).encode())

        assert entry.message.startswith('{["\\"')

    def test_may_be_64_deep(self) -> None:
        data: Any = {"leaf": 1}
        for _ in range(62):
            data = {"deeper": data}

        assert decode(SaveBotLog, json.dumps({"bot_id": 1, "message": "", "data": data}).encode()).data == data

    def test_never_shows_its_content_in_an_error(self) -> None:
        with pytest.raises(Refusal) as refusal:
            decode(RecordTrade, body(uid="hunter2", price="hunter2"))

        assert "hunter2" not in str(refusal.value)


class TestSymbolUpdates:
    def test_must_name_a_field(self) -> None:
        with pytest.raises(ValueError, match="names no field"):
            SymbolUpdates()

    def test_can_clear_what_may_be_null_and_nothing_else(self) -> None:
        assert SymbolUpdates(ticker=None).values() == {"ticker": None}
        with pytest.raises(ValueError, match="decimals cannot be null"):
            SymbolUpdates(decimals=None)


class TestMessageId:
    def test_sorts_by_time(self) -> None:
        ids = [new_message_id() for _ in range(3)]

        assert all(message_id.version == 7 for message_id in ids)
        assert [message_id.int >> 80 for message_id in ids] == sorted(message_id.int >> 80 for message_id in ids)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"bot_id": "%s"}' % (b"x" * 1_000_000), id="a word of a megabyte"),
        pytest.param(b'{"bot_id" %s' % (b" " * 1_000_000), id="a megabyte of spaces"),
        pytest.param(b'{"bot_id": "%s"}' % (b"a-" * 500_000), id="a megabyte of words and hyphens"),
        pytest.param(
            b"{%s}" % b",".join(b'"%d":1' % (n % 90_000) for n in range(90_001)), id="many names, one of them twice"
        ),
        pytest.param(b"[%s]" % b",".join(b"{}" for _ in range(150_000)), id="many objects"),
        pytest.param(b'{"bot_id": %s}' % (b"9" * 1_000_000), id="a number of a megabyte"),
        pytest.param(b'{"bot_id": "%s"}' % (b"\\u0041" * 160_000), id="many escapes"),
        pytest.param(b'{"message": "%s", "bot_id": 0}' % (b"key: a = " * 100_000), id="many names and values"),
    ],
)
def test_a_bad_message_of_any_shape_is_read_in_no_time(body: bytes) -> None:
    started = time.process_time()
    with pytest.raises(Refusal):
        decode(SaveBotLog, body)
    _without_secrets(body)

    assert time.process_time() - started < 5


@pytest.mark.parametrize("instant", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "0001-12-31T23:00:00Z"])
def test_an_instant_that_a_database_takes_for_infinity_is_refused(instant: str) -> None:
    with pytest.raises(ValueError, match="years 2 to 9998"):
        SaveBotLog(bot_id=1, message="m", timestamp=instant)


def test_an_order_is_named_once() -> None:
    with pytest.raises(ValueError, match="names the order twice"):
        UpdateOrderStatus(order_id=1, ex_id=1, status="filled")
