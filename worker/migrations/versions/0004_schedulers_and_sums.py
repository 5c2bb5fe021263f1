"""Which schedulers are at work, and two indexes that the laboratory's figures are summed up from."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Double, String

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "schedulers",
        Column("name", String(255), nullable=False, primary_key=True),
        Column("seen_at", Double(), nullable=False),
    )
    op.create_index("ix_jobs_started_at_created_at", "jobs", ["started_at", "created_at"])
    op.create_index("ix_attempts_outcome_reason_code_n", "attempts", ["outcome", "reason_code", "n"])


def downgrade() -> None:
    op.drop_index("ix_attempts_outcome_reason_code_n", "attempts")
    op.drop_index("ix_jobs_started_at_created_at", "jobs")
    op.drop_table("schedulers")
