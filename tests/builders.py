"""Things a test is not about, made by messages as a bot would."""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from redis.asyncio import Redis

from contracts import (
    AddBot,
    AddBotStrategy,
    AddExchange,
    AddExchangeToBot,
    AddFeedToBot,
    AddSymbol,
    AddUser,
    BotView,
    CatExchangeView,
    CreateOrder,
    ExchangeUpdates,
    ExchangeView,
    InstallExchange,
    InstallStrategy,
    RecordDryTrade,
    RecordTrade,
    SaveBotLog,
    SaveSimulation,
    SymbolView,
    UpdateExchange,
    UserView,
    new_key_pair,
    seal,
)
from contracts.base import Command, Lookup, answer_adapter
from contracts.certificate import UNCERTIFIED, Certificate, name_of_certificate
from contracts.client import PersistenceClient, new_message_id
from contracts.leased_cache import LeasedCache
from contracts.wire import Wire
from service.config import Settings
from service.database import SessionMaker
from service.executor import Executor
from service.lookup_server import LookupServer
from service.publisher import InFlight, Publication, Publisher
from service.received import Received
from service.relay import Relay
from service.vault import Vault


@dataclass(frozen=True)
class Desk:
    """A user with an account, a symbol listed there and a bot that may trade it."""

    user: UserView
    catalog: CatExchangeView
    account: ExchangeView
    symbol: SymbolView
    bot: BotView

    @property
    def parties(self) -> dict[str, int]:
        """Whose and of what an order or a trade is."""
        return {
            "bot_id": self.bot.bot_id,
            "uid": self.user.uid,
            "ex_id": self.account.ex_id,
            "symbol_id": self.symbol.symbol_id,
        }

    def trade(self, **changes: Any) -> RecordTrade:
        """A trade of this desk's bot, unlike any other unless told so."""
        fields: dict[str, Any] = {
            **self.parties,
            "side": "buy",
            "size": "23.00000000",
            "price": "0.00141342",
            "ex_trade_id": secrets.token_hex(8),
        }
        return RecordTrade(**{**fields, **changes})

    def order(self, **changes: Any) -> CreateOrder:
        """A limit order of this desk's bot for 10 at 0.1, unless told otherwise."""
        fields: dict[str, Any] = {
            **self.parties,
            "side": "buy",
            "size": "10",
            "order_type": "limit",
            "price": "0.1",
        }
        return CreateOrder(**{**fields, **changes})

    def dry_trade(self, **changes: Any) -> RecordDryTrade:
        """A dry trade of this desk's bot."""
        fields: dict[str, Any] = {
            **self.parties,
            "side": "buy",
            "size": "23.00000000",
            "price": "0.00141342",
        }
        return RecordDryTrade(**{**fields, **changes})

    def simulation(self, **changes: Any) -> SaveSimulation:
        """A simulation of this desk's bot over a month."""
        fields: dict[str, Any] = {
            "bot_id": self.bot.bot_id,
            "name": "first",
            "start_date": "2024-01-01T00:00:00Z",
            "end_date": "2024-01-31T00:00:00Z",
            "initial_balance": "10000",
            "final_balance": "11250",
            "total_trades": 156,
        }
        return SaveSimulation(**{**fields, **changes})


async def a_desk(client: "PersistenceClient | Direct", *, symbol: str = "XRP/ETH") -> Desk:
    """A desk of its own, set up from nothing by messages alone."""
    name = secrets.token_hex(4)
    user = await client.call(AddUser(mail=f"{name}@example.org"))
    catalog = await client.call(InstallExchange(name=f"exchange {name}"))
    account = await client.call(AddExchange(uid=user.uid, cat_ex_id=catalog.cat_ex_id, ex_name="main"))
    listed = await client.call(AddSymbol(symbol=symbol, cat_ex_id=catalog.cat_ex_id))
    bot = await client.call(AddBot(uid=user.uid, name="bot"))
    await client.call(AddExchangeToBot(bot_id=bot.bot_id, ex_id=account.ex_id, trading_currency="ETH"))
    return Desk(user, catalog, account, listed, bot)


