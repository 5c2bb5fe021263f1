"""What stands after the question mark: strict, like a body. A parameter that is not known is refused, not ignored."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from worker.states import State

MAX_INTEGER = 2**63 - 1
"""The largest integer that a database column holds."""


def _label(text: str) -> str:
    key, colon, _ = text.partition(":")
    if not (key and colon) or "\0" in text:
        raise ValueError(f"label must be key:value, got {text[:40]!r}")
    return text


def _key(text: str) -> str:
    if "\0" in text:
        raise ValueError("key must be the name of a curve, got one with a NUL character")
    return text


def _metric_cursor(text: str) -> str:
    step, _, key = text.partition(":")
    if not (step.isascii() and step.isdigit() and len(step) < 19 and key) or "\0" in key:
        raise ValueError(f"a cursor must come from a page's `next`, got {text[:40]!r}; start without one")
    return text


class Parameters(BaseModel):
    """The query parameters of a route."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class SubmitParameters(Parameters):
    """Of POST /v1/jobs."""

    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Jobs of a higher priority are dispatched first; among equals, the older."""


class ListParameters(Parameters):
    """Of GET /v1/jobs."""

    state: list[State] = []
    """In any of these states."""
    label: list[Annotated[str, AfterValidator(_label)]] = []
    """With all of these labels, each `key:value`."""
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    cursor: Annotated[str, Field(max_length=300)] | None = None
    """`next` of the page before."""


class MetricParameters(Parameters):
    """Of GET /v1/jobs/{job_id}/metrics."""

    key: Annotated[str, AfterValidator(_key)] | None = None
    """Only this curve; all of them when not given."""
    after_step: Annotated[int, Field(ge=0, le=MAX_INTEGER)] | None = None
    """Only points after this step."""
    limit: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    cursor: Annotated[str, AfterValidator(_metric_cursor)] | None = None
    """`next` of the page before."""
