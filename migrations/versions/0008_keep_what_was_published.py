"""Keep of each published event what it was about, so that an audit can compare it with the rows."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Events that wait at this moment were written without: what they are about stays unknown.
    op.add_column(
        "outbox", sa.Column("keys", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False)
    )
    op.add_column(
        "outbox",
        sa.Column("versions", postgresql.ARRAY(sa.Integer()), server_default=sa.text("'{}'"), nullable=False),
    )
    op.create_table(
        "published_events",
        sa.Column("published_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("transaction_id", sa.BigInteger(), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("keys", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("versions", postgresql.ARRAY(sa.Integer()), nullable=False),
        sa.PrimaryKeyConstraint("published_at", "id", name=op.f("pk_published_events")),
        postgresql_partition_by="RANGE (published_at)",
    )
    op.execute("CREATE TABLE published_events_p_default PARTITION OF published_events DEFAULT")
    # 500 ids take a third of the room, and what is moved to the other table stays as it is.
    op.execute(
        """
        DO $$ BEGIN
            ALTER TABLE outbox ALTER COLUMN keys SET COMPRESSION lz4, ALTER COLUMN versions SET COMPRESSION lz4;
        EXCEPTION WHEN feature_not_supported OR invalid_parameter_value THEN
            RAISE NOTICE 'what events are about is compressed by pglz: this PostgreSQL was built without lz4';
        END $$
        """
    )


def downgrade() -> None:
    op.drop_table("published_events")
    op.drop_column("outbox", "versions")
    op.drop_column("outbox", "keys")
