"""Every logical cache key, as a function of what it is about.

Logical keys are what events list as stale and what a reader asks a cache for; the name in Redis adds a namespace.
Parameters are escaped, so that a symbol such as ``BTC/USDT:USDT`` cannot be taken for two parts of a key.
"""

from typing import Final

_ESCAPES: Final = str.maketrans({"%": "%25", ":": "%3A", "{": "%7B", "}": "%7D"})


def _escape(parameter: str) -> str:
    return parameter.translate(_ESCAPES)


def symbol(symbol: str, cat_ex_id: int) -> str:
    """One symbol by its name, absent ones included."""
    return f"symbol:{_escape(symbol)}:{cat_ex_id}"


def symbols_of_exchange(cat_ex_id: int) -> str:
    """All symbols of a catalog exchange."""
    return f"symbols:exchange:{cat_ex_id}"


def symbol_decimals(symbol_id: int) -> str:
    """How many decimals a symbol's prices have."""
    return f"symbol:decimals:{symbol_id}"


def symbol_by_id(symbol_id: int) -> str:
    """One symbol by its id, absent ones included."""
    return f"symbol:by_id:{symbol_id}"


def all_symbols() -> str:
    """The first symbols of all exchanges."""
    return "symbols:all"


def exchanges_of_user(uid: int) -> str:
    """The exchange accounts of a user."""
    return f"user:exchanges:{uid}"


def exchange_params(ex_id: int) -> str:
    """The settings of an exchange account: the catalog's and its own."""
    return f"exchange:params:{ex_id}"


def active_exchanges() -> str:
    """The accounts that are active, of all users."""
    return "exchange:active"


def exchange_catalog() -> str:
    """The list of catalog exchanges."""
    return "exchange:catalog"


def bot_details(bot_id: int) -> str:
    """A bot with everything attached to it."""
    return f"bot:details:{bot_id}"


def bots_of_user(uid: int) -> str:
    """The bots of a user."""
    return f"user:bots:{uid}"


def trading_currency(bot_id: int, ex_id: int) -> str:
    """What a bot trades in on an exchange account."""
    return f"bot:currency:{bot_id}:{ex_id}"


def user(uid: int) -> str:
    """A user by id."""
    return f"user:{uid}"


def user_id(mail: str) -> str:
    """A user's id by mail address, in any case."""
    return f"user:id:{_escape(mail.lower())}"


def trading_summary(uid: int) -> str:
    """What a user's bots and trades add up to, as of at most an hour ago: new trades do not make it stale."""
    return f"user:trading_summary:{uid}"


def query(kind: str, name: str, arguments: str) -> str:
    """What a method of one's own says about symbols or exchanges."""
    return f"{kind}:query:{_escape(name)}:{_escape(arguments)}"


def strategy_catalog() -> str:
    """The list of strategies that bots can run."""
    return "strategy:catalog"
