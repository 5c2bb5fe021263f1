"""The first tables: jobs, labels, attempts, checkpoints, events, metrics, workers."""

from __future__ import annotations

from alembic import op
from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKeyConstraint,
    Integer,
    PrimaryKeyConstraint,
    String,
    Text,
    UniqueConstraint,
)

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        Column("id", String(36), nullable=False),
        Column("name", Text, nullable=False),
        Column("spec", Text, nullable=False),
        Column("spec_sha256", String(64), nullable=False),
        Column("idempotency_key", String(255)),
        Column("study_id", String(36)),
        Column("priority", Integer, nullable=False),
        Column("device", String(16), nullable=False),
        Column("state", String(16), nullable=False),
        Column("desired", String(16), nullable=False),
        Column("event_seq", Integer, nullable=False),
        Column("created_at", Double, nullable=False),
        Column("started_at", Double),
        Column("finished_at", Double),
        Column("dispatch_seq", Integer, nullable=False),
        Column("dispatched_at", Double),
        Column("pool", String(16)),
        Column("not_before", Double),
        Column("attempt", Integer, nullable=False),
        Column("lease_token", String(36)),
        Column("lease_owner", String(255)),
        Column("lease_expires_at", Double),
        Column("infra_retries", Integer, nullable=False),
        Column("num_steps", BigInteger, nullable=False),
        Column("progress_step", BigInteger, nullable=False),
        Column("epoch", Double, nullable=False),
        Column("steps_per_s", Double),
        Column("last_metrics", JSON, nullable=False),
        Column("reason_code", String(64)),
        Column("reason_detail", Text),
        Column("mlflow_run_id", String(64)),
        Column("mlflow_experiment_id", String(64)),
        PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        UniqueConstraint("idempotency_key", name=op.f("uq_jobs_idempotency_key")),
        UniqueConstraint("lease_token", name=op.f("uq_jobs_lease_token")),
        CheckConstraint(
            "state IN ('cancelled', 'dispatched', 'diverged', 'failed', 'paused', 'queued', 'running', 'succeeded')",
            name=op.f("ck_jobs_state"),
        ),
        CheckConstraint("desired IN ('cancel', 'kill', 'pause', 'run')", name=op.f("ck_jobs_desired")),
        CheckConstraint("(state = 'running') = (lease_token IS NOT NULL)", name=op.f("ck_jobs_running_has_lease")),
        CheckConstraint(
            "(state IN ('cancelled', 'diverged', 'failed', 'succeeded')) = (finished_at IS NOT NULL)",
            name=op.f("ck_jobs_terminal_has_end"),
        ),
    )
    op.create_index("ix_jobs_state_priority_created_at_id", "jobs", ["state", "priority", "created_at", "id"])
    op.create_index("ix_jobs_created_at_id", "jobs", ["created_at", "id"])
    op.create_table(
        "labels",
        Column("job_id", String(36), nullable=False),
        Column("key", String(64), nullable=False),
        Column("value", String(200), nullable=False),
        PrimaryKeyConstraint("job_id", "key", name=op.f("pk_labels")),
        ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_labels_job_id_jobs"), ondelete="CASCADE"),
    )
    op.create_index("ix_labels_key_value", "labels", ["key", "value"])
    op.create_table(
        "attempts",
        Column("job_id", String(36), nullable=False),
        Column("n", Integer, autoincrement=False, nullable=False),
        Column("worker", String(255), nullable=False),
        Column("started_at", Double, nullable=False),
        Column("ended_at", Double),
        Column("outcome", String(16)),
        Column("reason_code", String(64)),
        Column("reason_detail", Text),
        Column("resumed_from", BigInteger),
        Column("last_step", BigInteger),
        PrimaryKeyConstraint("job_id", "n", name=op.f("pk_attempts")),
        ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_attempts_job_id_jobs"), ondelete="CASCADE"),
    )
    op.create_table(
        "checkpoints",
        Column("job_id", String(36), nullable=False),
        Column("step", BigInteger, autoincrement=False, nullable=False),
        Column("attempt", Integer, nullable=False),
        Column("kind", String(16), nullable=False),
        Column("sha256", String(64), nullable=False),
        Column("bytes", BigInteger, nullable=False),
        Column("path", Text),
        Column("created_at", Double, nullable=False),
        PrimaryKeyConstraint("job_id", "step", name=op.f("pk_checkpoints")),
        ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_checkpoints_job_id_jobs"), ondelete="CASCADE"),
    )
    op.create_table(
        "job_events",
        Column("job_id", String(36), nullable=False),
        Column("seq", Integer, autoincrement=False, nullable=False),
        Column("at", Double, nullable=False),
        Column("type", String(16), nullable=False),
        Column("state", String(16), nullable=False),
        Column("data", JSON, nullable=False),
        PrimaryKeyConstraint("job_id", "seq", name=op.f("pk_job_events")),
        ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_events_job_id_jobs"), ondelete="CASCADE"),
    )
    op.create_table(
        "metrics",
        Column("job_id", String(36), nullable=False),
        Column("key", String(260), nullable=False),
        Column("step", BigInteger, autoincrement=False, nullable=False),
        Column("value", Double, nullable=False),
        PrimaryKeyConstraint("job_id", "key", "step", name=op.f("pk_metrics")),
        ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_metrics_job_id_jobs"), ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "workers",
        Column("name", String(255), nullable=False),
        Column("pool", String(16), nullable=False),
        Column("device", String(64), nullable=False),
        Column("seen_at", Double),
        PrimaryKeyConstraint("name", name=op.f("pk_workers")),
    )


def downgrade() -> None:
    for table in ("workers", "metrics", "job_events", "checkpoints", "attempts", "labels", "jobs"):
        op.drop_table(table)
