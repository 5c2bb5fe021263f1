"""The spec of a norm that somebody asks for by its kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from normcore.menu.spec import Spec
from normcore.refusal import Refusal
from normcore.spec import MENU, kind_of


def asked_norm(kind: object, knobs: Mapping[str, Any]) -> Spec:
    """A norm of the menu with some of its knobs.

    Raises:
        Refusal: There is no such kind or knob.

    Example:
        >>> asked_norm("layer", {"eps": 1e-3})
        LayerNormSpec(kind='layer', eps=0.001, affine=True)
    """
    specs = {kind_of(spec): spec for spec in MENU["norm"]}
    if kind not in specs:
        raise Refusal("no-such-norm", f'there is no norm of kind "{kind}"; on offer: {", ".join(specs)}')
    spec = specs[str(kind)]
    try:
        return spec.model_validate(dict(knobs))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors())
        offer = ", ".join(name for name in spec.model_fields if name != "kind") or "none"
        raise Refusal("no-such-knob", f"{kind} cannot be had so: {wrong}; its knobs: {offer}") from error
