"""What FastAPI cannot know of the OpenAPI document: problems, the data of events, and where `kind` must be given."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from api.catalog import require_kinds
from api.views import EventView, Problem, ProgressEventView

DESCRIPTION = """A laboratory for normalization in deep networks, run as a service: order, watch and compare trainings.

Bodies are strict JSON (RFC 8259). Every refusal is an `application/problem+json` document (RFC 9457) whose `type` can
be looked up here, and nothing is stored of a request that was refused."""

TAGS = [
    {"name": "jobs", "description": "Trainings: order, preview, watch, cancel."},
    {"name": "catalog", "description": "What a job can be made of."},
    {"name": "health", "description": "Whether the laboratory lives and works."},
    {"name": "documentation", "description": "For people."},
]


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """The document with what is missing; completing it again changes nothing."""
    schemas = document["components"]["schemas"]
    _, shapes = models_json_schema(
        [(view, "serialization") for view in (Problem, EventView, ProgressEventView)],
        ref_template="#/components/schemas/{model}",
    )
    schemas.update(shapes["$defs"])
    require_kinds(schemas["JobSpec"], schemas)
    return document
