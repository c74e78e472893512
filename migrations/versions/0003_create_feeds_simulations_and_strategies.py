"""Create feeds, simulations and strategies."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cat_strategies",
        sa.Column("cat_str_id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("class_name", sa.String(length=100), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("take_profit", sa.Numeric(), nullable=True),
        sa.Column("stop_loss", sa.Numeric(), nullable=True),
        sa.Column("trailing_stop", sa.Numeric(), nullable=True),
        sa.Column("timeout", sa.Integer(), nullable=True),
        sa.Column("pre_load_bars", sa.SmallInteger(), server_default=sa.text("200"), nullable=False),
        sa.Column("feeds", sa.SmallInteger(), server_default=sa.text("2"), nullable=False),
        sa.Column("pairs", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("row_version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "take_profit >= 0 AND take_profit < 'Infinity' AND stop_loss >= 0 AND stop_loss < 'Infinity' "
            "AND trailing_stop >= 0 AND trailing_stop < 'Infinity'",
            name=op.f("ck_cat_strategies_limits"),
        ),
        sa.CheckConstraint("feeds >= 0", name=op.f("ck_cat_strategies_feeds")),
        sa.CheckConstraint("pre_load_bars >= 0", name=op.f("ck_cat_strategies_pre_load_bars")),
        sa.CheckConstraint("timeout >= 0", name=op.f("ck_cat_strategies_timeout")),
        sa.PrimaryKeyConstraint("cat_str_id", name=op.f("pk_cat_strategies")),
        sa.UniqueConstraint("name", name=op.f("uq_cat_strategies_name")),
    )
    op.create_table(
        "cat_strategy_params",
        sa.Column("cat_str_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cat_str_id"],
            ["cat_strategies.cat_str_id"],
            name=op.f("fk_cat_strategy_params_cat_str_id_cat_strategies"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("cat_str_id", "name", name=op.f("pk_cat_strategy_params")),
    )
    op.create_table(
        "simulations",
        sa.Column("simulation_id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("bot_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("start_date", sa.DateTime(timezone=True), nullable=False),
        sa.Column("end_date", sa.DateTime(timezone=True), nullable=False),
        sa.Column("initial_balance", sa.Numeric(), nullable=False),
        sa.Column("final_balance", sa.Numeric(), nullable=False),
        sa.Column("total_trades", sa.Integer(), nullable=False),
        sa.Column("win_rate", sa.Double(), nullable=True),
        sa.Column("sharpe_ratio", sa.Double(), nullable=True),
        sa.Column("params", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("results", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("timestamp", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("row_version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "final_balance > '-Infinity' AND final_balance < 'Infinity'", name=op.f("ck_simulations_final_balance")
        ),
        sa.CheckConstraint(
            "initial_balance >= 0 AND initial_balance < 'Infinity'", name=op.f("ck_simulations_initial_balance")
        ),
        sa.CheckConstraint(
            "sharpe_ratio > '-Infinity' AND sharpe_ratio < 'Infinity'", name=op.f("ck_simulations_sharpe_ratio")
        ),
        sa.CheckConstraint("end_date >= start_date", name=op.f("ck_simulations_end_date")),
        sa.CheckConstraint("total_trades >= 0", name=op.f("ck_simulations_total_trades")),
        sa.CheckConstraint("win_rate BETWEEN 0 AND 1", name=op.f("ck_simulations_win_rate")),
        sa.ForeignKeyConstraint(
            ["bot_id"], ["bots.bot_id"], name=op.f("fk_simulations_bot_id_bots"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("simulation_id", name=op.f("pk_simulations")),
        sa.UniqueConstraint("bot_id", "name", name=op.f("uq_simulations_bot_id_name")),
    )
    op.create_index(op.f("ix_simulations_timestamp"), "simulations", ["timestamp"], unique=False)
    op.create_table(
        "strategies",
        sa.Column("str_id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("bot_id", sa.Integer(), nullable=False),
        sa.Column("cat_str_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=50), nullable=True),
        sa.Column("take_profit", sa.Numeric(), nullable=True),
        sa.Column("stop_loss", sa.Numeric(), nullable=True),
        sa.Column("trailing_stop", sa.Numeric(), nullable=True),
        sa.Column("timeout", sa.Integer(), nullable=True),
        sa.Column("leverage", sa.Numeric(), server_default=sa.text("1"), nullable=False),
        sa.Column("size_pct", sa.Numeric(), nullable=True),
        sa.Column("size", sa.Numeric(), nullable=True),
        sa.Column("size_currency", sa.String(length=15), server_default="USD", nullable=False),
        sa.Column("pre_load_bars", sa.SmallInteger(), server_default=sa.text("200"), nullable=False),
        sa.Column("feeds_count", sa.SmallInteger(), server_default=sa.text("2"), nullable=False),
        sa.Column("pairs", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("timestamp", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("row_version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("leverage > 0 AND leverage < 'Infinity'", name=op.f("ck_strategies_leverage")),
        sa.CheckConstraint("size > 0 AND size < 'Infinity'", name=op.f("ck_strategies_size")),
        sa.CheckConstraint(
            "take_profit >= 0 AND take_profit < 'Infinity' AND stop_loss >= 0 AND stop_loss < 'Infinity' "
            "AND trailing_stop >= 0 AND trailing_stop < 'Infinity'",
            name=op.f("ck_strategies_limits"),
        ),
        sa.CheckConstraint("feeds_count >= 0", name=op.f("ck_strategies_feeds_count")),
        sa.CheckConstraint("pre_load_bars >= 0", name=op.f("ck_strategies_pre_load_bars")),
        sa.CheckConstraint("size IS NULL OR size_pct IS NULL", name=op.f("ck_strategies_one_size")),
        sa.CheckConstraint("size_pct > 0 AND size_pct <= 100", name=op.f("ck_strategies_size_pct")),
        sa.CheckConstraint("timeout >= 0", name=op.f("ck_strategies_timeout")),
        sa.ForeignKeyConstraint(
            ["bot_id"], ["bots.bot_id"], name=op.f("fk_strategies_bot_id_bots"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["cat_str_id"],
            ["cat_strategies.cat_str_id"],
            name=op.f("fk_strategies_cat_str_id_cat_strategies"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("str_id", name=op.f("pk_strategies")),
        sa.UniqueConstraint("str_id", "bot_id", name=op.f("uq_strategies_str_id_bot_id")),
    )
    op.create_index(op.f("ix_strategies_bot_id"), "strategies", ["bot_id"], unique=False)
    op.create_index(op.f("ix_strategies_cat_str_id"), "strategies", ["cat_str_id"], unique=False)
    op.create_table(
        "feeds",
        sa.Column("feed_id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("bot_id", sa.Integer(), nullable=False),
        sa.Column("str_id", sa.Integer(), nullable=True),
        sa.Column("symbol_id", sa.Integer(), nullable=False),
        sa.Column("cat_ex_id", sa.Integer(), nullable=False),
        sa.Column("ex_id", sa.Integer(), nullable=True),
        sa.Column("timeframe", sa.String(length=10), nullable=False),
        sa.Column("order", sa.SmallInteger(), nullable=False),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("row_version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("timeframe ~ '^(tick|[1-9][0-9]{0,3}[smhdwM])$'", name=op.f("ck_feeds_timeframe")),
        sa.CheckConstraint('"order" >= 0', name=op.f("ck_feeds_order")),
        sa.ForeignKeyConstraint(
            ["bot_id", "ex_id"],
            ["bot_exchanges.bot_id", "bot_exchanges.ex_id"],
            name=op.f("fk_feeds_bot_id_ex_id_bot_exchanges"),
            ondelete="SET NULL (ex_id)",
        ),
        sa.ForeignKeyConstraint(["bot_id"], ["bots.bot_id"], name=op.f("fk_feeds_bot_id_bots"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["ex_id", "cat_ex_id"],
            ["exchanges.ex_id", "exchanges.cat_ex_id"],
            name=op.f("fk_feeds_ex_id_cat_ex_id_exchanges"),
            ondelete="SET NULL (ex_id)",
        ),
        sa.ForeignKeyConstraint(
            ["str_id", "bot_id"],
            ["strategies.str_id", "strategies.bot_id"],
            name=op.f("fk_feeds_str_id_bot_id_strategies"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["symbol_id", "cat_ex_id"],
            ["symbols.symbol_id", "symbols.cat_ex_id"],
            name=op.f("fk_feeds_symbol_id_cat_ex_id_symbols"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("feed_id", name=op.f("pk_feeds")),
        sa.UniqueConstraint(
            "bot_id", "order", deferrable=True, initially="IMMEDIATE", name=op.f("uq_feeds_bot_id_order")
        ),
        sa.UniqueConstraint(
            "bot_id",
            "str_id",
            "symbol_id",
            "timeframe",
            name=op.f("uq_feeds_bot_id_str_id_symbol_id_timeframe"),
            postgresql_nulls_not_distinct=True,
        ),
    )
    op.create_index(op.f("ix_feeds_ex_id"), "feeds", ["ex_id"], unique=False)
    op.create_index(op.f("ix_feeds_str_id"), "feeds", ["str_id"], unique=False)
    op.create_index(op.f("ix_feeds_symbol_id"), "feeds", ["symbol_id"], unique=False)
    op.create_table(
        "strategy_params",
        sa.Column("str_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["str_id"], ["strategies.str_id"], name=op.f("fk_strategy_params_str_id_strategies"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("str_id", "name", name=op.f("pk_strategy_params")),
    )


def downgrade() -> None:
    for table in (
        "strategy_params",
        "feeds",
        "strategies",
        "simulations",
        "cat_strategy_params",
        "cat_strategies",
    ):
        op.drop_table(table)
