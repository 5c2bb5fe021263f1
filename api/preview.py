"""POST /v1/jobs/preview: what a job would be, or every reason why it cannot be built. Nothing is stored."""

from __future__ import annotations

from fastapi import APIRouter

from api.examples import refusal_examples
from api.order import ORDER_PROBLEMS, BuildableOrder
from api.problems import documented
from api.strict_json import StrictRoute
from api.views import PreviewView

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)


@router.post(
    "/preview",
    operation_id="preview_job",
    summary="Preview a job",
    responses=documented(*ORDER_PROBLEMS, "unavailable", examples=refusal_examples("/v1/jobs/preview")),
)
async def preview_job(order: BuildableOrder) -> PreviewView:
    """Size and cost of a job, or the reasons why it cannot be built. Nothing is stored.

    Takes the same body as POST /v1/jobs and refuses it in the same words. Asks the order book only where a probe names
    another job.
    """
    preview = order.preview
    return PreviewView(
        name=order.spec.name,
        spec=order.spec,
        num_parameters=preview.num_parameters,
        flops_per_step=preview.flops_per_step,
        memory_mib=preview.memory_mib,
        num_steps=preview.num_steps,
        steps_per_epoch=preview.steps_per_epoch,
    )
