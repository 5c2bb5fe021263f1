"""The job that a path names."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Path

from api.laboratory import Lab
from api.problems import Refused
from worker.book import Job


def _known(job_id: Annotated[UUID, Path(description="The job's id.")], laboratory: Lab) -> Job:
    job = laboratory.book.job(str(job_id))
    if job is None:
        raise Refused("unknown-job", f"there is no job {job_id}; GET /v1/jobs lists those that there are")
    return job


KnownJob = Annotated[Job, Depends(_known)]
"""A route's parameter of this type is the job that its path names; 404 where there is none."""
