"""The order book's tables. Times are epoch seconds on the database's clock; ids are UUIDs of version 7, as text."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    false,
)

from worker.states import TERMINAL, Desired, State

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


def _words(words: list[str]) -> str:
    return ", ".join(f"'{word}'" for word in sorted(words))


jobs = Table(
    "jobs",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", Text, nullable=False),
    Column("spec", Text, nullable=False),
    Column("spec_sha256", String(64), nullable=False),
    Column("idempotency_key", String(255), unique=True),
    Column("study_id", String(36)),
    Column("priority", Integer, nullable=False),
    Column("device", String(16), nullable=False),
    Column("devices", Integer, nullable=False, server_default="1"),
    Column("state", String(16), nullable=False),
    Column("desired", String(16), nullable=False),
    Column("event_seq", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    # Which message is the valid one, to which pool of workers it went, and from when on there may be another.
    Column("dispatch_seq", Integer, nullable=False),
    Column("dispatched_at", Double),
    Column("pool", String(16)),
    Column("not_before", Double),
    # Who runs the current attempt, under which token, until when.
    Column("attempt", Integer, nullable=False),
    Column("lease_token", String(36), unique=True),
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
    CheckConstraint(f"state IN ({_words(list(State))})", name="state"),
    CheckConstraint(f"desired IN ({_words(list(Desired))})", name="desired"),
    CheckConstraint("(state = 'running') = (lease_token IS NOT NULL)", name="running_has_lease"),
    CheckConstraint(f"(state IN ({_words(list(TERMINAL))})) = (finished_at IS NOT NULL)", name="terminal_has_end"),
    Index("ix_jobs_state_priority_created_at_id", "state", "priority", "created_at", "id"),
    Index("ix_jobs_created_at_id", "created_at", "id"),
    Index("ix_jobs_started_at_created_at", "started_at", "created_at"),
)

labels = Table(
    "labels",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("value", String(200), nullable=False),
    Index("ix_labels_key_value", "key", "value"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("n", Integer, primary_key=True, autoincrement=False),
    Column("worker", String(255), nullable=False),
    Column("started_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("outcome", String(16)),
    Column("reason_code", String(64)),
    Column("reason_detail", Text),
    Column("resumed_from", BigInteger),
    Column("last_step", BigInteger),
    Column("resume_verified", Boolean),
    Index("ix_attempts_outcome_reason_code_n", "outcome", "reason_code", "n"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    Column("attempt", Integer, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("path", Text),
    Column("created_at", Double, nullable=False),
    Column("best", Boolean, nullable=False, server_default=false()),
)

# seq counts within the job and comes out of the job's own row, so it has no gaps and is committed in its order.
job_events = Table(
    "job_events",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("type", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("data", JSON, nullable=False),
)

metrics = Table(
    "metrics",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(260), primary_key=True),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    Column("value", Double, nullable=False),
    sqlite_with_rowid=False,
)

workers = Table(
    "workers",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("pool", String(16), nullable=False),
    Column("device", String(64), nullable=False),
    Column("seen_at", Double),
)

schedulers = Table(
    "schedulers",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("seen_at", Double, nullable=False),
)
