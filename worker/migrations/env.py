"""What Alembic runs: the steps on the connection that `worker.migrate` hands over, in its transaction."""

from __future__ import annotations

from alembic import context

from worker.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    compare_type=True,
)
context.run_migrations()
