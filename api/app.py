"""The API: `uvicorn --factory api.app:create_app`.

Nothing that is slow to import is imported here: torch is loaded beside the first answers, Redis and MLflow are met in
their checks only.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from importlib.metadata import version
from typing import Any

from anyio import CapacityLimiter
from fastapi import FastAPI

from api import catalog, docs, events, exposition, health, jobs, metrics, preview, problems
from api.laboratory import Laboratory
from api.openapi import DESCRIPTION, TAGS, complete
from api.previewer import Previewer
from api.traffic import Traffic, TrafficMiddleware
from worker.book import Book, BookUnavailable, SchemaTooNew
from worker.settings import Settings
from worker.settings import settings as settings_of_process

WATCHER_THREADS = 4


class Api(FastAPI):
    """FastAPI, with what it cannot know added to the OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, with problems and the shapes of events."""
        return complete(super().openapi())


def create_app(settings: Settings | None = None) -> FastAPI:
    """The API over one order book; ends the process where a later version has migrated that.

    Args:
        settings: Where things are; the environment's when not given.
    """
    chosen = settings or settings_of_process()
    _require_schema(chosen)
    traffic = Traffic()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        book, previewer = Book.open(chosen), Previewer(chosen)
        app.state.laboratory = Laboratory(chosen, book, previewer, CapacityLimiter(WATCHER_THREADS), traffic)
        try:
            yield
        finally:
            previewer.close()
            book.close()

    app = Api(
        title="Normcore",
        version=version("normcore"),
        description=DESCRIPTION,
        openapi_tags=TAGS,
        # The pages that FastAPI brings load their scripts from another host; ours works offline.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
        lifespan=lifespan,
    )
    problems.install(app)
    app.add_middleware(TrafficMiddleware, traffic=traffic)
    for module in (preview, jobs, metrics, events, catalog, health, exposition, docs):
        app.include_router(module.router)
    return app


def _require_schema(settings: Settings) -> None:
    """A database that is away or still to be migrated may come; one that a later version has migrated will not."""
    with closing(Book.open(settings)) as book, suppress(BookUnavailable):
        try:
            book.require_schema()
        except SchemaTooNew as error:
            sys.exit(f"the API does not start: {error}")
