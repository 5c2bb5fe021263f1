"""An order as it is typed: a file, standard input, or `model.kind=vgg model.depth=11` on the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO


class UnreadableOrder(ValueError):
    """An order that cannot be made into JSON."""


def read_order(words: Sequence[str], stdin: BinaryIO) -> bytes:
    """The JSON text of an order.

    The first word may be a JSON file, or `-` for standard input; `a.b=value` words set single fields of it, later ones
    over earlier ones. A value is JSON where it is JSON, else text; a field of a list is its number.

    Raises:
        UnreadableOrder: when a word is neither, or there is none.

    Example:
        >>> from io import BytesIO
        >>> read_order(["model.kind=vgg", "model.depth=11", "data.kind=digits", "probes.0.kind=landscape"], BytesIO())
        b'{"model": {"kind": "vgg", "depth": 11}, "data": {"kind": "digits"}, "probes": [{"kind": "landscape"}]}'
    """
    text, fields = (b"{}", words) if "=" in words[0] else (_read(words[0], stdin), words[1:])
    if not fields:
        # As it stands: what is wrong with it is for the API to say.
        return text
    try:
        order = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise UnreadableOrder(f"{words[0]} is not JSON: {error}; mend it before setting fields in it") from error
    for field in fields:
        path, equals, value = field.partition("=")
        if not equals:
            raise UnreadableOrder(f"a field is set as path=value, such as model.kind=vgg, got {field!r}")
        _set(order, path.split("."), _value(value), field)
    return json.dumps(order).encode()


def _read(name: str, stdin: BinaryIO) -> bytes:
    if name == "-":
        # The bytes as they come: what is wrong with them is for the API to say.
        return stdin.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise UnreadableOrder(
            f"{name} is neither a field such as model.kind=vgg nor a JSON file that can be read: "
            f"{(error.strerror or str(error)).lower()}"
        ) from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
    except RecursionError as error:
        raise UnreadableOrder("a value must be nested less deeply, got one that cannot be read") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"a field must stand once, got {doubled!r} twice")
    return made


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def _set(inside: Any, path: Sequence[str], value: Any, field: str) -> None:
    for name, below in pairwise(path):
        inside = _at(inside, name, [] if _is_number(below) else {}, field)
    if isinstance(inside, dict):
        inside[path[-1]] = value
    else:
        _at(inside, path[-1], value, field)
        inside[int(path[-1])] = value


def _at(inside: Any, name: str, default: Any, field: str) -> Any:
    """What is at a name or number, put there if it is missing."""
    if isinstance(inside, dict):
        return inside.setdefault(name, default)
    if not isinstance(inside, list) or not _is_number(name):
        raise UnreadableOrder(f"{field!r} cannot be set: there is no {name} in {json.dumps(inside)}")
    if int(name) > len(inside):
        raise UnreadableOrder(f"{field!r} cannot be set: the list has {len(inside)}, so number {len(inside)} is next")
    if int(name) == len(inside):
        inside.append(default)
    return inside[int(name)]
