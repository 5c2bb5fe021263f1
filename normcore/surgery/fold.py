"""Norms multiplied into the linear layers before them, for inference."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import nn

from normcore.surgery.call_sites import CallSites
from normcore.surgery.evaluation_affine import ScaleShift, evaluation_affine
from normcore.surgery.hooks import count_hooks
from normcore.surgery.known import Known, is_norm, norms_of
from normcore.surgery.linear_map import refused, times
from normcore.surgery.plain import after, plain
from normcore.surgery.table import table
from normcore.surgery.tree import Tree, refuse_lazy


@dataclass(frozen=True, slots=True)
class Folded:
    """What became of one norm."""

    path: str
    was: str
    into: str
    """Path of the linear layer that holds it now; empty where it stayed."""
    why: str = ""
    """Why it stayed."""


@dataclass(frozen=True)
class Folding:
    """A model without the norms that its linear layers could take in."""

    model: nn.Module
    rows: tuple[Folded, ...]

    def __str__(self) -> str:
        return table(("path", "was", "into", "why"), [(row.path, row.was, row.into, row.why) for row in self.rows])


def fold(model: nn.Module) -> Folding:
    """A copy of a model in which every norm that is a scale and a shift in evaluation is part of the layer before it.

    Batch norm and its relatives (ghost, synchronized, renormalized, power norm; torch's, timm's and the shelf's) are
    `y = scale x + shift` in evaluation, with constants per channel; a convolution or linear layer whose result goes
    there and nowhere else takes them into its weight and bias. The copy computes the same function in evaluation, to
    rounding. The norm's place is taken by an identity, or by the activation that it held.

    A linear layer is taken to work on `(N, C)`, as the norm after it does. Nothing else is assumed: who reads whom is
    recorded with torch.fx, module by module; a forward that cannot be recorded is taken to call the modules in it
    whole, and not a part of one of them by itself.

    Args:
        model: In evaluation mode; not touched.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> folding = fold(net)
        >>> print(folding)
        path  was          into
        1     BatchNorm2d  0
        >>> [type(layer).__name__ for layer in folding.model]
        ['Conv2d', 'Identity', 'ReLU']
    """
    refuse_lazy(model)
    tree = Tree(copy.deepcopy(model))
    calls = CallSites(tree.model, is_norm)
    rows = []
    for path, known in norms_of(tree.model).items():
        was = type(tree.model.get_submodule(path)).__name__
        found = known if isinstance(known, str) else _find(path, known, calls, tree.model)
        if isinstance(found, str) or isinstance(known, str):
            rows.append(Folded(path, was, "", str(found)))
            continue
        tree.exchange(found.linear, times(tree.model.get_submodule(found.linear), found.affine))
        tree.exchange(path, after(known, nn.Identity()).train(known.layer.training))
        rows.append(Folded(path, was, found.linear))
    return Folding(tree.model, tuple(rows))


@dataclass(frozen=True, slots=True)
class Pair:
    """A linear layer, and what the norm after it is."""

    linear: str
    affine: ScaleShift


def _find(path: str, known: Known, calls: CallSites, model: nn.Module) -> Pair | str:
    if known.layer.training and known.kind != "none":
        return "it is in training mode, where it normalizes by the batch; take model.eval() first"
    if count_hooks(known.layer):
        return "it carries hooks, which would see other values"
    return pair(path, known, calls, model)


def pair(path: str, known: Known, calls: CallSites, model: nn.Module) -> Pair | str:
    """The linear layer that could take in the norm at `path`, with what it would take in; or why there is none."""
    affine = None if known.channels_last else evaluation_affine(plain(known), known.num_features)
    if affine is None:
        return "it is no scale and shift per channel in evaluation"
    if calls.is_read(path):
        return "its parameters are read by somebody else"
    sites = calls.of(path)
    if len(sites) != 1:
        return f"it is called at {len(sites)} places that could be recorded, and must be at one"
    writer = calls.writer(sites[0])
    if writer is None:
        return "what comes before it is read by others too, or could not be recorded"
    linear = calls.called(writer)
    if linear is None:
        return f"{getattr(writer.node.target, '__name__', writer.node.target)} comes before it, no linear layer"
    if calls.is_read(linear):
        return f"the weight of {linear} is read by somebody else"
    if len(calls.of(linear)) != 1:
        return f"{linear} is called at {len(calls.of(linear))} places, and only one of them is before this norm"
    why = refused(model.get_submodule(linear), known.num_features)
    return Pair(linear, affine) if why is None else f"{linear}: {why}"
