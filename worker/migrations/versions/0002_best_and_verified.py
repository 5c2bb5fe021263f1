"""Which checkpoints were the best so far, and whether a resumed attempt went on as was foretold."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Boolean, Column, false

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("checkpoints", Column("best", Boolean, nullable=False, server_default=false()))
    op.add_column("attempts", Column("resume_verified", Boolean))


def downgrade() -> None:
    op.drop_column("attempts", "resume_verified")
    op.drop_column("checkpoints", "best")
