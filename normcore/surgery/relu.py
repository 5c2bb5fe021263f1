"""The relu after a norm, found, taken away where the new norm is its own non-linearity, and given back."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from normcore.surgery.call_sites import CallSites, Site
from normcore.surgery.tree import Tree


@dataclass(frozen=True, slots=True)
class Relu:
    """The relu that reads a norm's result and is the only one to do so."""

    norm: str
    """Path of the norm."""
    sites: tuple[Site, ...]
    """One for each call of the norm."""
    module: str | None
    """Path of the relu that is called there; none where it is a function."""


def relu_after(path: str, calls: CallSites) -> Relu | str:
    """The relu after the norm at `path`; or why there is none, or none that could be told."""
    sites = calls.of(path)
    if not sites:
        return "its caller could not be recorded, and with it what comes after"
    readers = [calls.reader(site) for site in sites]
    relus = [reader for reader in readers if reader is not None and calls.is_relu(reader)]
    if len(relus) < len(sites):
        return "no relu follows that reads it alone"
    modules = {calls.called(relu) for relu in relus}
    return Relu(path, tuple(relus), modules.pop() if len(modules) == 1 else None)


def cannot_go(relu: Relu, calls: CallSites) -> str | None:
    """Why a relu cannot be taken away, or none where it can: every other call of a shared relu has to stay."""
    if relu.module is not None and len(calls.of(relu.module)) == len(relu.sites):
        return None
    for owner in sorted({site.owner for site in relu.sites}):
        if len(calls.of(owner)) > 1:
            return f"the relu after it is called in {owner}, which is itself called at {len(calls.of(owner))} places"
        if calls.recordable(owner) is None:
            name = owner or "the model"
            return f"the relu after it is shared or a function, and the forward of {name} cannot be rewritten by record"
    return None


def take_away(relus: Sequence[Relu], calls: CallSites, tree: Tree) -> list[str]:
    """Puts identities in the place of relus, at their own call sites only.

    A relu module that is called nowhere else gives its place to an identity. Where it is called elsewhere too
    (torchvision's ResNet blocks have one relu for all), or is a function, the forward of the module that calls it is
    replaced by its recording, with an identity of its own at the call site. The module stays an instance of its class
    and can be copied, compiled and exported; not pickled, as its class stands in no file: keep its state dict.

    Returns:
        The paths of modules whose forward was replaced.
    """
    gone = {site.node for relu in relus for site in relu.sites}
    by_owner: dict[str, dict[fx.Node, str]] = defaultdict(dict)
    for relu in relus:
        if relu.module is not None and all(site.node in gone for site in calls.of(relu.module)):
            tree.exchange(relu.module, nn.Identity().train(tree.model.get_submodule(relu.module).training))
        else:
            for number, site in enumerate(relu.sites):
                name = f"{relu.norm.replace('.', '_') or 'norm'}_activation{number or ''}"
                by_owner[site.owner][site.node] = name.removeprefix(f"{site.owner.replace('.', '_')}_")
    # From the inside out, since a recording takes over the children it finds.
    for owner in sorted(by_owner, key=lambda path: -path.count(".") - bool(path)):
        tree.exchange(owner, _rewritten(tree.model.get_submodule(owner), calls, owner, by_owner[owner]))
    return sorted(by_owner)


def _rewritten(module: nn.Module, calls: CallSites, owner: str, gone: Mapping[fx.Node, str]) -> nn.Module:
    """The module with a forward that goes without some relus: same children, same everything, a subclass of its class.

    Args:
        module: To be rewritten; not touched.
        calls: Which hold the recording.
        owner: Path of the module.
        gone: The calls to be left out, and the names of identities to be called instead.
    """
    recorded = calls.recordable(owner)
    assert recorded is not None
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(recorded, copies))
    rewritten = copy.copy(module)
    vars(rewritten)["_modules"] = dict(vars(module)["_modules"])
    for node, name in gone.items():
        rewritten.add_module(name, nn.Identity().train(module.training))
        with graph.inserting_before(copies[node]):
            instead = graph.call_module(name, (copies[node].args[0],))
        copies[node].replace_all_uses_with(instead)
        graph.erase_node(copies[node])
    code = graph.python_code(root_module="self")
    made: dict[str, Any] = {}
    exec(code.src, code.globals, made)  # noqa: S102 (the code that torch.fx writes, as it does for its own modules)
    kind = type(module)
    # A subclass, since the rest of the class may be called as well: timm's models have a dozen ways in.
    rewritten.__class__ = type(kind.__name__, (kind,), {"forward": made["forward"], "__module__": kind.__module__})
    return rewritten


def give_back(path: str, calls: CallSites, tree: Tree) -> bool:
    """Puts a relu where an identity follows the norm at `path`, at each of its calls; or says that there is none."""
    found = [calls.identities_after(site)[:1] for site in calls.of(path)]
    if not found or not all(found):
        return False
    for (identity,) in found:
        tree.exchange(identity, nn.ReLU().train(tree.model.get_submodule(identity).training))
    return True
