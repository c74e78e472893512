"""Create accounts, dry trades and ticks; lease orders to workers; index what lists ask for."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "balances",
        sa.Column("ex_id", sa.Integer(), nullable=False),
        sa.Column("currency", sa.String(length=20), nullable=False),
        sa.Column("free", sa.Numeric(), nullable=False),
        sa.Column("used", sa.Numeric(), nullable=False),
        sa.Column("total", sa.Numeric(), nullable=False),
        sa.Column("timestamp", sa.DateTime(timezone=True), nullable=False),
        sa.Column("row_version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("free > '-Infinity' AND free < 'Infinity'", name=op.f("ck_balances_free")),
        sa.CheckConstraint("total > '-Infinity' AND total < 'Infinity'", name=op.f("ck_balances_total")),
        sa.CheckConstraint("used > '-Infinity' AND used < 'Infinity'", name=op.f("ck_balances_used")),
        sa.ForeignKeyConstraint(
            ["ex_id"], ["exchanges.ex_id"], name=op.f("fk_balances_ex_id_exchanges"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("ex_id", "currency", name=op.f("pk_balances")),
    )
    op.create_table(
        "dry_trades",
        sa.Column("dry_trade_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("bot_id", sa.Integer(), nullable=False),
        sa.Column("uid", sa.Integer(), nullable=False),
        sa.Column("ex_id", sa.Integer(), nullable=False),
        sa.Column("cat_ex_id", sa.Integer(), nullable=False),
        sa.Column("symbol_id", sa.Integer(), nullable=False),
        sa.Column("side", sa.String(length=4), nullable=False),
        sa.Column("size", sa.Numeric(), nullable=False),
        sa.Column("price", sa.Numeric(), nullable=False),
        sa.Column("cost", sa.Numeric(), nullable=False),
        sa.Column("fee", sa.Numeric(), server_default=sa.text("0"), nullable=False),
        sa.Column("fee_currency", sa.String(length=20), nullable=True),
        sa.Column("leverage", sa.Numeric(), server_default=sa.text("1"), nullable=False),
        sa.Column("roi", sa.Numeric(), nullable=True),
        sa.Column("roi_pct", sa.Numeric(), nullable=True),
        sa.Column("closing", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("reason", sa.String(length=255), nullable=True),
        sa.Column("timestamp", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("row_version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.CheckConstraint("fee > '-Infinity' AND fee < 'Infinity'", name=op.f("ck_dry_trades_fee")),
        sa.CheckConstraint("leverage > 0 AND leverage < 'Infinity'", name=op.f("ck_dry_trades_leverage")),
        sa.CheckConstraint("price > 0 AND price < 'Infinity'", name=op.f("ck_dry_trades_price")),
        sa.CheckConstraint("roi > '-Infinity' AND roi < 'Infinity'", name=op.f("ck_dry_trades_roi")),
        sa.CheckConstraint("roi_pct > '-Infinity' AND roi_pct < 'Infinity'", name=op.f("ck_dry_trades_roi_pct")),
        sa.CheckConstraint("side IN ('buy', 'sell')", name=op.f("ck_dry_trades_side")),
        sa.CheckConstraint("size > 0 AND size < 'Infinity'", name=op.f("ck_dry_trades_size")),
        sa.ForeignKeyConstraint(
            ["bot_id", "uid"],
            ["bots.bot_id", "bots.uid"],
            name=op.f("fk_dry_trades_bot_id_uid_bots"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["ex_id", "uid", "cat_ex_id"],
            ["exchanges.ex_id", "exchanges.uid", "exchanges.cat_ex_id"],
            name=op.f("fk_dry_trades_ex_id_uid_cat_ex_id_exchanges"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["symbol_id", "cat_ex_id"],
            ["symbols.symbol_id", "symbols.cat_ex_id"],
            name=op.f("fk_dry_trades_symbol_id_cat_ex_id_symbols"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("dry_trade_id", name=op.f("pk_dry_trades")),
    )
    op.create_index(op.f("ix_dry_trades_ex_id"), "dry_trades", ["ex_id"], unique=False)
    op.create_index(
        "ix_dry_trades_newest_of_bot",
        "dry_trades",
        ["bot_id", sa.literal_column("timestamp DESC"), sa.literal_column("dry_trade_id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_dry_trades_newest_of_bot_by_symbol",
        "dry_trades",
        ["bot_id", "symbol_id", "ex_id", sa.literal_column("timestamp DESC"), sa.literal_column("dry_trade_id DESC")],
        unique=False,
    )
    op.create_index(op.f("ix_dry_trades_symbol_id"), "dry_trades", ["symbol_id"], unique=False)
    op.create_index(op.f("ix_dry_trades_uid"), "dry_trades", ["uid"], unique=False)
    op.create_table(
        "exchange_history",
        sa.Column("history_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("ex_id", sa.Integer(), nullable=False),
        sa.Column("uid", sa.Integer(), nullable=False),
        sa.Column("currency", sa.String(length=20), nullable=False),
        sa.Column("balance", sa.Numeric(), nullable=False),
        sa.Column("change", sa.Numeric(), nullable=True),
        sa.Column("comment", sa.Text(), nullable=True),
        sa.Column("timestamp", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "balance > '-Infinity' AND balance < 'Infinity'", name=op.f("ck_exchange_history_balance")
        ),
        sa.CheckConstraint("change > '-Infinity' AND change < 'Infinity'", name=op.f("ck_exchange_history_change")),
        sa.ForeignKeyConstraint(
            ["ex_id", "uid"],
            ["exchanges.ex_id", "exchanges.uid"],
            name=op.f("fk_exchange_history_ex_id_uid_exchanges"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("history_id", name=op.f("pk_exchange_history")),
    )
    op.create_index(
        "ix_exchange_history_newest_of_account",
        "exchange_history",
        ["ex_id", sa.literal_column("timestamp DESC"), sa.literal_column("history_id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_exchange_history_newest_of_currency",
        "exchange_history",
        ["ex_id", "currency", sa.literal_column("timestamp DESC"), sa.literal_column("history_id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_exchange_history_newest_of_user",
        "exchange_history",
        ["uid", sa.literal_column("timestamp DESC"), sa.literal_column("history_id DESC")],
        unique=False,
    )
    op.create_table(
        "positions",
        sa.Column("ex_id", sa.Integer(), nullable=False),
        sa.Column("symbol_id", sa.Integer(), nullable=False),
        sa.Column("uid", sa.Integer(), nullable=False),
        sa.Column("cat_ex_id", sa.Integer(), nullable=False),
        sa.Column("bot_id", sa.Integer(), nullable=True),
        sa.Column("side", sa.String(length=5), nullable=False),
        sa.Column("volume", sa.Numeric(), nullable=False),
        sa.Column("price", sa.Numeric(), server_default=sa.text("0"), nullable=False),
        sa.Column("cost", sa.Numeric(), server_default=sa.text("0"), nullable=False),
        sa.Column("fee", sa.Numeric(), server_default=sa.text("0"), nullable=False),
        sa.Column("realized_pnl", sa.Numeric(), server_default=sa.text("0"), nullable=False),
        sa.Column("count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("timestamp", sa.DateTime(timezone=True), nullable=False),
        sa.Column("row_version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("cost > '-Infinity' AND cost < 'Infinity'", name=op.f("ck_positions_cost")),
        sa.CheckConstraint("fee > '-Infinity' AND fee < 'Infinity'", name=op.f("ck_positions_fee")),
        sa.CheckConstraint("price >= 0 AND price < 'Infinity'", name=op.f("ck_positions_price")),
        sa.CheckConstraint(
            "realized_pnl > '-Infinity' AND realized_pnl < 'Infinity'", name=op.f("ck_positions_realized_pnl")
        ),
        sa.CheckConstraint(
            "side = CASE WHEN volume > 0 THEN 'long' WHEN volume < 0 THEN 'short' ELSE 'flat' END",
            name=op.f("ck_positions_side"),
        ),
        sa.CheckConstraint("volume > '-Infinity' AND volume < 'Infinity'", name=op.f("ck_positions_volume")),
        sa.CheckConstraint("count >= 0", name=op.f("ck_positions_count")),
        sa.ForeignKeyConstraint(
            ["bot_id", "uid"],
            ["bots.bot_id", "bots.uid"],
            name=op.f("fk_positions_bot_id_uid_bots"),
            ondelete="SET NULL (bot_id)",
        ),
        sa.ForeignKeyConstraint(
            ["ex_id", "uid", "cat_ex_id"],
            ["exchanges.ex_id", "exchanges.uid", "exchanges.cat_ex_id"],
            name=op.f("fk_positions_ex_id_uid_cat_ex_id_exchanges"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["symbol_id", "cat_ex_id"],
            ["symbols.symbol_id", "symbols.cat_ex_id"],
            name=op.f("fk_positions_symbol_id_cat_ex_id_symbols"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("ex_id", "symbol_id", name=op.f("pk_positions")),
    )
    op.create_index(op.f("ix_positions_bot_id"), "positions", ["bot_id"], unique=False)
    op.create_index(op.f("ix_positions_symbol_id"), "positions", ["symbol_id"], unique=False)
    op.create_table(
        "ticks",
        sa.Column("tick_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("symbol_id", sa.Integer(), nullable=False),
        sa.Column("price", sa.Numeric(), nullable=False),
        sa.Column("volume", sa.Numeric(), nullable=True),
        sa.Column("bid", sa.Numeric(), nullable=True),
        sa.Column("ask", sa.Numeric(), nullable=True),
        sa.Column("last", sa.Numeric(), nullable=True),
        sa.Column("timestamp", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("ask > 0 AND ask < 'Infinity'", name=op.f("ck_ticks_ask")),
        sa.CheckConstraint("bid > 0 AND bid < 'Infinity'", name=op.f("ck_ticks_bid")),
        sa.CheckConstraint("last > 0 AND last < 'Infinity'", name=op.f("ck_ticks_last")),
        sa.CheckConstraint("price > 0 AND price < 'Infinity'", name=op.f("ck_ticks_price")),
        sa.CheckConstraint("volume >= 0 AND volume < 'Infinity'", name=op.f("ck_ticks_volume")),
        sa.ForeignKeyConstraint(
            ["symbol_id"], ["symbols.symbol_id"], name=op.f("fk_ticks_symbol_id_symbols"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("symbol_id", "timestamp", name=op.f("pk_ticks")),
        postgresql_partition_by="RANGE (timestamp)",
    )
    # Where ticks go whose partition is not made, or never will be.
    op.execute("CREATE TABLE ticks_p_default PARTITION OF ticks DEFAULT")
    op.add_column("orders", sa.Column("leased_by", sa.String(length=64), nullable=True))
    op.add_column("orders", sa.Column("leased_until", sa.DateTime(timezone=True), nullable=True))
    op.create_check_constraint(
        op.f("ck_orders_lease_is_whole"), "orders", "(leased_by IS NULL) = (leased_until IS NULL)"
    )
    op.drop_index(op.f("ix_orders_symbol_id"), table_name="orders")
    op.create_index(
        "ix_orders_newest_of_account",
        "orders",
        ["ex_id", sa.literal_column("timestamp DESC"), sa.literal_column("order_id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_orders_newest_of_bot",
        "orders",
        ["bot_id", sa.literal_column("timestamp DESC"), sa.literal_column("order_id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_orders_newest_of_symbol",
        "orders",
        ["symbol_id", sa.literal_column("timestamp DESC"), sa.literal_column("order_id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_orders_pending",
        "orders",
        ["timestamp", "order_id"],
        unique=False,
        postgresql_where=sa.text("status = 'pending'"),
    )
    for column in ("roi", "roi_pct"):
        op.create_check_constraint(
            op.f(f"ck_trades_{column}"), "trades", f"{column} > '-Infinity' AND {column} < 'Infinity'"
        )
    op.drop_index(op.f("ix_trades_symbol_id"), table_name="trades")
    op.create_index(
        "ix_trades_newest_of_account",
        "trades",
        ["ex_id", sa.literal_column("timestamp DESC"), sa.literal_column("trade_id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_trades_newest_of_symbol",
        "trades",
        ["symbol_id", sa.literal_column("timestamp DESC"), sa.literal_column("trade_id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_trades_newest_of_user_by_symbol",
        "trades",
        ["uid", "symbol_id", sa.literal_column("timestamp DESC"), sa.literal_column("trade_id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_trades_timestamp",
        "trades",
        ["timestamp"],
        unique=False,
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 32, "autosummarize": True},
    )


def downgrade() -> None:
    op.drop_index(
        "ix_trades_timestamp",
        table_name="trades",
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 32, "autosummarize": True},
    )
    op.drop_index("ix_trades_newest_of_user_by_symbol", table_name="trades")
    op.drop_index("ix_trades_newest_of_symbol", table_name="trades")
    op.drop_index("ix_trades_newest_of_account", table_name="trades")
    for column in ("roi", "roi_pct"):
        op.drop_constraint(op.f(f"ck_trades_{column}"), "trades")
    op.create_index(op.f("ix_trades_symbol_id"), "trades", ["symbol_id", "timestamp"], unique=False)
    op.drop_index("ix_orders_pending", table_name="orders", postgresql_where=sa.text("status = 'pending'"))
    op.drop_index("ix_orders_newest_of_symbol", table_name="orders")
    op.drop_index("ix_orders_newest_of_bot", table_name="orders")
    op.drop_index("ix_orders_newest_of_account", table_name="orders")
    op.create_index(op.f("ix_orders_symbol_id"), "orders", ["symbol_id", "timestamp"], unique=False)
    op.drop_column("orders", "leased_until")
    op.drop_column("orders", "leased_by")
    op.drop_table("ticks")
    op.drop_table("positions")
    op.drop_table("exchange_history")
    op.drop_table("dry_trades")
    op.drop_table("balances")
