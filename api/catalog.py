"""GET /v1/catalog: the menu, with the JSON schema of every part."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from fastapi import APIRouter

from api.views import CatalogView, PartView
from normcore.menu.spec import Spec
from normcore.spec import MENU, JobSpec, kind_of

router = APIRouter(prefix="/v1", tags=["catalog"])


@router.get("/catalog", operation_id="get_catalog", summary="The menu")
async def get_catalog() -> CatalogView:
    """Every part that a job can be made of, by family, and the schema of a whole job.

    The schemas hold each knob's meaning, type, default and bounds.
    """
    return catalog()


@cache
def catalog() -> CatalogView:
    """The menu as it stands in `normcore.spec`.

    Example:
        >>> [part.kind for part in catalog().families["optimizer"]]
        ['sgd', 'adamw', 'muon']
    """
    families = {family: [_part(spec) for spec in parts] for family, parts in MENU.items()}
    job = JobSpec.model_json_schema()
    require_kinds(job, job["$defs"])
    return CatalogView(families=families, job=job)


def _part(spec: type[Spec]) -> PartView:
    summary = " ".join((inspect.getdoc(spec) or "").partition("\n\n")[0].split())
    return PartView(kind=kind_of(spec), summary=summary, json_schema=spec.model_json_schema())


def require_kinds(job: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Say in a job's schema that `kind` is required where it chooses among parts: pydantic demands it silently."""
    for field in job["properties"].values():
        for reference in field.get("discriminator", {}).get("mapping", {}).values():
            part = definitions[reference.rpartition("/")[2]]
            part["required"] = sorted({"kind", *part.get("required", ())})
