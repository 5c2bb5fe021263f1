"""The norms of any model, exchanged for others."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from normcore.menu.spec import Spec
from normcore.norms.none import NoNorm
from normcore.norms.norm import Norm
from normcore.surgery.calibrate import Moments, match, measure_original
from normcore.surgery.call_sites import CallSites
from normcore.surgery.candidate import Candidate
from normcore.surgery.compare import Calibration, arguments, difference, errors, input_channels, run
from normcore.surgery.conversion import Conversion, Row
from normcore.surgery.hooks import count_hooks
from normcore.surgery.known import is_norm, norms_of
from normcore.surgery.linear_map import times
from normcore.surgery.plan import plan
from normcore.surgery.relu import give_back, take_away
from normcore.surgery.replacement import asked
from normcore.surgery.tree import Tree, refuse_lazy

FUNCTIONS: dict[Any, str] = {
    getattr(module, name): f"{label}.{name}"
    for module, label in ((functional, "functional"), (torch, "torch"))
    for name in ("batch_norm", "group_norm", "instance_norm", "layer_norm", "local_response_norm", "rms_norm")
    if hasattr(module, name)
}
"""Norms that are function calls."""


def convert(
    model: nn.Module,
    to: Spec | dict[str, Any] | str,
    *,
    calibration: Calibration | None = None,
    where: Callable[[str, nn.Module], bool] = lambda _path, _layer: True,
) -> Conversion:
    """A copy of a model in which every norm is another one, and an account of what was exchanged, how, and what not.

    Knows the norms of torch, of timm and of the shelf, on `(N, C, *)` and, for layer and RMS norm, on `(N, *, C)`. A
    new norm has the place, the mode, the device and the dtype (float32 or better) of the old one, and what was frozen
    stays frozen. A norm that stands at several places stays one norm. Knobs that are not asked for are the old norm's
    where both mean the same by them (eps of a variance, momentum), otherwise the menu's.

    **The function is kept where mathematics allows it**, in evaluation: between norms that are one function under two
    names (layer norm and group norm with one group, instance norm and a group per channel, torch's and the shelf's),
    and between all that are a scale and a shift per channel in evaluation (batch norm, ghost, synchronized,
    renormalized, power norm, ...), for which gamma and beta are solved. To `none` they are multiplied into the linear
    layer before (see `fold`). All others become another function: with a `calibration` batch, gamma and beta (and
    running statistics) are set so that each channel's outputs have the mean and variance that they had; without one,
    gamma and beta are taken over as they are. Every row of the account says which it was, and the measured difference.

    **Norms that are their own non-linearity** (filter response norm with its thresholded linear unit, EvoNorm) take in
    the relu after them, if one reads their result alone. It is found by recording forwards with torch.fx, and its place
    is taken by an identity. Where a relu module serves several call sites, or the relu is a function, the forward of
    the module that calls it is replaced by its recording without that call. Where that cannot be done, and where no
    relu follows, filter response norm goes without its threshold, and EvoNorm is not put. The other way round, a relu
    is given back.

    Args:
        model: Any; not touched.
        to: The norm: a spec, its dict, or its kind.
        calibration: A batch of inputs; or a tuple, the arguments of one call; or an iterable of either, taken together
            as one batch. The model is run on it a few times in evaluation.
        where: Which of the norms to exchange, by path and layer; all when not given.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> print(convert(net, {"kind": "group", "num_groups": 4}))
        path  was             became                      how      preserved
        1     BatchNorm2d(8)  GroupNorm(8, num_groups=4)  carried  bias, weight
        1 carried
    """
    spec = asked(to)
    refuse_lazy(model)
    tree = Tree(copy.deepcopy(model))
    batch = None if calibration is None else arguments(calibration)
    norms = norms_of(tree.model, _channels(model, batch))
    calls = CallSites(tree.model, is_norm)
    plans = {
        path: plan(path, known, spec, calls, tree.model, batch or ())
        for path, known in norms.items()
        if where(path, tree.model.get_submodule(path))
    }
    rows = {path: _kept(path, tree.model, why) for path, why in plans.items() if isinstance(why, str)}
    candidates = [candidate for candidate in plans.values() if isinstance(candidate, Candidate)]
    moments: dict[str, Moments] = {}
    if batch is not None:
        moments, refusals = measure_original(model, batch, candidates)
        rows |= {path: _kept(path, tree.model, why) for path, why in refusals.items()}
        candidates = [candidate for candidate in candidates if candidate.path not in refusals]
    rewritten = _exchange(candidates, calls, tree)
    unmatched: dict[str, str] = {}
    differences: dict[str, float] = {}
    if batch is not None:
        unmatched = match(tree.model, batch, candidates, moments)
        # A folded one's input is another, since the layer before it is.
        differences = errors(model, batch, [candidate for candidate in candidates if candidate.pair is None])
    for candidate in candidates:
        matched = unmatched.get(candidate.path) if batch is not None else "not asked"
        rows[candidate.path] = _row(
            candidate, spec, matched, differences.get(candidate.path), _shared(candidate.path, model)
        )
    return Conversion(
        model=tree.model,
        rows=(*(rows[path] for path in plans), *_functions(calls)),
        rewritten=tuple(rewritten),
        error=None if batch is None else difference(run(model, batch), run(tree.model, batch)),
        exchanges=tuple(tree.exchanges),
    )


def _channels(model: nn.Module, batch: tuple[Any, ...] | None) -> dict[str, int]:
    """Channels of the norms that do not say how many they are given, where a batch can show them."""
    silent = [path for path, layer in model.named_modules() if isinstance(layer, nn.LocalResponseNorm)]
    return input_channels(model, batch, silent) if batch is not None and silent else {}


def _exchange(candidates: Sequence[Candidate], calls: CallSites, tree: Tree) -> list[str]:
    """Puts the candidates in their places; the paths of modules whose forward had to be rewritten for it."""
    for candidate in candidates:
        place = candidate.place()
        if candidate.gives_relu_back and not give_back(candidate.path, calls, tree):
            place = nn.Sequential(OrderedDict(norm=place, activation=nn.ReLU()))
        tree.exchange(candidate.path, place.train(candidate.known.layer.training))
        if candidate.pair is not None:
            linear = tree.model.get_submodule(candidate.pair.linear)
            tree.exchange(candidate.pair.linear, times(linear, candidate.pair.affine))
    return take_away([candidate.relu for candidate in candidates if candidate.relu is not None], calls, tree)


def _shared(path: str, model: nn.Module) -> str:
    """Which parameters of a layer other layers have too, in a sentence; empty where none."""
    mine = {id(parameter): name for name, parameter in model.get_submodule(path).named_parameters()}
    pairs = [
        f"{mine[id(parameter)]} with {other or 'the model'}"
        for other, module in model.named_modules()
        if other != path and not other.startswith(f"{path}.")
        for parameter in vars(module)["_parameters"].values()
        if id(parameter) in mine
    ]
    return f"it shared {', '.join(pairs)}; the new one has its own" if pairs and path else ""


def _row(candidate: Candidate, spec: Spec, unmatched: str | None, error: float | None, shared: str) -> Row:
    """The account of a candidate that stands; `unmatched` is why it was not matched, nothing where it was."""
    how: Literal["exact", "matched", "carried"] = "exact" if candidate.exact else "carried" if unmatched else "matched"
    why = [candidate.known.remark, candidate.remark, shared]
    if not candidate.exact and unmatched and unmatched != "not asked" and not isinstance(candidate.norm, NoNorm):
        why.append(unmatched)
    layer = candidate.known.layer
    if hooks := count_hooks(layer):
        why.append(f"it carried hooks, which stayed with it: {hooks}")
    return Row(
        candidate.path,
        f"{type(layer).__name__}({candidate.known.num_features})",
        _became(candidate.norm, spec),
        how,
        candidate.preserved,
        error,
        "; ".join(part for part in why if part),
    )


def _became(norm: Norm, spec: Spec) -> str:
    """The norm, its channels and the knobs that are not the menu's."""
    defaults = {name: field.default for name, field in type(spec).model_fields.items()}
    kept = {name: getattr(norm, name) for name in spec.knobs() if hasattr(norm, name)}
    knobs = [f"{name}={value}" for name, value in kept.items() if value != defaults[name]]
    return f"{type(norm).__name__}({', '.join([str(norm.num_features), *knobs])})"


def _kept(path: str, model: nn.Module, why: str) -> Row:
    layer = model.get_submodule(path)
    return Row(path, getattr(layer, "original_name", type(layer).__name__), "", "kept", why=why)


def _functions(calls: CallSites) -> list[Row]:
    """Norms that are function calls."""
    why = "it is a function that a forward calls, and no module that could be exchanged"
    return [
        Row(site.owner, FUNCTIONS[site.node.target], "", "kept", why=why)
        for site in calls.functions()
        if site.node.target in FUNCTIONS
    ]
