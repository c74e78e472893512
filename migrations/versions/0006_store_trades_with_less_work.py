"""Store trades with less work, and keep what each user's trades add up to."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_SUMS = """sum(sign), sum(sign * size), sum(sign * price), sum(sign * cost),
    coalesce(sum(sign * cost) FILTER (WHERE side = 'buy'), 0),
    coalesce(sum(sign * cost) FILTER (WHERE side = 'sell'), 0)"""

_TRIGGERS = {
    "INSERT": "NEW TABLE AS added",
    "UPDATE": "NEW TABLE AS added OLD TABLE AS removed",
    "DELETE": "OLD TABLE AS removed",
}

# A user's totals are in up to 16 rows, one for each of some connections, so that two instances that store trades of
# one user at the same time need not wait for each other. In the order of users, so that they cannot wait in a circle.
# When a user goes, trades and totals go with it, in whatever order.
_COUNTED = {
    "INSERT": "SELECT 1 AS sign, added.* FROM added",
    "UPDATE": "SELECT 1 AS sign, added.* FROM added UNION ALL SELECT -1, removed.* FROM removed",
    "DELETE": "SELECT -1 AS sign, removed.* FROM removed",
}


def _count(event: str) -> str:
    # Most updates only link a trade with its order.
    is_changed = "HAVING (sum(sign * size), sum(sign * price), sum(sign * cost)) <> (0, 0, 0) "
    is_changed += "OR sum(sign * cost) FILTER (WHERE side = 'buy') <> 0"
    return f"""
        CREATE FUNCTION count_trades_on_{event.lower()}() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO trade_totals AS kept
            SELECT uid, pg_backend_pid() % 16, {_SUMS}
            FROM ({_COUNTED[event]}) AS changed
            WHERE EXISTS (SELECT FROM users WHERE users.uid = changed.uid)
            GROUP BY uid
            {is_changed if event == "UPDATE" else ""}
            ORDER BY uid
            ON CONFLICT (uid, part) DO UPDATE SET
                trades = kept.trades + excluded.trades, size = kept.size + excluded.size,
                price = kept.price + excluded.price, cost = kept.cost + excluded.cost,
                bought = kept.bought + excluded.bought, sold = kept.sold + excluded.sold;
            RETURN NULL;
        END $$
    """  # noqa: S608 - put together from what stands above


def upgrade() -> None:
    op.drop_index("ix_trades_order_id", table_name="trades")
    op.create_index(
        "ix_trades_of_order", "trades", ["order_id"], unique=False, postgresql_where=sa.text("order_id IS NOT NULL")
    )
    # An event of 500 trades is compressed in a tenth of the time, where PostgreSQL was built with it.
    op.execute(
        """
        DO $$ BEGIN
            ALTER TABLE outbox ALTER COLUMN changes SET COMPRESSION lz4;
        EXCEPTION WHEN feature_not_supported OR invalid_parameter_value THEN
            RAISE NOTICE 'events are compressed by pglz: this PostgreSQL was built without lz4';
        END $$
        """
    )
    op.create_table(
        "trade_totals",
        sa.Column("uid", sa.Integer(), nullable=False),
        sa.Column("part", sa.SmallInteger(), nullable=False),
        sa.Column("trades", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.Numeric(), nullable=False) for name in ("size", "price", "cost", "bought", "sold")),
        sa.ForeignKeyConstraint(["uid"], ["users.uid"], name=op.f("fk_trade_totals_uid_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("uid", "part", name=op.f("pk_trade_totals")),
        postgresql_with={"fillfactor": 50},
    )
    op.execute(
        f"INSERT INTO trade_totals SELECT uid, 0, {_SUMS} FROM (SELECT 1 AS sign, * FROM trades) t GROUP BY uid"  # noqa: S608
    )
    for event, tables in _TRIGGERS.items():
        op.execute(_count(event))
        op.execute(
            f"CREATE TRIGGER trades_counted_on_{event.lower()} AFTER {event} ON trades REFERENCING {tables} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION count_trades_on_{event.lower()}()"
        )


def downgrade() -> None:
    for event in _TRIGGERS:
        op.execute(f"DROP TRIGGER trades_counted_on_{event.lower()} ON trades")
        op.execute(f"DROP FUNCTION count_trades_on_{event.lower()}")
    op.drop_table("trade_totals")
    op.execute("ALTER TABLE outbox ALTER COLUMN changes SET COMPRESSION DEFAULT")
    op.drop_index("ix_trades_of_order", table_name="trades", postgresql_where=sa.text("order_id IS NOT NULL"))
    op.create_index(op.f("ix_trades_order_id"), "trades", ["order_id"], unique=False)
