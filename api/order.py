"""An order: the body of a request that names a job, previewed before anything is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Body, Depends
from starlette.concurrency import run_in_threadpool

from api.examples import request_examples
from api.laboratory import Lab
from api.named_jobs import mistakes_of_named_jobs
from api.problems import refuse
from api.views import Mistake
from normcore.spec import JobSpec

if TYPE_CHECKING:
    from normcore.preview import Preview

ORDER_PROBLEMS = (
    "malformed-json",
    "body-too-large",
    "unsupported-media-type",
    "invalid-spec",
    "invalid-parameter",
    "unbuildable",
)
"""What an order may be refused with, before it reaches the book."""


@dataclass(frozen=True, slots=True)
class Order:
    """A job that can be built, and its preview."""

    spec: JobSpec
    preview: Preview


async def _previewed(spec: Annotated[JobSpec, Body(openapi_examples=request_examples())], laboratory: Lab) -> Order:
    preview = await laboratory.previewer.preview(spec)
    mistakes = [
        Mistake(code=reason.code, detail=reason.detail, pointer=reason.pointer, layer=reason.layer)
        for reason in preview.reasons
    ]
    # Of data that could not be measured there is nothing to compare.
    if preview.spec.named_jobs and preview.num_steps:
        mistakes += await run_in_threadpool(mistakes_of_named_jobs, preview.spec, laboratory.book)
    if mistakes:
        raise refuse("unbuildable", mistakes)
    return Order(preview.spec, preview)


BuildableOrder = Annotated[Order, Depends(_previewed)]
"""A route's parameter of this type is its body, which can be built; a job that cannot be built is refused."""
