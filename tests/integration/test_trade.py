"""Trades are put on record once, simulated ones too, and add up."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import (
    AddBot,
    DeleteDryTrades,
    ErrorCode,
    GetDryTrades,
    GetLastDryTrade,
    GetLastTrade,
    GetLiveTrades,
    GetSymbolPriceStats,
    GetTrade,
    GetTradesByUser,
    GetTradesPaginated,
    GetTradeStats,
    GetUserTradingSummary,
    RecordTrades,
    TradeFields,
    TradeView,
)
from contracts.cache_keys import trading_summary
from contracts.certificate import name_of
from contracts.client import new_message_id
from contracts.leased_cache import LeasedCache, connect
from service.database import SessionMaker
from service.executor import Executor
from service.inbox import Sent
from service.lookup_server import LookupServer
from service.models import DryTrade, OutboxEvent, Trade
from service.repositories import TradeRepository
from tests.builders import Desk, Direct, a_desk, received
from tests.observe import answer, events, refusal, statements


def fields(desk: Desk, **changes: Any) -> TradeFields:
    return TradeFields(**desk.trade(**changes).model_dump(exclude_unset=True))


class TestList:
    async def test_is_put_on_record_like_single_trades(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        order = await direct.call(desk.order())
        sent = [
            fields(desk, fee="0.00000000000000001", fee_currency="BNB", timestamp="2019-10-11T02:00:11.62+02:00"),
            fields(desk, side="sell", price="123456789.000000000000000001", ex_trade_id=None),
            fields(desk, leverage="2.50", roi="-3.1", roi_pct="0", order_id=order.order_id, ex_order_id="O-1"),
        ]

        done = await direct.call(RecordTrades(trades=sent))

        assert (done.inserted, done.duplicates, done.failures) == (3, 0, [])
        changes = await events(sessions, "trade.recorded")
        assert len(changes) == 3
        for trade, change in zip(sent, changes, strict=True):
            stored = await answer(sessions, GetTrade(trade_id=change["key"]["trade_id"]))
            said = trade.model_dump(exclude_none=True)
            assert {name: getattr(stored, name) for name in said} == said
            assert stored.cost == trade.size * trade.price
            assert TradeView.model_validate(change["after"]) == stored

    async def test_names_its_message_once_as_the_cause(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        message = received(RecordTrades(trades=[fields(desk) for _ in range(600)]))

        await executor.execute([message])

        async with sessions() as session:
            causes = await session.scalars(
                select(OutboxEvent.causation_ids).where(OutboxEvent.type == "trade.recorded")
            )
            assert [[str(cause) for cause in row] for row in causes] == [[message.message_id]] * 2

    async def test_tells_new_known_and_wrong_ones_apart(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        other = await a_desk(direct)
        known = fields(desk)
        await direct.call(RecordTrades(trades=[known]))

        done = await direct.call(
            RecordTrades(
                trades=[
                    fields(desk),
                    known,
                    known.model_copy(update={"price": Decimal(9)}),
                    fields(desk, bot_id=other.bot.bot_id),
                    fields(desk, ex_id=999),
                    fields(desk, order_id=999),
                    fields(desk),
                ]
            )
        )

        assert (done.inserted, done.duplicates) == (2, 1)
        assert [(failure.index, failure.code, failure.field) for failure in done.failures] == [
            (2, "conflict", "ex_trade_id"),
            (3, "forbidden", "bot_id"),
            (4, "not_found", "ex_id"),
            (5, "not_found", "order_id"),
        ]
        assert len(await events(sessions, "trade.recorded")) == 3

    async def test_that_is_polled_again_announces_nothing(
        self, direct: Direct, desk: Desk, sessions: SessionMaker, engine: AsyncEngine
    ) -> None:
        polled = RecordTrades(trades=[fields(desk) for _ in range(1_000)])
        await direct.call(polled)

        again = await direct.call(polled)

        assert (again.inserted, again.duplicates) == (0, 1_000)
        assert len(await events(sessions, "trade.recorded")) == 1_000

    async def test_takes_as_many_statements_for_hundreds_as_for_one(
        self, desk: Desk, sessions: SessionMaker, engine: AsyncEngine
    ) -> None:
        counts = []
        for number in (1, 500):
            trades = [fields(desk).model_dump(exclude_none=True) for _ in range(number)]
            for _ in ("new", "known"):
                with statements(engine) as sent:
                    async with sessions.begin() as session:
                        await TradeRepository(session).record_trades(trades)
                counts.append(len(sent))

        assert counts == [1, 2, 1, 2]

    async def test_may_come_from_a_program_without_a_bot(self, desk: Desk, sessions: SessionMaker) -> None:
        said = {**fields(desk).model_dump(exclude_none=True), "price": 0.1, "size": 3}
        del said["bot_id"]

        async with sessions.begin() as session:
            repository = TradeRepository(session)
            [stored] = await repository.save_trades([said])
            [again] = await repository.save_trades([said])
            [copy] = await repository.save_trades([Trade(**{**said, "price": Decimal("0.1"), "ex_trade_id": "T-2"})])

        assert (stored.bot_id, stored.price, stored.cost) == (None, Decimal("0.1"), Decimal("0.3"))
        assert again is stored
        assert copy.ex_trade_id == "T-2"
        async with sessions() as session:
            rows = await session.scalars(select(OutboxEvent).where(OutboxEvent.type == "trade.recorded"))
            assert [row.causation_ids for row in rows] == [[], []]

    async def test_with_an_unknown_name_is_an_error(self, desk: Desk, sessions: SessionMaker) -> None:
        async with sessions() as session:
            with pytest.raises(TypeError, match="comission"):
                await TradeRepository(session).record_trades([{**fields(desk).model_dump(), "comission": 1}])

    def test_is_neither_empty_nor_endless(self, desk: Desk) -> None:
        for trades in ([], [fields(desk)] * 1_001):
            with pytest.raises(ValidationError):
                RecordTrades(trades=trades)


class TestDryTrade:
    async def test_comes_back_as_it_was_sent(self, direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
        sent = desk.dry_trade(
            fee="0.01", fee_currency="ETH", roi="-1.50", roi_pct="0", closing=True, reason="stop", leverage="3.0"
        )

        stored = await direct.call(sent)

        said = sent.model_dump(exclude_none=True)
        assert {name: getattr(stored, name) for name in said} == said
        assert (await answer(sessions, GetDryTrades(bot_id=desk.bot.bot_id))).dry_trades == [stored]
        [change] = await events(sessions, "dry_trade.recorded")
        assert change["after"] == stored.model_dump(mode="json")

    async def test_is_stored_together_as_one_by_one(
        self, executor: Executor, desk: Desk, sessions: SessionMaker
    ) -> None:
        sent = [
            desk.dry_trade(),
            desk.dry_trade(fee="0.00000000000000001", roi="-3", closing=True, reason="é", side="sell"),
            desk.dry_trade(size="1e3", timestamp="2019-10-11T02:00:11.62+02:00", leverage="2.50"),
        ]
        for dry_trade in sent:
            await executor.execute([received(dry_trade)])
        together = (*sent, desk.dry_trade(bot_id=999))
        await executor.execute([received(dry_trade, reply_to=None) for dry_trade in together])

        async with sessions() as session:
            rows = [row.to_dict() for row in await session.scalars(select(DryTrade).order_by(DryTrade.dry_trade_id))]
        differ = {"dry_trade_id", "recorded_at", "timestamp"}
        for one, many in zip(rows[:3], rows[3:], strict=True):
            assert {n: v for n, v in one.items() if n not in differ} == {
                n: v for n, v in many.items() if n not in differ
            }
        assert rows[2]["timestamp"] == rows[5]["timestamp"]
        changes = await events(sessions, "dry_trade.recorded")
        assert [change["key"]["dry_trade_id"] for change in changes] == [row["dry_trade_id"] for row in rows]
        strip = {"dry_trade_id", "timestamp"}
        for one, many in zip(changes[:3], changes[3:], strict=True):
            assert {n: v for n, v in one["after"].items() if n not in strip} == {
                n: v for n, v in many["after"].items() if n not in strip
            }
        assert len(await events(sessions, "command.rejected")) == 1

    async def test_of_many_takes_one_statement(self, desk: Desk, sessions: SessionMaker, engine: AsyncEngine) -> None:
        sent_in = new_message_id()
        with statements(engine) as sent:
            async with sessions.begin() as session:
                dry_trades = [desk.dry_trade(), desk.dry_trade(symbol_id=999), desk.dry_trade()]
                stored = await TradeRepository(session).record_new_dry(dry_trades, Sent([sent_in] * 3))

        assert list(stored) == [0, 2]
        assert len(sent) == 1

    async def test_of_many_can_be_answered_later_even_when_it_is_gone(
        self, executor: Executor, direct: Direct, desk: Desk
    ) -> None:
        batch = [received(desk.dry_trade(), reply_to=None) for _ in range(2)]
        await executor.execute(batch)
        for message in batch:
            message.reply_to = "test-replies"

        [there, _] = await executor.execute(batch)
        await direct.call(DeleteDryTrades(bot_id=desk.bot.bot_id))
        [gone, _] = await executor.execute(batch)

        assert (there.data["bot_id"], there.meta.duplicate) == (desk.bot.bot_id, True)
        assert (gone.ok, gone.data, gone.meta.duplicate) == (True, None, True)

    async def test_of_things_that_do_not_belong_is_refused(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        other = await a_desk(direct)
        attempts = [
            ({"bot_id": other.bot.bot_id}, ErrorCode.FORBIDDEN, "bot_id"),
            ({"ex_id": other.account.ex_id}, ErrorCode.FORBIDDEN, "ex_id"),
            ({"symbol_id": other.symbol.symbol_id}, ErrorCode.FORBIDDEN, "symbol_id"),
            ({"bot_id": 999}, ErrorCode.NOT_FOUND, "bot_id"),
        ]

        for changed, code, field in attempts:
            error = await refusal(executor, desk.dry_trade(**changed))
            assert (error.code, error.field) == (code, field)

        assert (await answer(sessions, GetDryTrades(bot_id=desk.bot.bot_id))).dry_trades == []

    async def test_list_narrows_down_and_goes_on_by_cursor(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        made = [await direct.call(desk.dry_trade(timestamp="2026-01-01T00:00:00Z")) for _ in range(3)]
        bot_id = desk.bot.bot_id

        page = await answer(sessions, GetDryTrades(bot_id=bot_id, limit=2))
        rest = await answer(sessions, GetDryTrades(bot_id=bot_id, limit=2, cursor=page.next_cursor))

        assert page.dry_trades + rest.dry_trades == list(reversed(made))
        assert await answer(sessions, GetLastDryTrade(bot_id=bot_id)) == made[-1]
        here = GetLastDryTrade(bot_id=bot_id, symbol_id=desk.symbol.symbol_id, ex_id=desk.account.ex_id)
        assert await answer(sessions, here) == made[-1]
        assert await answer(sessions, GetLastDryTrade(bot_id=bot_id, symbol_id=999)) is None

    async def test_list_is_cleared_with_one_event(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        other = await direct.call((await a_desk(direct)).dry_trade())
        made = [await direct.call(desk.dry_trade()) for _ in range(3)]

        counts = [await direct.call(DeleteDryTrades(bot_id=desk.bot.bot_id)) for _ in range(2)]

        assert counts == [3, 0]
        assert (await answer(sessions, GetDryTrades(bot_id=desk.bot.bot_id))).dry_trades == []
        assert (await answer(sessions, GetDryTrades(bot_id=other.bot_id))).dry_trades == [other]
        [change] = await events(sessions, "dry_trade.cleared")
        assert change["before"] == {
            "bot_id": desk.bot.bot_id,
            "last_dry_trade_id": made[-1].dry_trade_id,
            "count": 3,
            "ex_id": None,
        }
        assert (await refusal(executor, DeleteDryTrades(bot_id=999))).code is ErrorCode.NOT_FOUND


class TestLists:
    async def test_narrow_down_and_go_on_by_cursor(self, direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
        await direct.call((await a_desk(direct)).trade())
        bot = await direct.call(AddBot(uid=desk.user.uid, name="second"))
        # Two of each moment: only the id tells them apart.
        made = [
            await direct.call(
                desk.trade(timestamp=f"2026-01-0{1 + n // 2}T00:00:00Z", **({"bot_id": bot.bot_id} if n == 4 else {}))
            )
            for n in range(5)
        ]
        newest_first = list(reversed(made))
        uid = desk.user.uid

        assert await _all(sessions, GetLiveTrades(uid=uid, limit=2)) == newest_first
        assert await _all(sessions, GetTradesByUser(uid=uid, limit=2)) == newest_first
        by_symbol = GetLiveTrades(uid=uid, symbol_id=desk.symbol.symbol_id, ex_id=desk.account.ex_id, limit=3)
        assert await _all(sessions, by_symbol) == newest_first
        assert await _all(sessions, GetLiveTrades(uid=uid, bot_id=bot.bot_id)) == [made[4]]
        second_day = GetLiveTrades(uid=uid, start_date="2026-01-02T00:00:00Z", end_date="2026-01-03T00:00:00Z")
        assert await _all(sessions, second_day) == [made[3], made[2]]
        assert await answer(sessions, GetLastTrade(ex_id=desk.account.ex_id)) == made[4]
        assert await answer(sessions, GetLastTrade(ex_id=999)) is None
        assert await answer(sessions, GetTrade(trade_id=999)) is None

    async def test_by_page_can_go_on_by_cursor_while_trades_are_added(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        made = [await direct.call(desk.trade()) for _ in range(4)]
        first = await answer(sessions, GetTradesPaginated(uid=desk.user.uid, page_size=2))
        await direct.call(desk.trade())

        by_number = await answer(sessions, GetTradesPaginated(uid=desk.user.uid, page=2, page_size=2))
        by_cursor = await answer(
            sessions, GetTradesPaginated(uid=desk.user.uid, page_size=2, cursor=first.next_cursor)
        )

        assert by_number.trades == [made[2], made[1]]
        assert by_cursor.trades == [made[1], made[0]]
        assert (by_cursor.pagination.total, by_cursor.pagination.pages) == (5, 3)
        with pytest.raises(ValidationError, match="exclude each other"):
            GetTradesPaginated(uid=1, page=2, cursor="x")

    async def test_of_the_library_take_the_manual_s_arguments(
        self, direct: Direct, desk: Desk, sessions: SessionMaker
    ) -> None:
        made = await direct.call(desk.trade())
        dry = await direct.call(desk.dry_trade())
        async with sessions() as session:
            trades = TradeRepository(session)
            week_ago = datetime.utcnow() - timedelta(days=7)  # noqa: DTZ003 - as the manual's callers say it

            live = await trades.get_live_trades(
                user_id=desk.user.uid, symbol_id=desk.symbol.symbol_id, start_date=week_ago
            )
            assert [trade.trade_id for trade in live] == [made.trade_id]
            assert [t.dry_trade_id for t in await trades.get_dry_trades(bot_id=desk.bot.bot_id, limit=1000)] == [
                dry.dry_trade_id
            ]
            assert [t.trade_id for t in await trades.get_trades_by_user(desk.user.uid, limit=100)] == [made.trade_id]
            assert len(await trades.get_bot_trades(desk.bot.bot_id)) == 1
            assert len(await trades.get_bot_trades(desk.bot.bot_id, dry=True)) == 1
            assert len(await trades.get_symbol_trades(desk.symbol.symbol_id)) == 1


class TestStatistics:
    async def test_of_a_bot_count_wins_and_days(self, direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
        now = datetime.now(UTC)
        for roi, side, days in (("3", "sell", 1), ("-1", "sell", 2), (None, "buy", 3), ("5", "sell", 40)):
            await direct.call(
                desk.trade(roi=roi, side=side, size="2", price="10", timestamp=now - timedelta(days=days))
            )
        await direct.call(desk.dry_trade(roi="7", size="1", price="1"))

        live = await answer(sessions, GetTradeStats(bot_id=desk.bot.bot_id))
        longer = await answer(sessions, GetTradeStats(bot_id=desk.bot.bot_id, days=60))
        dry = await answer(sessions, GetTradeStats(bot_id=desk.bot.bot_id, dry=True))
        nothing = await answer(sessions, GetTradeStats(bot_id=999))

        assert (live.total_trades, live.total_volume, live.roi) == (3, Decimal(60), Decimal(2))
        assert (live.buy_volume, live.sell_volume, live.net_volume) == (Decimal(20), Decimal(40), Decimal(-20))
        assert (live.winning_trades, live.losing_trades, live.win_rate) == (1, 1, 0.5)
        assert (longer.total_trades, longer.roi) == (4, Decimal(7))
        assert (dry.total_trades, dry.roi, dry.win_rate) == (1, Decimal(7), 1.0)
        assert (nothing.total_trades, nothing.roi, nothing.win_rate) == (0, Decimal(0), None)

    async def test_of_prices_are_per_symbol(self, direct: Direct, desk: Desk, sessions: SessionMaker) -> None:
        other = await a_desk(direct)
        for price in ("1", "2", "6"):
            await direct.call(desk.trade(price=price, timestamp="2026-01-02T00:00:00Z"))
        await direct.call(desk.trade(price="100", timestamp="2025-12-31T00:00:00Z"))
        await direct.call(other.trade(price="5", timestamp="2026-01-02T00:00:00Z"))

        mine, others = await answer(sessions, GetSymbolPriceStats(start_date="2026-01-01T00:00:00Z"))

        assert (mine.symbol_id, mine.trades, mine.median_price) == (desk.symbol.symbol_id, 3, 2.0)
        assert mine.price_volatility == pytest.approx(2.6457513)
        assert (others.symbol_id, others.median_price, others.price_volatility) == (other.symbol.symbol_id, 5.0, None)
        only = GetSymbolPriceStats(start_date="2026-01-01T00:00:00Z", symbol_id=other.symbol.symbol_id)
        assert await answer(sessions, only) == [others]


class TestSummary:
    async def test_adds_up_everything_in_one_query(
        self, executor: Executor, direct: Direct, desk: Desk, sessions: SessionMaker, engine: AsyncEngine
    ) -> None:
        await direct.call(AddBot(uid=desk.user.uid, name="active", active=True))
        await executor.execute([received(desk.trade(size="1", price="2"), reply_to=None) for _ in range(120)])
        await direct.call((await a_desk(direct)).trade())

        with statements(engine) as sent:
            summary = await answer(sessions, GetUserTradingSummary(uid=desk.user.uid))

        assert len(sent) == 1
        assert summary.user == desk.user
        assert (summary.total_bots, summary.active_bots) == (2, 1)
        assert (summary.total_trades, summary.total_volume) == (120, Decimal(240))
        assert (summary.recent_trades_count, summary.recent_volume) == (100, Decimal(200))
        assert datetime.now(UTC) - summary.generated_at < timedelta(minutes=1)
        assert await answer(sessions, GetUserTradingSummary(uid=999)) is None

    async def test_of_no_trades_is_zero(self, desk: Desk, sessions: SessionMaker) -> None:
        summary = await answer(sessions, GetUserTradingSummary(uid=desk.user.uid))

        assert (summary.total_trades, summary.total_volume, summary.recent_trades_count) == (0, Decimal(0), 0)

    async def test_is_kept_for_an_hour_whatever_is_traded(
        self, direct: Direct, desk: Desk, sessions: SessionMaker, redis_url: str
    ) -> None:
        lookup = GetUserTradingSummary(uid=desk.user.uid)
        async with connect(redis_url, timeout=2) as redis:
            server = LookupServer(sessions, LeasedCache(redis, namespace="test", timeout=2), publisher=None)  # type: ignore[arg-type]
            first = await server.answer(lookup)
            await direct.call(desk.trade())
            second = await server.answer(lookup)
            left = await redis.pttl(name_of("test", trading_summary(desk.user.uid)))

        assert first == second
        [change] = await events(sessions, "trade.recorded")
        assert change["stale_keys"] == set()
        assert 3_100_000 < left <= 3_600_000


async def _all(sessions: SessionMaker, lookup: Any) -> list[Any]:
    """What a list holds, page by page."""
    seen: list[Any] = []
    while True:
        page = await answer(sessions, lookup)
        seen += page.trades
        if page.next_cursor is None:
            return seen
        lookup = lookup.model_copy(update={"cursor": page.next_cursor})


async def test_an_amount_that_is_no_number_cannot_be_stored(desk: Desk, sessions: SessionMaker) -> None:
    for column in ("fee", "roi", "roi_pct"):
        async with sessions() as session:
            with pytest.raises(Exception, match=f"ck_dry_trades_{column}"):
                await session.execute(
                    text(
                        f"INSERT INTO dry_trades (bot_id, uid, ex_id, cat_ex_id, symbol_id, side, size, price, cost, {column}) "  # noqa: E501, S608
                        "VALUES (:bot_id, :uid, :ex_id, :cat_ex_id, :symbol_id, 'buy', 1, 1, 1, 'NaN')"
                    ),
                    {
                        "bot_id": desk.bot.bot_id,
                        "uid": desk.user.uid,
                        "ex_id": desk.account.ex_id,
                        "cat_ex_id": desk.catalog.cat_ex_id,
                        "symbol_id": desk.symbol.symbol_id,
                    },
                )


class TestTotals:
    async def test_are_what_the_trades_add_up_to_whatever_becomes_of_them(
        self, direct: Direct, desk: Desk, executor: Executor, sessions: SessionMaker
    ) -> None:
        other = await a_desk(direct)
        order = await direct.call(desk.order())
        known = desk.trade()

        async def check() -> None:
            async with sessions() as session:
                added_up, kept = [
                    {row[0]: tuple(row[1:]) for row in await session.execute(text(query))}
                    for query in (_ADDED_UP, _KEPT)
                ]
            assert {uid: sums for uid, sums in kept.items() if sums[0]} == added_up

        await executor.execute([received(trade, reply_to=None) for trade in (known, desk.trade(side="sell"), known)])
        await executor.execute(
            [received(other.trade(price="0.000000000000000001")), received(desk.trade(bot_id=999))]
        )
        await check()
        await direct.call(RecordTrades(trades=[fields(desk, side="sell"), fields(desk, order_id=order.order_id)]))
        await check()
        async with sessions.begin() as session:
            first, second, third, *_ = await session.scalars(select(Trade.trade_id).order_by(Trade.trade_id))
            for statement, trade_id in (
                ("DELETE FROM trades WHERE trade_id = :id", first),
                ("UPDATE trades SET size = 7.5, cost = 7.5 * price WHERE trade_id = :id", second),
                ("UPDATE trades SET side = 'sell' WHERE trade_id = :id", third),
            ):
                await session.execute(text(statement), {"id": trade_id})
        await check()
        async with sessions.begin() as session:
            await session.execute(text("DELETE FROM users WHERE uid = :uid"), {"uid": other.user.uid})
        await check()


_SUMS_OF_TRADES = """count(*), sum(size), sum(price), sum(cost), coalesce(sum(cost) FILTER (WHERE side = 'buy'), 0),
    coalesce(sum(cost) FILTER (WHERE side = 'sell'), 0)"""
_ADDED_UP = f"SELECT uid, {_SUMS_OF_TRADES} FROM trades GROUP BY uid"  # noqa: S608
_KEPT = """SELECT uid, sum(trades), sum(size), sum(price), sum(cost), sum(bought), sum(sold)
    FROM trade_totals GROUP BY uid"""
