"""What a request reaches behind the door: the settings, the order book, the preview, and what was asked so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request

from api.previewer import Previewer
from api.traffic import Traffic
from worker.book import Book
from worker.settings import Settings


@dataclass(frozen=True, slots=True)
class Laboratory:
    """One per process, made when the API starts."""

    settings: Settings
    book: Book
    previewer: Previewer
    watchers: CapacityLimiter
    """The threads through which all streams of events look into the book."""
    traffic: Traffic


async def _of(request: Request) -> Laboratory:
    laboratory = request.app.state.laboratory
    assert isinstance(laboratory, Laboratory)
    return laboratory


Lab = Annotated[Laboratory, Depends(_of)]
"""A route's parameter of this type is given the laboratory."""
