"""Create the first tables."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cat_exchanges",
        sa.Column("cat_ex_id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("ohlcv_view", sa.Text(), server_default="", nullable=False),
        sa.Column("active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("timestamp", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("row_version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("cat_ex_id", name=op.f("pk_cat_exchanges")),
        sa.UniqueConstraint("name", name=op.f("uq_cat_exchanges_name")),
    )
    op.create_table(
        "dead_letters",
        sa.Column("dead_letter_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=True),
        sa.Column("command", sa.Text(), nullable=False),
        sa.Column("code", sa.String(length=30), nullable=False),
        sa.Column("field", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("body_size", sa.Integer(), nullable=False),
        sa.Column("body_hash", sa.LargeBinary(), nullable=False),
        sa.Column("complete", sa.Boolean(), nullable=False),
        sa.Column("properties", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("state", sa.String(length=12), server_default="open", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('open', 'replayed', 'discarded')", name=op.f("ck_dead_letters_state")),
        sa.PrimaryKeyConstraint("dead_letter_id", name=op.f("pk_dead_letters")),
        sa.UniqueConstraint(
            "message_id",
            "body_hash",
            name=op.f("uq_dead_letters_message_id_body_hash"),
            postgresql_nulls_not_distinct=True,
        ),
    )
    op.create_index(
        "ix_dead_letters_open",
        "dead_letters",
        ["dead_letter_id"],
        unique=False,
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_table(
        "event_streams",
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("type", name=op.f("pk_event_streams")),
    )
    op.create_table(
        "inbox",
        sa.Column("message_id", sa.Uuid(), nullable=False),
        sa.Column("command", sa.Text(), nullable=False),
        sa.Column("payload_hash", sa.LargeBinary(), nullable=False),
        sa.Column("refused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("reply", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("row_id", sa.BigInteger(), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("message_id", name=op.f("pk_inbox")),
        postgresql_partition_by="RANGE (message_id)",
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("event_id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column(
            "transaction_id",
            sa.BigInteger(),
            server_default=sa.text("(pg_current_xact_id())::text::bigint"),
            nullable=False,
        ),
        sa.Column("occurred_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("causation_ids", postgresql.ARRAY(sa.Uuid()), nullable=False),
        sa.Column("changes", sa.Text(), nullable=False),
        sa.Column("stale_keys", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
    )
    op.create_table(
        "relay_lease",
        sa.Column("name", sa.String(length=20), nullable=False),
        sa.Column("holder", sa.Uuid(), nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_relay_lease")),
    )
    op.create_table(
        "users",
        sa.Column("uid", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("mail", sa.String(length=80), nullable=False),
        sa.Column("password", sa.String(length=255), nullable=True),
        sa.Column("f2a", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "role",
            sa.Enum("ADMIN", "USER", name="role", native_enum=False, create_constraint=True, length=10),
            server_default="USER",
            nullable=False,
        ),
        sa.Column("name", sa.String(length=50), server_default="", nullable=False),
        sa.Column("lastname", sa.String(length=50), server_default="", nullable=False),
        sa.Column("phone", sa.String(length=20), server_default="", nullable=False),
        sa.Column("id_num", sa.String(length=15), server_default="", nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("manager", sa.Integer(), nullable=True),
        sa.Column("external_id", sa.String(length=64), nullable=True),
        sa.Column("timestamp", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("row_version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("manager <> uid", name=op.f("ck_users_manager_is_another")),
        sa.ForeignKeyConstraint(["manager"], ["users.uid"], name=op.f("fk_users_manager_users"), ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("uid", name=op.f("pk_users")),
        sa.UniqueConstraint("external_id", name=op.f("uq_users_external_id")),
    )
    op.create_index(op.f("ix_users_manager"), "users", ["manager"], unique=False)
    op.create_index("uq_users_lower_mail", "users", [sa.literal_column("lower(mail)")], unique=True)
    op.create_table(
        "bots",
        sa.Column("bot_id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("uid", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("dry_run", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("active", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("timestamp", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("row_version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["uid"], ["users.uid"], name=op.f("fk_bots_uid_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("bot_id", name=op.f("pk_bots")),
        sa.UniqueConstraint("bot_id", "uid", name=op.f("uq_bots_bot_id_uid")),
        sa.UniqueConstraint("uid", "name", name=op.f("uq_bots_uid_name")),
    )
    op.create_index("ix_bots_active", "bots", ["uid"], unique=False, postgresql_where=sa.text("active"))
    op.create_table(
        "cat_exchange_params",
        sa.Column("cat_ex_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cat_ex_id"],
            ["cat_exchanges.cat_ex_id"],
            name=op.f("fk_cat_exchange_params_cat_ex_id_cat_exchanges"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("cat_ex_id", "name", name=op.f("pk_cat_exchange_params")),
    )
    op.create_table(
        "exchanges",
        sa.Column("ex_id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("uid", sa.Integer(), nullable=False),
        sa.Column("cat_ex_id", sa.Integer(), nullable=False),
        sa.Column("ex_name", sa.String(length=50), nullable=False),
        sa.Column("account", sa.String(length=50), server_default="", nullable=False),
        sa.Column("sandbox", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("timestamp", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("row_version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["cat_ex_id"],
            ["cat_exchanges.cat_ex_id"],
            name=op.f("fk_exchanges_cat_ex_id_cat_exchanges"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(["uid"], ["users.uid"], name=op.f("fk_exchanges_uid_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("ex_id", name=op.f("pk_exchanges")),
        sa.UniqueConstraint("ex_id", "cat_ex_id", name=op.f("uq_exchanges_ex_id_cat_ex_id")),
        sa.UniqueConstraint("ex_id", "uid", "cat_ex_id", name=op.f("uq_exchanges_ex_id_uid_cat_ex_id")),
        sa.UniqueConstraint("ex_id", "uid", name=op.f("uq_exchanges_ex_id_uid")),
        sa.UniqueConstraint("uid", "cat_ex_id", "ex_name", name=op.f("uq_exchanges_uid_cat_ex_id_ex_name")),
    )
    op.create_index(op.f("ix_exchanges_cat_ex_id"), "exchanges", ["cat_ex_id"], unique=False)
    op.create_table(
        "symbols",
        sa.Column("symbol_id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("symbol", sa.String(length=40), nullable=False),
        sa.Column("cat_ex_id", sa.Integer(), nullable=False),
        sa.Column("ticker", sa.String(length=40), nullable=True),
        sa.Column("base", sa.String(length=20), nullable=True),
        sa.Column("quote", sa.String(length=20), nullable=True),
        sa.Column("decimals", sa.Integer(), server_default=sa.text("8"), nullable=False),
        sa.Column("tick_size", sa.Numeric(), nullable=True),
        sa.Column("step_size", sa.Numeric(), nullable=True),
        sa.Column("min_size", sa.Numeric(), nullable=True),
        sa.Column("max_size", sa.Numeric(), nullable=True),
        sa.Column("status", sa.String(length=12), server_default="active", nullable=False),
        sa.Column("updateframe", sa.String(length=4), server_default="1h", nullable=False),
        sa.Column("backtest", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("futures", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("only_ticker", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("row_version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("status IN ('active', 'halted', 'delisted')", name=op.f("ck_symbols_status")),
        sa.CheckConstraint("symbol !~ '[[:lower:][:space:]]' AND symbol <> ''", name=op.f("ck_symbols_symbol")),
        sa.CheckConstraint(
            "tick_size > 0 AND tick_size < 'Infinity' AND step_size > 0 AND step_size < 'Infinity' "
            "AND min_size > 0 AND min_size < 'Infinity' AND max_size > 0 AND max_size < 'Infinity'",
            name=op.f("ck_symbols_rules_are_positive"),
        ),
        sa.CheckConstraint("decimals BETWEEN 0 AND 18", name=op.f("ck_symbols_decimals")),
        sa.ForeignKeyConstraint(
            ["cat_ex_id"],
            ["cat_exchanges.cat_ex_id"],
            name=op.f("fk_symbols_cat_ex_id_cat_exchanges"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("symbol_id", name=op.f("pk_symbols")),
        sa.UniqueConstraint("cat_ex_id", "symbol", name=op.f("uq_symbols_cat_ex_id_symbol")),
        sa.UniqueConstraint("symbol_id", "cat_ex_id", name=op.f("uq_symbols_symbol_id_cat_ex_id")),
    )
    op.create_table(
        "bot_exchanges",
        sa.Column("bot_id", sa.Integer(), nullable=False),
        sa.Column("ex_id", sa.Integer(), nullable=False),
        sa.Column("uid", sa.Integer(), nullable=False),
        sa.Column("trading_currency", sa.String(length=15), nullable=True),
        sa.Column("max_exposure", sa.Numeric(), nullable=True),
        sa.Column("timestamp", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("row_version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "max_exposure >= 0 AND max_exposure < 'Infinity'", name=op.f("ck_bot_exchanges_max_exposure")
        ),
        sa.ForeignKeyConstraint(
            ["bot_id", "uid"],
            ["bots.bot_id", "bots.uid"],
            name=op.f("fk_bot_exchanges_bot_id_uid_bots"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["ex_id", "uid"],
            ["exchanges.ex_id", "exchanges.uid"],
            name=op.f("fk_bot_exchanges_ex_id_uid_exchanges"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("bot_id", "ex_id", name=op.f("pk_bot_exchanges")),
    )
    op.create_index(op.f("ix_bot_exchanges_ex_id"), "bot_exchanges", ["ex_id"], unique=False)
    op.create_table(
        "bot_logs",
        sa.Column("log_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("bot_id", sa.Integer(), nullable=False),
        sa.Column("level", sa.String(length=10), server_default="INFO", nullable=False),
        sa.Column("action", sa.String(length=20), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("feed_num", sa.SmallInteger(), nullable=True),
        sa.Column("ex_id", sa.Integer(), nullable=True),
        sa.Column("symbol", sa.String(length=40), nullable=True),
        sa.Column("position", sa.Numeric(), nullable=True),
        sa.Column("data", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("timestamp", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["bot_id"], ["bots.bot_id"], name=op.f("fk_bot_logs_bot_id_bots"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("log_id", "timestamp", name=op.f("pk_bot_logs")),
        postgresql_partition_by="RANGE (timestamp)",
    )
    op.create_index(
        "ix_bot_logs_newest",
        "bot_logs",
        ["bot_id", sa.literal_column("timestamp DESC"), sa.literal_column("log_id DESC")],
        unique=False,
    )
    op.create_table(
        "orders",
        sa.Column("order_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("ex_order_id", sa.String(length=64), nullable=True),
        sa.Column("client_order_id", sa.Uuid(), nullable=True),
        sa.Column("bot_id", sa.Integer(), nullable=True),
        sa.Column("uid", sa.Integer(), nullable=False),
        sa.Column("ex_id", sa.Integer(), nullable=False),
        sa.Column("cat_ex_id", sa.Integer(), nullable=False),
        sa.Column("symbol_id", sa.Integer(), nullable=False),
        sa.Column("side", sa.String(length=4), nullable=False),
        sa.Column("order_type", sa.String(length=20), nullable=False),
        sa.Column("size", sa.Numeric(), nullable=False),
        sa.Column("price", sa.Numeric(), nullable=True),
        sa.Column("stop_price", sa.Numeric(), nullable=True),
        sa.Column("filled_size", sa.Numeric(), server_default=sa.text("0"), nullable=False),
        sa.Column("avg_fill_price", sa.Numeric(), nullable=True),
        sa.Column("leverage", sa.Numeric(), nullable=True),
        sa.Column("status", sa.String(length=20), server_default="pending", nullable=False),
        sa.Column("reason", sa.String(length=255), nullable=True),
        sa.Column("timestamp", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("row_version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "avg_fill_price >= 0 AND avg_fill_price < 'Infinity'", name=op.f("ck_orders_avg_fill_price")
        ),
        sa.CheckConstraint("filled_size >= 0 AND filled_size < 'Infinity'", name=op.f("ck_orders_filled_size")),
        sa.CheckConstraint("leverage > 0 AND leverage < 'Infinity'", name=op.f("ck_orders_leverage")),
        sa.CheckConstraint(
            "order_type IN ('market', 'limit', 'stop', 'stop_limit', 'take_profit', 'take_profit_limit', "
            "'trailing_stop')",
            name=op.f("ck_orders_order_type"),
        ),
        sa.CheckConstraint("price > 0 AND price < 'Infinity'", name=op.f("ck_orders_price")),
        sa.CheckConstraint("side IN ('buy', 'sell')", name=op.f("ck_orders_side")),
        sa.CheckConstraint("size > 0 AND size < 'Infinity'", name=op.f("ck_orders_size")),
        sa.CheckConstraint(
            "status IN ('pending', 'open', 'partially_filled', 'filled', 'cancelled', 'rejected', 'expired')",
            name=op.f("ck_orders_status"),
        ),
        sa.CheckConstraint("stop_price > 0 AND stop_price < 'Infinity'", name=op.f("ck_orders_stop_price")),
        sa.ForeignKeyConstraint(
            ["bot_id", "uid"],
            ["bots.bot_id", "bots.uid"],
            name=op.f("fk_orders_bot_id_uid_bots"),
            ondelete="SET NULL (bot_id)",
        ),
        sa.ForeignKeyConstraint(
            ["ex_id", "uid", "cat_ex_id"],
            ["exchanges.ex_id", "exchanges.uid", "exchanges.cat_ex_id"],
            name=op.f("fk_orders_ex_id_uid_cat_ex_id_exchanges"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["symbol_id", "cat_ex_id"],
            ["symbols.symbol_id", "symbols.cat_ex_id"],
            name=op.f("fk_orders_symbol_id_cat_ex_id_symbols"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("order_id", name=op.f("pk_orders")),
        sa.UniqueConstraint("client_order_id", name=op.f("uq_orders_client_order_id")),
        sa.UniqueConstraint("order_id", "uid", name=op.f("uq_orders_order_id_uid")),
    )
    op.create_index(
        "ix_orders_newest_of_user",
        "orders",
        ["uid", sa.literal_column("timestamp DESC"), sa.literal_column("order_id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_orders_open_by_bot_id",
        "orders",
        ["bot_id", "timestamp", "order_id"],
        unique=False,
        postgresql_where=sa.text("status IN ('pending', 'open', 'partially_filled')"),
    )
    op.create_index(
        "ix_orders_open_by_ex_id",
        "orders",
        ["ex_id", "timestamp", "order_id"],
        unique=False,
        postgresql_where=sa.text("status IN ('pending', 'open', 'partially_filled')"),
    )
    op.create_index(
        "ix_orders_open_by_uid",
        "orders",
        ["uid", "timestamp", "order_id"],
        unique=False,
        postgresql_where=sa.text("status IN ('pending', 'open', 'partially_filled')"),
    )
    op.create_index("ix_orders_symbol_id", "orders", ["symbol_id", "timestamp"], unique=False)
    op.create_index(
        "uq_orders_ex_id_ex_order_id",
        "orders",
        ["ex_id", "ex_order_id"],
        unique=True,
        postgresql_where=sa.text("ex_order_id IS NOT NULL"),
    )
    op.create_table(
        "trades",
        sa.Column("trade_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("ex_trade_id", sa.String(length=64), nullable=True),
        sa.Column("order_id", sa.BigInteger(), nullable=True),
        sa.Column("ex_order_id", sa.String(length=64), nullable=True),
        sa.Column("bot_id", sa.Integer(), nullable=True),
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
        sa.Column("timestamp", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("row_version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.CheckConstraint("fee > '-Infinity' AND fee < 'Infinity'", name=op.f("ck_trades_fee")),
        sa.CheckConstraint("leverage > 0 AND leverage < 'Infinity'", name=op.f("ck_trades_leverage")),
        sa.CheckConstraint("price > 0 AND price < 'Infinity'", name=op.f("ck_trades_price")),
        sa.CheckConstraint("side IN ('buy', 'sell')", name=op.f("ck_trades_side")),
        sa.CheckConstraint("size > 0 AND size < 'Infinity'", name=op.f("ck_trades_size")),
        sa.ForeignKeyConstraint(
            ["bot_id", "uid"],
            ["bots.bot_id", "bots.uid"],
            name=op.f("fk_trades_bot_id_uid_bots"),
            ondelete="SET NULL (bot_id)",
        ),
        sa.ForeignKeyConstraint(
            ["ex_id", "uid", "cat_ex_id"],
            ["exchanges.ex_id", "exchanges.uid", "exchanges.cat_ex_id"],
            name=op.f("fk_trades_ex_id_uid_cat_ex_id_exchanges"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["order_id", "uid"],
            ["orders.order_id", "orders.uid"],
            name=op.f("fk_trades_order_id_uid_orders"),
            ondelete="SET NULL (order_id)",
        ),
        sa.ForeignKeyConstraint(
            ["symbol_id", "cat_ex_id"],
            ["symbols.symbol_id", "symbols.cat_ex_id"],
            name=op.f("fk_trades_symbol_id_cat_ex_id_symbols"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("trade_id", name=op.f("pk_trades")),
    )
    op.create_index(
        "ix_trades_newest_of_bot",
        "trades",
        ["bot_id", sa.literal_column("timestamp DESC"), sa.literal_column("trade_id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_trades_newest_of_user",
        "trades",
        ["uid", sa.literal_column("timestamp DESC"), sa.literal_column("trade_id DESC")],
        unique=False,
    )
    op.create_index(op.f("ix_trades_order_id"), "trades", ["order_id"], unique=False)
    op.create_index("ix_trades_symbol_id", "trades", ["symbol_id", "timestamp"], unique=False)
    op.create_index(
        "uq_trades_ex_id_ex_trade_id",
        "trades",
        ["ex_id", "ex_trade_id"],
        unique=True,
        postgresql_where=sa.text("ex_trade_id IS NOT NULL"),
    )
    # Where rows go whose partition is not made, or never will be.
    op.execute("CREATE TABLE inbox_p_default PARTITION OF inbox DEFAULT")
    op.execute("CREATE TABLE bot_logs_p_default PARTITION OF bot_logs DEFAULT")
    # Outbox rows live for milliseconds; with the usual settings the table would mostly be their remains.
    op.execute(
        "ALTER TABLE outbox SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, "
        "autovacuum_vacuum_cost_delay = 0)"
    )


def downgrade() -> None:
    for table in (
        "trades",
        "orders",
        "bot_logs",
        "bot_exchanges",
        "symbols",
        "exchanges",
        "cat_exchange_params",
        "bots",
        "users",
        "relay_lease",
        "outbox",
        "inbox",
        "event_streams",
        "dead_letters",
        "cat_exchanges",
    ):
        op.drop_table(table)
