"""Pages for people: the API at a glance at /docs, and what each problem type means. They need no other host."""

from __future__ import annotations

from html import escape
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse

from api.problem_types import PROBLEM_TYPES
from api.problems import Refused, documented

router = APIRouter(tags=["documentation"])

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font: 14px/1.5 ui-monospace, monospace }
pre { padding: 1rem; overflow: auto; border: 1px solid #8886 }
h3 { margin: 2rem 0 0 }
td { padding: .1rem 1rem .1rem 0; vertical-align: top }
"""

_FIRST_JOB = """curl --json '{"model": {"kind": "vgg", "width": 0.25}, "data": {"kind": "digits"}}' %sv1/jobs"""


@router.get("/", include_in_schema=False)
async def root() -> RedirectResponse:
    """To the page for people."""
    return RedirectResponse("/docs")


@router.get("/docs", include_in_schema=False, response_class=HTMLResponse)
async def docs(request: Request) -> str:
    """Every address with its parameters and answers, made from the OpenAPI document."""
    document = request.app.openapi()
    operations = "".join(
        _operation(path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    problems = "".join(
        f'<tr><td><a href="{kind.uri}"><code>{kind.code}</code></a></td><td>{kind.status}</td>'
        f"<td>{escape(kind.title)}</td></tr>"
        for kind in PROBLEM_TYPES.values()
    )
    title = escape(document["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title} {escape(document['info']['version'])}</h1>"
        f"{_paragraphs(document['info']['description'])}"
        f"<pre>{escape(_FIRST_JOB % request.base_url)}</pre>"
        '<p><a href="/v1/catalog">The menu</a>, <a href="/v1/jobs">the jobs</a>, '
        '<a href="/openapi.json">the OpenAPI document</a>.</p>'
        f"<h2>Addresses</h2>{operations}<h2>Problems</h2><table>{problems}</table></html>"
    )


@router.get(
    "/problems/{code}",
    operation_id="describe_problem",
    summary="What a problem type means",
    response_class=PlainTextResponse,
    responses=documented("not-found", "invalid-parameter"),
)
async def describe_problem(code: str) -> str:
    """A problem type in plain text: its title, its status, and what to do about it."""
    kind = PROBLEM_TYPES.get(code)
    if kind is None:
        raise Refused("not-found", f"there is no problem type {code[:40]}; there are {', '.join(PROBLEM_TYPES)}")
    return f"{kind.title}\n{kind.code}: {kind.status} {HTTPStatus(kind.status).phrase}\n\n{kind.remedy}\n"


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    parameters = "".join(
        f"<tr><td><code>{escape(parameter['name'])}</code></td><td>{parameter['in']}</td>"
        f"<td>{escape(parameter.get('description', ''))}</td></tr>"
        for parameter in operation.get("parameters", ())
    )
    answers = "".join(
        f"<tr><td>{status}</td><td>{escape(answer['description'])}</td></tr>"
        for status, answer in operation["responses"].items()
    )
    return (
        f'<h3 id="{operation["operationId"]}"><code>{method.upper()} {escape(path)}</code></h3>'
        f"{_paragraphs(operation.get('description', ''))}<table>{parameters}</table><table>{answers}</table>"
    )


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{escape(paragraph)}</p>" for paragraph in text.split("\n\n"))
