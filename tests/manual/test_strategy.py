"""The StrategyRepository, which the manual names and says nothing about."""

import pytest

from service import StrategyRepository, get_async_session
from tests.manual.conftest import Furnished


@pytest.mark.manual("StrategyRepository", "StrategyRepository")
async def test_strategies_are_installed_run_changed_and_taken_away(furnished: Furnished) -> None:
    bot_id, uid = furnished.market.bot.bot_id, furnished.market.user.uid
    str_id, cat_str_id = furnished.strategy.str_id, furnished.strategy.cat_str_id
    async with get_async_session() as session:
        repo = StrategyRepository(session)
        await repo.edit_base_strat_params(str_id, {"take_profit": 2.5, "leverage": 3})
        await repo.edit_strat_params(str_id, {"period": "50"})

        assert [strategy.str_id for strategy in await repo.get_user_strategies(uid)] == [str_id]
        assert [strategy.str_id for strategy in await repo.get_bots_strategies("trend")] == [str_id]
        assert [row.name for row in await repo.get_cat_strategies()] == ["trend"]
        assert await repo.get_cat_str_id("trend") == cat_str_id
        assert await repo.get_cat_strategies_params(cat_str_id) == {"period": "20"}
        assert await repo.get_str_params(bot_id) == {str_id: {"period": "50"}}
        [base] = await repo.get_base_str_params(bot_id)
        assert (base["take_profit"], base["leverage"]) == ("2.5", "3")
        assert await repo.del_bot_strategy(bot_id) == 1
        await repo.del_cat_strategy("trend")
        assert await repo.get_cat_strategy(cat_str_id) is None