class Direct:
    """Carries out commands without a broker in between."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    async def call(self, command: Command[Any]) -> Any:
        """The answer to a command; fails the test if it is refused."""
        [reply] = await self.executor.execute([received(command)])
        assert reply.ok, reply.error
        return answer_adapter(type(command)).validate_python(reply.data)


def received(command: Command[Any], **properties: Any) -> Received:
    """A command as the wire would bring it, asking for a reply."""
    return Received(
        command=command.wire_name,
        body=command.model_dump_json(exclude_unset=True).encode(),
        **{"message_id": str(new_message_id()), "reply_to": "test-replies", **properties},
    )


class Asking:
    """Answers lookups without a broker in between, past the cache."""

    def __init__(self, sessions: SessionMaker) -> None:
        # Neither of the two is touched by a fresh answer.
        self.server = LookupServer(sessions, cast("LeasedCache", None), cast("Publisher", None))

    async def ask(self, lookup: Lookup[Any]) -> Any:
        """The answer to a lookup; raises `Refusal` if it is refused."""
        return answer_adapter(type(lookup)).validate_json(await self.server.answer(lookup, fresh=True))


def a_vault() -> Vault:
    """A vault with keys of its own."""
    private, _ = new_key_pair()
    return Vault([private], {"first": secrets.token_bytes(32)})


def sealed(vault: Vault, secret: str, *, uid: int, field: str) -> str:
    """A secret as a user's sender seals it for that vault."""
    assert vault.public_key is not None
    return seal(secret, vault.public_key, uid=uid, field=field)


async def with_credentials(direct: Direct, vault: Vault, account: ExchangeView) -> ExchangeView:
    """The account once it has a key."""
    key = sealed(vault, "key", uid=account.uid, field="api_key")
    updated: ExchangeView = await direct.call(
        UpdateExchange(ex_id=account.ex_id, updates=ExchangeUpdates(api_key=key))
    )
    return updated


async def furnish(direct: Direct, desk: Desk) -> None:
    """Hang something of each kind on the desk's bot."""
    bot_id = desk.bot.bot_id
    catalog = await direct.call(InstallStrategy(name=f"strategy of {bot_id}", params={"period": "14"}))
    strategy = await direct.call(AddBotStrategy(bot_id=bot_id, cat_str_id=catalog.cat_str_id))
    for timeframe, more in (("1m", {"str_id": strategy.str_id}), ("1h", {"ex_id": desk.account.ex_id})):
        await direct.call(AddFeedToBot(bot_id=bot_id, symbol_id=desk.symbol.symbol_id, timeframe=timeframe, **more))
    await direct.call(SaveBotLog(bot_id=bot_id, message="hello"))
    await direct.call(desk.simulation())
    await direct.call(desk.dry_trade())


async def publish_everything(sessions: SessionMaker) -> None:
    """Have a relay publish what is in the outbox, to nobody."""
    settings = Settings.model_validate(
        {"database_url": "postgresql://unused", "rabbitmq_url": "amqp://unused", "redis_url": "redis://unused"}
    )
    relay = Relay(sessions, cast("Publisher", _Nobody()), settings)
    while await relay.publish_once():
        pass
    await relay.release()


async def certify(redis_url: str, namespace: str = "persistence") -> None:
    """Have a cache be read for ten minutes, under the names it has for who asks for no certificate."""
    async with Redis.from_url(redis_url) as redis:
        run_id = (await redis.info("server"))["run_id"]
        certificate = Certificate(epoch=UNCERTIFIED.epoch, run_id=run_id, as_of=datetime.now(UTC))
        await redis.set(name_of_certificate(namespace), certificate.model_dump_json(), ex=600)


class _Nobody:
    """Confirms whatever is published."""

    async def send_events(self, _: Sequence[Publication], *, after: InFlight | None = None) -> InFlight:
        """Take them."""
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        return after or InFlight(cast("Wire", self), confirmed)

    async def confirmed(self, sent: InFlight) -> None:
        """At once."""
