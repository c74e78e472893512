"""Keep credentials and params of accounts, and find users."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_SEARCHED_TEXT = (
    "lower(name || ' ' || lastname || ' ' || mail || ' ' || coalesce(external_id, '') || ' ' || phone "
    "|| ' ' || id_num)"
)


def upgrade() -> None:
    op.add_column(
        "exchanges", sa.Column("has_credentials", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.create_table(
        "exchange_params",
        sa.Column("ex_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["ex_id"], ["exchanges.ex_id"], name=op.f("fk_exchange_params_ex_id_exchanges"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("ex_id", "name", name=op.f("pk_exchange_params")),
    )
    op.create_table(
        "exchange_credentials",
        sa.Column("ex_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("uid", sa.Integer(), nullable=False),
        sa.Column("api_key", sa.Text(), nullable=True),
        sa.Column("api_secret", sa.Text(), nullable=True),
        sa.Column("passphrase", sa.Text(), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "num_nonnulls(api_key, api_secret, passphrase) > 0", name=op.f("ck_exchange_credentials_holds_something")
        ),
        sa.ForeignKeyConstraint(
            ["ex_id", "uid"],
            ["exchanges.ex_id", "exchanges.uid"],
            name=op.f("fk_exchange_credentials_ex_id_uid_exchanges"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("ex_id", name=op.f("pk_exchange_credentials")),
    )
    op.create_index("ix_exchanges_active", "exchanges", ["ex_id"], postgresql_where=sa.text("active"))
    op.drop_index("ix_users_manager", table_name="users")
    op.create_index("ix_users_manager", "users", ["manager", "uid"])
    op.create_index("ix_users_active", "users", ["uid"], postgresql_where=sa.text("active"))
    # Searching works without it, only slower: not every PostgreSQL has the extension or lets its owner install it.
    op.execute(
        f"""
        DO $$ BEGIN
            CREATE EXTENSION IF NOT EXISTS pg_trgm;
            CREATE INDEX ix_users_search ON users USING gin ({_SEARCHED_TEXT} gin_trgm_ops);
        EXCEPTION WHEN insufficient_privilege OR undefined_file OR feature_not_supported THEN
            RAISE NOTICE 'users are searched without an index: pg_trgm cannot be installed';
        END $$
        """
    )


def downgrade() -> None:
    op.execute("DROP INDEX IF EXISTS ix_users_search")
    op.drop_index("ix_users_active", table_name="users")
    op.drop_index("ix_users_manager", table_name="users")
    op.create_index("ix_users_manager", "users", ["manager"])
    op.drop_index("ix_exchanges_active", table_name="exchanges")
    op.drop_table("exchange_credentials")
    op.drop_table("exchange_params")
    op.drop_column("exchanges", "has_credentials")
