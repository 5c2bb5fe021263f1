"""Validation errors in a researcher's words: the rule, what was sent, the remedy, and where."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from api.views import Mistake
from normcore.menu.occasions import OCCASIONS
from normcore.menu.spec import Misfit
from normcore.spec import MENU, JobSpec, kind_of, kinds_with

_WANTED = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_parsing": "an integer",
    "int_type": "an integer",
    "model_attributes_type": "an object",
    "model_type": "an object",
    "string_type": "a string",
    "tuple_type": "a list",
}
"""What a field must be, where pydantic says it in Python's words."""

_CODES = {"enum": "not-on-offer", "literal_error": "not-on-offer", "value_error": "invalid-value"}
"""Words for pydantic's, where those would say little; the others are pydantic's with hyphens."""

_LONGEST = 40
"""Characters of a value or a name that a sentence quotes."""


def mistakes_in(errors: Iterable[Mapping[str, Any]]) -> list[Mistake]:
    """Pydantic's errors, with locations as FastAPI gives them: `("body", "norm", "batch", "eps")`.

    Example:
        >>> error = {"type": "extra_forbidden", "loc": ("body", "norm", "batch", "num_groups"), "input": 4}
        >>> mistake = mistakes_in([error])[0]
        >>> mistake.pointer, mistake.code
        ('/norm/num_groups', 'foreign-knob')
        >>> mistake.detail
        'num_groups is a knob of group and evonorm_s0, not of batch; leave it out, or choose such a kind'
    """
    return [
        _in_body(error, error["loc"][1:]) if error["loc"][0] == "body" else _in_parameter(error, str(error["loc"][1]))
        for error in errors
    ]


def _in_parameter(error: Mapping[str, Any], name: str) -> Mistake:
    if error["type"] == "extra_forbidden":
        return Mistake(code="unknown-parameter", detail=f"there is no parameter {_short(name)}", parameter=name)
    return Mistake(code=_code(error), detail=_sentence(name, error), parameter=name)


def _in_body(error: Mapping[str, Any], loc: tuple[str | int, ...]) -> Mistake:
    path, kind = _without_kind(loc)
    path, occasion = _without_occasion(path)
    match error["type"]:
        case "union_tag_invalid":
            return _unknown_kind((*path, "kind"), error["input"]["kind"])
        case "literal_error" if path[-1] == "kind":
            return _unknown_kind(path, error["input"])
        case "union_tag_not_found":
            detail = f"{_dotted(path)} must name its kind, got none; on offer: {_on_offer(path[0])}"
            return Mistake(code="missing-kind", detail=detail, pointer=_pointer(path))
        case "extra_forbidden" if occasion is not None:
            return _unknown_field_of_an_occasion(path, occasion)
        case "extra_forbidden":
            return _unknown_field(path, kind)
        case "value_error" if isinstance(misfit := error["ctx"]["error"], Misfit):
            return Mistake(code=_code(error), detail=str(misfit), pointer=_pointer((*path, *misfit.at)))
        case _:
            return Mistake(code=_code(error), detail=_sentence(_dotted(path), error), pointer=_pointer(path))


def _without_kind(loc: tuple[str | int, ...]) -> tuple[tuple[str | int, ...], str | None]:
    """A location without the kind that pydantic puts after a union's field, and that kind."""
    if loc and loc[-1] == "[key]":
        loc = loc[:-1]
    if not loc or loc[0] not in MENU:
        return loc, None
    kinds = [kind_of(part) for part in MENU[str(loc[0])]]
    before = 2 if len(loc) > 1 and isinstance(loc[1], int) else 1
    if len(kinds) == 1:
        return loc, kinds[0] if len(loc) > before else None
    return (loc[:before] + loc[before + 1 :], str(loc[before])) if len(loc) > before else (loc, None)


def _without_occasion(path: tuple[str | int, ...]) -> tuple[tuple[str | int, ...], str | None]:
    """A location without the kind of occasion that pydantic puts after a probe's `every`, and that kind."""
    if path[:1] == ("probes",) and path[2:3] == ("every",) and len(path) > 3:
        return (*path[:3], *path[4:]), str(path[3])
    return path, None


def _unknown_field_of_an_occasion(path: tuple[str | int, ...], occasion: str) -> Mistake:
    knob, fields = str(path[-1]), OCCASIONS[occasion].model_fields
    if owners := [kind for kind, part in OCCASIONS.items() if knob in part.model_fields]:
        detail = f"{knob} is a knob of {_and(owners)}, not of {occasion}; leave it out, or choose such a kind"
        return Mistake(code="foreign-knob", detail=detail, pointer=_pointer(path))
    detail = f"every {occasion} has no field {_short(knob)}; it has {', '.join(fields)}"
    return Mistake(code="unknown-field", detail=detail, pointer=_pointer(path))


def _unknown_kind(path: tuple[str | int, ...], sent: object) -> Mistake:
    detail = f"there is no {path[0]} of kind {_shown(sent)}; on offer: {_on_offer(path[0])}"
    return Mistake(code="unknown-kind", detail=detail, pointer=_pointer(path))


def _unknown_field(path: tuple[str | int, ...], kind: str | None) -> Mistake:
    knob, pointer = str(path[-1]), _pointer(path)
    if kind is None:
        holder, fields = "a job", list(JobSpec.model_fields)
    else:
        family = str(path[0])
        holder, fields = (
            f"{family} {kind}",
            [name for part in MENU[family] if kind_of(part) == kind for name in part.model_fields],
        )
        if owners := kinds_with(family, knob):
            detail = f"{knob} is a knob of {_and(owners)}, not of {kind}; leave it out, or choose such a kind"
            return Mistake(code="foreign-knob", detail=detail, pointer=pointer)
    if homes := [family for family in MENU if kinds_with(family, knob)]:
        detail = f"{knob} is a knob of {_and(homes)}, not of {holder}; move it there, or leave it out"
        return Mistake(code="foreign-knob", detail=detail, pointer=pointer)
    detail = f"{holder} has no field {_short(knob)}; it has {', '.join(fields)}"
    return Mistake(code="unknown-field", detail=detail, pointer=pointer)


def _and(words: list[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _code(error: Mapping[str, Any]) -> str:
    kind = str(error["type"])
    if kind in _WANTED and kind != "finite_number":
        return "wrong-type"
    return _CODES.get(kind, kind.replace("_", "-"))


def _sentence(name: str, error: Mapping[str, Any]) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "missing":
        return f"{name} must be given, got nothing"
    rule = str(error["msg"])
    if error["type"] in _WANTED:
        rule = f"must be {_WANTED[error['type']]}"
    elif rule.startswith("Input should "):
        rule = f"must {rule.removeprefix('Input should ')}"
    else:
        rule = rule.replace(" should ", " must ")
        rule = f"is wrong: {rule[0].lower()}{rule[1:]}"
    return f"{name} {rule}, got {_shown(error['input'])}"


def _shown(value: object) -> str:
    """A value as it stood in the JSON, shortened; containers by their nature, and never an infinity."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, float) and not math.isfinite(value):
        return "a number beyond the range of a double"
    return _short(json.dumps(value, ensure_ascii=False))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _on_offer(family: str | int) -> str:
    return ", ".join(kind_of(part) for part in MENU[str(family)])


def _dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(_short(str(step)) for step in path) or "the body"


def _pointer(path: tuple[str | int, ...]) -> str:
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in path)
