"""Run jobs, lease them to one instance at a time, and keep partitions and old rows in hand."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# Message ids of version 7 begin with their time; these are the first ones of 2026 and of 2050. Ids of other versions
# are spread evenly, so nearly all of them lie outside. They get partitions of their own, because whatever is in the
# default one is read each time a partition is attached.
_FIRST = "019b76da-a800-0000-0000-000000000000"
_LAST = "024bce5c-f000-0000-0000-000000000000"


def upgrade() -> None:
    op.rename_table("relay_lease", "leases")
    op.execute("ALTER INDEX pk_relay_lease RENAME TO pk_leases")
    op.create_table(
        "job_runs",
        sa.Column("run_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("job", sa.String(length=20), nullable=False),
        sa.Column("recurs", sa.Boolean(), nullable=False),
        sa.Column("message_id", sa.Uuid(), nullable=True),
        sa.Column(
            "parameters", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False
        ),
        sa.Column("due_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("progress", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("succeeded_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("rows", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_job_runs")),
    )
    op.create_index(op.f("ix_job_runs_due_at"), "job_runs", ["due_at"], unique=False)
    op.create_index("uq_job_runs_recurring", "job_runs", ["job"], unique=True, postgresql_where=sa.text("recurs"))
    op.create_index(
        "ix_dead_letters_resolved",
        "dead_letters",
        ["resolved_at"],
        unique=False,
        postgresql_where=sa.text("state <> 'open'"),
    )
    # Written all day and seldom asked for, in the order in which they come: a few bytes for many pages.
    op.create_index(
        "ix_orders_timestamp",
        "orders",
        ["timestamp"],
        unique=False,
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 32, "autosummarize": True},
    )
    op.execute("ALTER TABLE inbox DETACH PARTITION inbox_p_default")
    op.execute("ALTER TABLE inbox_p_default RENAME TO inbox_before")
    op.execute(f"CREATE TABLE inbox_p_low PARTITION OF inbox FOR VALUES FROM (MINVALUE) TO ('{_FIRST}')")
    op.execute(f"CREATE TABLE inbox_p_high PARTITION OF inbox FOR VALUES FROM ('{_LAST}') TO (MAXVALUE)")
    op.execute("CREATE TABLE inbox_p_default PARTITION OF inbox DEFAULT")
    op.execute("INSERT INTO inbox SELECT * FROM inbox_before")
    op.execute("DROP TABLE inbox_before")
    # What is in these partitions is told old by a column that they are not partitioned by, or not only.
    for partition, column in (
        ("inbox_p_low", "received_at"),
        ("inbox_p_high", "received_at"),
        ("inbox_p_default", "received_at"),
        ("bot_logs_p_default", "timestamp"),
        ("ticks_p_default", "timestamp"),
    ):
        op.create_index(f"ix_{partition}_{column}", partition, [column], unique=False)


def downgrade() -> None:
    for partition in ("bot_logs_p_default", "ticks_p_default"):
        op.drop_index(f"ix_{partition}_timestamp", partition)
    op.drop_index("ix_inbox_p_default_received_at", "inbox_p_default")
    for partition in ("inbox_p_low", "inbox_p_high"):
        op.execute(f"ALTER TABLE inbox DETACH PARTITION {partition}")
        op.execute(f"INSERT INTO inbox SELECT * FROM {partition}")  # noqa: S608 - of two names
        op.execute(f"DROP TABLE {partition}")
    op.drop_index("ix_orders_timestamp", "orders")
    op.drop_index("ix_dead_letters_resolved", "dead_letters")
    op.drop_table("job_runs")
    op.execute("ALTER INDEX pk_leases RENAME TO pk_relay_lease")
    op.rename_table("leases", "relay_lease")
