"""The norms of the menu as layers to certify."""

from __future__ import annotations

from typing import Any

from normcore.menu.asked_norm import asked_norm
from normcore.norms.norm import Norm
from normcore.refusal import Refusal
from normcore.spec import MENU, kind_of

NUM_FEATURES = (8, 16, 32, 64, 128)


def shelf() -> list[str]:
    """The kinds of norm on the menu.

    Example:
        >>> "batch" in shelf()
        True
    """
    return [kind_of(spec) for spec in MENU["norm"]]


def shelf_layer(kind: str, num_features: int | None = None, **knobs: Any) -> Norm:
    """A norm of the menu, for the channels that are asked for, else the fewest of 8, 16, 32, ... that it can do with.

    Raises:
        Refusal: There is no such kind or knob, or the norm cannot be built for the channels.

    Example:
        >>> shelf_layer("group").num_features
        32
    """
    spec = asked_norm(kind, knobs)
    refusal: Refusal | None = None
    for channels in NUM_FEATURES if num_features is None else (num_features,):
        try:
            layer: Norm = spec.part()(channels, **spec.knobs())
        except Refusal as refused:
            refusal = refusal or refused
        else:
            return layer
    assert refusal is not None
    raise refusal
