"""How many devices a job asks for, so that it waits for a worker that has them."""

from __future__ import annotations

import json

from alembic import op
from sqlalchemy import Column, Integer, column, select, table, update

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", Column("devices", Integer, nullable=False, server_default="1"))
    jobs = table("jobs", column("id"), column("spec"), column("devices"))
    connection = op.get_bind()
    for row in connection.execute(select(jobs.c.id, jobs.c.spec).where(jobs.c.spec.like('%"devices"%'))).all():
        devices = json.loads(row.spec).get("devices", 1)
        if devices != 1:
            connection.execute(update(jobs).where(jobs.c.id == row.id).values(devices=devices))


def downgrade() -> None:
    op.drop_column("jobs", "devices")
