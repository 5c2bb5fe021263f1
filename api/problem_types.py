"""The types of problems: the code that a `type` ends in, its HTTP status, its title, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One kind of refusal, the same on every occasion.

    Example:
        >>> PROBLEM_TYPES["unbuildable"].uri, PROBLEM_TYPES["unbuildable"].status
        ('/problems/unbuildable', 422)
    """

    code: str
    status: int
    title: str
    remedy: str

    @property
    def uri(self) -> str:
        """The `type` of the documents; a GET on it shows this entry."""
        return f"/problems/{self.code}"


_ALL = (
    ProblemType(
        "malformed-json",
        400,
        "The body is not JSON",
        "Send one JSON value in UTF-8 as RFC 8259 has it: no NaN or Infinity, no key twice, no integer beyond 64 bits, "
        "no NUL character, at most 32 levels deep.",
    ),
    ProblemType("bad-request", 400, "The request cannot be read", "Send it again, whole."),
    ProblemType(
        "not-found",
        404,
        "There is nothing at this address",
        "The addresses stand at /docs and in /openapi.json; the id of a job is a UUID.",
    ),
    ProblemType(
        "unknown-job",
        404,
        "There is no such job",
        "GET /v1/jobs lists the jobs of this laboratory; the job may have been ordered from another one.",
    ),
    ProblemType(
        "method-not-allowed",
        405,
        "This address does not take this method",
        "The Allow header names the methods that it takes.",
    ),
    ProblemType(
        "already-ended",
        409,
        "The job has already ended",
        "A job that succeeded, diverged or failed cannot be cancelled; there is nothing left to stop.",
    ),
    ProblemType(
        "body-too-large",
        413,
        "The body is too large",
        "A body may have 256 KiB; a job needs about one.",
    ),
    ProblemType(
        "unsupported-media-type",
        415,
        "The body is not declared as JSON",
        "Send the header `Content-Type: application/json`.",
    ),
    ProblemType(
        "invalid-spec",
        422,
        "The job is not one that the menu allows",
        "`errors` names each field by its JSON pointer and says what it may be; GET /v1/catalog is the menu, with "
        "every default and bound.",
    ),
    ProblemType(
        "invalid-parameter",
        422,
        "A parameter or header has a value that it cannot have",
        "`errors` names each parameter and says what it may be.",
    ),
    ProblemType(
        "unbuildable",
        422,
        "The job cannot be built",
        "Every part is on the menu, but they do not go together or cannot be had here; `errors` names the layer, both "
        "values and the remedy. POST /v1/jobs/preview asks without ordering.",
    ),
    ProblemType(
        "idempotency-conflict",
        422,
        "This Idempotency-Key already stands for another job",
        "Send the body that the key was first used with, or order the new job under a new key.",
    ),
    ProblemType(
        "internal-error",
        500,
        "The laboratory failed",
        "This is a bug, and the log of the API holds its traceback. GET /v1/jobs shows whether a job was stored.",
    ),
    ProblemType(
        "unavailable",
        503,
        "The order book cannot be reached",
        "Send the same request again after the seconds that Retry-After names; with an Idempotency-Key no job is "
        "ordered twice.",
    ),
)

PROBLEM_TYPES = {entry.code: entry for entry in _ALL}
