"""All that a user needs to trade, in one go."""

from contracts.base import Command, View
from contracts.bot import BotFields, TradingCurrency
from contracts.exchange import AccountFields
from contracts.types import Id
from contracts.user import UserFields


class TradingSetup(View):
    """The ids of a user, the user's account and the bot that may use it."""

    uid: Id
    ex_id: Id
    bot_id: Id


class CreateTradingSetup(Command[TradingSetup], name="create_trading_setup"):
    """Register a user, open an account, create a bot and let it use the account: all of it or nothing.

    Announced like the four commands it stands for, and refused like them, naming the part at fault
    (``user.mail``). Credentials follow with ``update_exchange``: they are sealed as fields of a user, who has no id
    before this.
    """

    user: UserFields
    exchange: AccountFields
    bot: BotFields
    trading_currency: TradingCurrency = "USDT"
    """What the bot trades in on the account."""
