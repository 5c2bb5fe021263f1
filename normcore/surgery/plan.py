"""Whether a norm can take a layer's place, and how."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from normcore.menu.spec import Spec
from normcore.norms.norm import Norm
from normcore.refusal import Refusal
from normcore.spec import kind_of
from normcore.surgery.call_sites import CallSites
from normcore.surgery.candidate import Candidate
from normcore.surgery.fold import Pair, pair
from normcore.surgery.known import Known
from normcore.surgery.relu import Relu, cannot_go, relu_after
from normcore.surgery.replacement import build, knobs_for
from normcore.surgery.transfer import take_over


def plan(
    path: str, known: Known | str, spec: Spec, calls: CallSites, model: nn.Module, batch: Sequence[Any] = ()
) -> Candidate | str:
    """The norm that takes the place of the layer at `path`, with all that it takes over; or why none does.

    Args:
        path: Of the layer in `model`.
        known: What the layer is.
        spec: The norm that is asked for.
        calls: Of `model`.
        model: Not touched.
        batch: What the model is called with, where that is known.
    """
    if isinstance(known, str):
        return known
    if isinstance(model.get_submodule(path.rpartition(".")[0]), nn.TransformerEncoderLayer):
        return (
            "torch's encoder layer hands its norms' weights to a fused kernel in evaluation, which is layer norm only"
        )
    if calls.is_read(path):
        return "its parameters are read past it, by the forward of another module"
    kind, knobs = kind_of(type(spec)), knobs_for(spec, known)
    others = [tensor for tensor in (*model.parameters(), *model.buffers(), *batch) if isinstance(tensor, Tensor)]
    try:
        norm, relu, remark = build(spec, knobs, known, others), None, ""
        if norm.activates and not _activates(known):
            found = _relu_to_take_in(path, known, calls)
            if not isinstance(found, str):
                relu = found
            elif "tlu" in knobs:
                knobs, remark = knobs | {"tlu": False}, f"without tlu: {found}"
                norm = build(spec, knobs, known, others)
            else:
                return f"{type(norm).__name__} is its own non-linearity, and {found}"
    except Refusal as refusal:
        return str(refusal)
    exact, preserved = take_over(norm, kind, knobs, known)
    if why := _too_many_arguments(norm, path, known, calls):
        return why
    linear = None
    if kind == "none" and not exact:
        linear = pair(path, known, calls, model)
        exact = isinstance(linear, Pair)
        remark = f"folded into {linear.linear}" if isinstance(linear, Pair) else f"not folded: {linear}"
    return Candidate(
        path, known, norm, exact, tuple(preserved), remark, relu, linear if isinstance(linear, Pair) else None
    )


def _relu_to_take_in(path: str, known: Known, calls: CallSites) -> Relu | str | None:
    """The relu after the layer that can be taken away; none where the layer itself holds it; or why it cannot be."""
    if known.after:
        names = sorted(type(module).__name__ for module in known.after.values())
        return None if names == ["ReLU"] else f"the layer itself goes on with {' and '.join(names)}, not with a relu"
    relu = relu_after(path, calls)
    if isinstance(relu, str):
        return relu
    return cannot_go(relu, calls) or relu


def _too_many_arguments(norm: Norm, path: str, known: Known, calls: CallSites) -> str | None:
    """Why the norm cannot be called as the layer is: with a mask, for one, that it knows nothing of."""
    given = max((len(site.node.args) + len(site.node.kwargs) for site in calls.of(path)), default=1)
    alone = not known.after and not known.channels_last
    taken = len(inspect.signature(norm.forward).parameters) if alone else 1
    if given <= taken:
        return None
    return f"it is called with {given} arguments, and {type(norm).__name__} takes {taken} in its place"


def _activates(known: Known) -> bool:
    return isinstance(known.norm, Norm) and known.norm.activates
