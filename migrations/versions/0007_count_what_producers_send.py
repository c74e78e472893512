"""Count what producers send, to miss what never arrived."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "producers",
        sa.Column("producer", sa.Uuid(), nullable=False),
        sa.Column("complete_to", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("producer", name=op.f("pk_producers")),
    )
    op.create_table(
        "producer_numbers",
        sa.Column("producer", sa.Uuid(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("producer", "number", name=op.f("pk_producer_numbers")),
    )


def downgrade() -> None:
    op.drop_table("producer_numbers")
    op.drop_table("producers")
