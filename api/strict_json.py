"""Reading a body: bounded, declared as JSON, and JSON as RFC 8259 and RFC 7493 (I-JSON) have it.

Python's own reader takes NaN, doubled keys, integers of any length and NULs, which databases and other readers do not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from api.problems import Refused

MAX_BODY_BYTES = 256 * 1024
MAX_DEPTH = 32
_MAX_INTEGER = 2**63 - 1


def loads(body: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        Refused: malformed-json, with what is wrong.

    Example:
        >>> loads(b'{"lr": NaN}')
        Traceback (most recent call last):
        api.problems.Refused: 400: NaN is not a JSON number; send a finite one
    """
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise _malformed(f"the body is not UTF-8 at byte {error.start}; encode it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise _malformed(f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:  # an integer of more digits than Python reads
        raise _malformed(_INTEGER) from error
    _check(value)
    return value


_INTEGER = "an integer lies outside 64 bits; send a smaller one, or a float"


def _check(value: Any) -> None:
    # A loop and not a recursion, so that depth can be counted and not be run into.
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise _too_deep()
        for item in level:
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, int) and abs(item) > _MAX_INTEGER:
                raise _malformed(_INTEGER)
        inner = [
            list(item.values()) if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)
        ]
        level, depth = [item for items in inner for item in items], depth + 1


def _check_text(text: str) -> None:
    if "\0" in text:
        raise _malformed("a string holds the NUL character, which databases cannot store; remove it")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _malformed("a string holds half of a surrogate pair, which is not Unicode; send both or none")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        doubled = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _malformed(f"the key {json.dumps(doubled[:40])} stands twice in an object; keep one")
    for key in made:
        _check_text(key)
    return made


def _refuse_constant(name: str) -> None:
    raise _malformed(f"{name} is not a JSON number; send a finite one")


def _too_deep() -> Refused:
    return _malformed(f"the body is nested deeper than {MAX_DEPTH} levels; a job needs 4")


def _malformed(detail: str) -> Refused:
    return Refused("malformed-json", detail)


class StrictRequest(Request):
    """A request whose body is refused when it is too large, before all of it is read."""

    async def body(self) -> bytes:
        """The whole body, at most `MAX_BODY_BYTES`."""
        # Not FastAPI's max_body_size: where the Content-Length is too large, that answers in plain text.
        declared = self.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
            raise _too_large()
        if not hasattr(self, "_body"):
            chunks, size = [], 0
            async for chunk in self.stream():
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_BODY_BYTES:
                    raise _too_large()
            self._body = b"".join(chunks)
        return self._body

    async def json(self) -> Any:
        """The body's value, strictly read."""
        return loads(await self.body())


def _too_large() -> Refused:
    return Refused("body-too-large", f"a body may have {MAX_BODY_BYTES} bytes, got more; a job needs about a thousand")


class StrictRoute(APIRoute):
    """A route whose body must be declared as JSON and is read strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler behind the checks."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def handle_strictly(request: Request) -> Response:
            declared = Message()
            declared["content-type"] = request.headers.get("content-type", "")
            # Also for an empty body. A page of another site cannot send this type without asking first.
            if declared.get_content_type() != "application/json":
                sent = request.headers.get("content-type", "")[:80] or "nothing"
                raise Refused("unsupported-media-type", f"the body must be declared as application/json, got {sent}")
            return await handle(StrictRequest(request.scope, request.receive))

        return handle_strictly
