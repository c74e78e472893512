"""Strategies: the catalog of what exists (``cat_str_id``), and what bots run of it (``str_id``)."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from contracts.base import Command, Event, Lookup, Part, Updates, View
from contracts.sealing import ParamName
from contracts.types import (
    STORABLE,
    Count,
    Cursor,
    ExactDecimal,
    Flag,
    Id,
    Instant,
    Limit,
    Name,
    NonNegative,
    Positive,
    Text,
)

SmallCount = Annotated[Count, Field(le=32_767)]
Percent = Annotated[Positive, Field(le=100)]
Currency = Annotated[str, Field(min_length=1, max_length=15), STORABLE]
Params = Annotated[dict[ParamName, Text], Field(max_length=500)]
"""Settings by name; what they mean is between a strategy and its author. They are no place for secrets."""


class CatStrategyView(View):
    """A strategy that bots can run: the template of what they run."""

    cat_str_id: Id
    name: str
    class_name: str | None
    description: str | None
    take_profit: ExactDecimal | None
    """In percent, as are the two below."""
    stop_loss: ExactDecimal | None
    trailing_stop: ExactDecimal | None
    timeout: int | None
    """After how many seconds a position is given up."""
    pre_load_bars: int
    """How many bars it wants to see before it begins."""
    feeds: int
    """How many feeds it needs."""
    pairs: bool
    """Whether it trades two symbols against each other."""
    params: dict[str, str]
    row_version: int


class BaseStrategyView(View):
    """What a bot runs, without the settings of its author."""

    str_id: Id
    bot_id: Id
    cat_str_id: Id
    name: str | None
    take_profit: ExactDecimal | None
    stop_loss: ExactDecimal | None
    trailing_stop: ExactDecimal | None
    timeout: int | None
    leverage: ExactDecimal
    size_pct: ExactDecimal | None
    """The size of a position in percent of the funds; null if ``size`` says it, or nothing does."""
    size: ExactDecimal | None
    """The size of a position in ``size_currency``."""
    size_currency: str
    pre_load_bars: int
    feeds_count: int
    pairs: bool
    active: bool
    timestamp: Instant
    row_version: int


class StrategyView(BaseStrategyView):
    """What a bot runs, with all its settings."""

    params: dict[str, str]


class StrategyParamsView(View):
    """The settings of a strategy that a bot runs."""

    str_id: Id
    params: dict[str, str]


class StrategyPage(View):
    """Some of the strategies that bots run."""

    strategies: list[StrategyView]
    next_cursor: str | None
    """Give it as ``cursor`` to get what follows; null once there is nothing more."""


class InstallStrategy(Command[CatStrategyView], name="install_strategy"):
    """Put a strategy into the catalog, or change the one of that name: fields left out keep what is stored.

    ``params`` are replaced as a whole where they are given. What bots run already stays as it is. With nothing to
    change it is answered with the stored one (``meta.duplicate``).
    """

    name: Name
    class_name: Annotated[str, Field(min_length=1, max_length=100), STORABLE] | None = None
    description: Text | None = None
    take_profit: NonNegative | None = None
    """In percent, as are the two below."""
    stop_loss: NonNegative | None = None
    trailing_stop: NonNegative | None = None
    timeout: Count | None = None
    """After how many seconds a position is given up."""
    pre_load_bars: SmallCount = 200
    """How many bars it wants to see before it begins."""
    feeds: SmallCount = 2
    """How many feeds it needs."""
    pairs: Flag = False
    """Whether it trades two symbols against each other."""
    params: Params = Field(default_factory=dict)


class AddBotStrategy(Command[StrategyView], name="add_bot_strategy"):
    """Have a bot run a strategy of the catalog; fields left out are as the catalog has them now.

    ``params`` are laid over the catalog's, one by one. Without ``size`` and ``size_pct`` it is 10 percent.
    """

    bot_id: Id
    cat_str_id: Id
    name: Name | None = None
    take_profit: NonNegative | None = None
    stop_loss: NonNegative | None = None
    trailing_stop: NonNegative | None = None
    timeout: Count | None = None
    leverage: Positive | None = None
    size_pct: Percent | None = None
    size: Positive | None = None
    size_currency: Currency | None = None
    pre_load_bars: SmallCount | None = None
    feeds_count: SmallCount | None = None
    pairs: Flag | None = None
    active: Flag = True
    params: Params = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_one_size(self) -> Self:
        if self.size is not None and self.size_pct is not None:
            raise ValueError("size and size_pct exclude each other")
        return self


class StrategyUpdates(Updates):
    """The fields to change; those left out stay as they are. Of size and size_pct, setting one empties the other."""

    never_null = frozenset({"leverage", "size_currency", "pre_load_bars", "feeds_count", "pairs", "active"})

    name: Name | None = None
    take_profit: NonNegative | None = None
    stop_loss: NonNegative | None = None
    trailing_stop: NonNegative | None = None
    timeout: Count | None = None
    leverage: Positive | None = None
    size_pct: Percent | None = None
    size: Positive | None = None
    size_currency: Currency | None = None
    pre_load_bars: SmallCount | None = None
    feeds_count: SmallCount | None = None
    pairs: Flag | None = None
    active: Flag | None = None

    @model_validator(mode="after")
    def _has_one_size(self) -> Self:
        if self.size is not None and self.size_pct is not None:
            raise ValueError("size and size_pct exclude each other")
        return self


class EditStrategy(Command[StrategyView], name="edit_strategy"):
    """Change what a bot runs. ``conflict`` if ``expected_version`` is not its version."""

    str_id: Id
    updates: StrategyUpdates
    expected_version: Id | None = None


class EditStrategyParams(Command[StrategyView], name="edit_strategy_params"):
    """Change settings of what a bot runs: null removes one, those not named stay as they are."""

    str_id: Id
    params: Annotated[dict[ParamName, Text | None], Field(min_length=1, max_length=500)]
    expected_version: Id | None = None


class DelBotStrategy(Command[int], name="del_bot_strategy"):
    """Have a bot run a strategy no more, or none of its strategies; their feeds go too.

    Answered with how many went; ``not_found`` if there is no such bot.
    """

    bot_id: Id
    str_id: Id | None = None
    """The one to remove; all of the bot's if left out."""


