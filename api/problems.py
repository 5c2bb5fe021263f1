"""Problems: every refusal becomes an RFC 9457 document here.

A route raises `Refused(code, detail)` and knows nothing of how that looks on the wire.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match

from api.mistakes import mistakes_in
from api.problem_types import PROBLEM_TYPES
from api.views import Mistake, Problem
from worker.book import BookUnavailable

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 2
MAX_ERRORS = 20
"""A body of 256 KiB can hold ten thousand mistakes; nobody reads more than these."""


class Refused(HTTPException):
    """A request is refused: the code of a problem type, a sentence on this occasion, and the single mistakes.

    Example:
        >>> refusal = Refused("unknown-job", "there is no job 42")
        >>> refusal.status_code, refusal.detail
        (404, 'there is no job 42')
    """

    def __init__(
        self, code: str, detail: str, *, errors: Sequence[Mistake] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(PROBLEM_TYPES[code].status, detail, headers)
        self.code = code
        self.errors = tuple(errors[:MAX_ERRORS])


class ProblemResponse(JSONResponse):
    """`application/problem+json`, escaped to ASCII, so that whatever text a request held can be quoted."""

    media_type = "application/problem+json"

    def render(self, content: Any) -> bytes:
        """The document as bytes."""
        return json.dumps(content, allow_nan=False).encode("ascii")


def refuse(code: str, errors: Sequence[Mistake]) -> Refused:
    """A refusal for one or more mistakes; its detail is the first of them, and how many there are."""
    first = errors[0].detail
    detail = first if len(errors) == 1 else f"{len(errors)} things are wrong with the request; the first: {first}"
    return Refused(code, detail, errors=errors)


def document(refusal: Refused, instance: str) -> dict[str, Any]:
    """The problem document of a refusal."""
    kind = PROBLEM_TYPES[refusal.code]
    view = Problem(
        type=kind.uri,
        title=kind.title,
        status=kind.status,
        detail=refusal.detail,
        instance=instance,
        errors=list(refusal.errors) or None,
    )
    return view.model_dump(exclude_none=True)


def documented(*codes: str, examples: Mapping[str, dict[str, Any]] | None = None) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that refuses with these codes; `examples` are OpenAPI's, by name."""
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in (PROBLEM_TYPES[code] for code in codes):
        content: dict[str, Any] = {"schema": {"$ref": "#/components/schemas/Problem"}}
        shown = {name: one for name, one in (examples or {}).items() if one["value"]["status"] == kind.status}
        if shown:
            content["examples"] = shown
        entry = responses.setdefault(kind.status, {"description": "", "content": {ProblemResponse.media_type: content}})
        entry["description"] += f"{'; or ' if entry['description'] else ''}{kind.title} (`{kind.uri}`)"
    return responses


def install(app: FastAPI) -> None:
    """Make every error of an app a problem document."""
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(BookUnavailable, _on_unavailable)
    app.add_exception_handler(Exception, _on_bug)


def _respond(request: Request, refusal: Refused) -> ProblemResponse:
    return ProblemResponse(document(refusal, request.url.path), refusal.status_code, refusal.headers)


async def _on_http_exception(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error, Refused):
        return _respond(request, error)
    path = request.url.path
    if error.status_code == 404:
        return _respond(request, Refused("not-found", f"there is nothing at {path}; /docs lists the addresses"))
    if error.status_code == 405:
        allowed = ", ".join(_methods(request))
        detail = f"{path} does not take {request.method[:20]}; it takes {allowed}"
        return _respond(request, Refused("method-not-allowed", detail, headers={"Allow": allowed}))
    return _respond(request, Refused("bad-request", f"the request cannot be read: {error.detail}"))


def _methods(request: Request) -> list[str]:
    """The methods that an address takes. Starlette's own Allow knows only those of the first route that matches."""
    return [
        method
        for method in ("GET", "HEAD", "POST")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]


async def _on_invalid_request(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, RequestValidationError)
    mistakes = mistakes_in(error.errors())
    code = "invalid-parameter" if all(mistake.parameter for mistake in mistakes) else "invalid-spec"
    return _respond(request, refuse(code, mistakes))


async def _on_unavailable(request: Request, error: Exception) -> ProblemResponse:
    # The sentence names the database's address, which is for the log.
    logger.warning("%s", error)
    detail = f"the order book does not answer; try again in {RETRY_AFTER_S} s"
    return _respond(request, Refused("unavailable", detail, headers={"Retry-After": str(RETRY_AFTER_S)}))


async def _on_bug(request: Request, _error: Exception) -> ProblemResponse:
    return _respond(request, Refused("internal-error", "the laboratory failed at this request; its log says why"))