class _ByIdOrName(Part):
    cat_str_id: Id | None = None
    name: Name | None = None

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.cat_str_id is None) == (self.name is None):
            raise ValueError("give either cat_str_id or name")
        return self


class DelCatStrategy(_ByIdOrName, Command[CatStrategyView], name="del_cat_strategy"):
    """Take a strategy out of the catalog, by id or by name. ``conflict`` while bots run it.

    Answered with what it was.
    """

    expected_version: Id | None = None


class GetCatStrategies(Lookup[list[CatStrategyView]], name="get_cat_strategies"):
    """The whole catalog of strategies by name."""


class GetCatStrategy(Lookup[CatStrategyView | None], name="get_cat_strategy"):
    """A strategy of the catalog; null if there is none."""

    cat_str_id: Id


class GetCatStrId(Lookup[int | None], name="get_cat_str_id"):
    """The id of a strategy of the catalog by its name; null if there is none."""

    name: Name


class GetCatStrategiesParams(Lookup[dict[str, str]], name="get_cat_strategies_params"):
    """The settings that a strategy of the catalog comes with; empty if there is no such strategy."""

    cat_str_id: Id


class GetStrategy(Lookup[StrategyView | None], name="get_strategy"):
    """What a bot runs, by its own id; null if there is no such thing."""

    str_id: Id


class GetBotStrategies(Lookup[list[StrategyView]], name="get_bot_strategies"):
    """All that a bot runs, oldest first; empty if there is no such bot."""

    bot_id: Id


class GetBaseStrParams(Lookup[list[BaseStrategyView]], name="get_base_str_params"):
    """All that a bot runs without the settings of its authors, oldest first; empty if there is no such bot."""

    bot_id: Id


class GetStrParams(Lookup[list[StrategyParamsView]], name="get_str_params"):
    """The settings of what a bot runs, oldest first: of all of it, or of one strategy."""

    bot_id: Id
    str_id: Id | None = None


class GetUserStrategies(Lookup[StrategyPage], name="get_user_strategies"):
    """What the bots of a user run, oldest first."""

    uid: Id
    limit: Limit = 100
    cursor: Cursor | None = None


class GetBotsStrategies(Lookup[StrategyPage], name="get_bots_strategies"):
    """What bots run of one strategy of the catalog, by its name, oldest first."""

    name: Name
    limit: Limit = 100
    cursor: Cursor | None = None


class StrategyCatalogChanged(Event[CatStrategyView], name="strategy.catalog_changed", key=("cat_str_id",)):
    """Strategies of the catalog came, changed or went."""


class BotStrategyChanged(Event[StrategyView], name="bot.strategy_changed", key=("str_id",)):
    """What bots run came, changed or went: what has no ``before`` is new, what has no ``after`` is gone."""
