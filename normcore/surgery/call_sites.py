"""Who calls which module of a model, on what, and where the result goes."""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from normcore.noise.noise import Drawing

CONTAINERS = (nn.ModuleList, nn.ModuleDict)
"""Modules without a forward."""
RELUS: tuple[Any, ...] = (functional.relu, functional.relu_, torch.relu, torch.relu_, "relu", "relu_")
"""How a relu is called that is no module."""


class ChildrenAreLeaves(fx.Tracer):
    """Records one module's own forward: every module that it calls is one node."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: set[tuple[bool, ...]] = set()
        """Under which calls were recorded: a recording forgets `with torch.no_grad()`, and the like."""

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Torch calls it."""
        autocast = (torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))
        self.modes.add((torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast))
        return super().create_node(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002 (torch's signature)
        """Always."""
        return True


@dataclass(frozen=True)
class Site:
    """One place in the forward of `owner` where something is called."""

    owner: str
    """Module path of the one whose forward it is; empty for the model itself."""
    node: fx.Node


class CallSites:
    """The calls of a model in evaluation, found by recording the forward of each module by itself with torch.fx.

    A forward that torch.fx cannot record (one that branches on values) is opaque and hides the calls that it makes;
    the modules below it are recorded all the same. Arguments with a default are taken to keep it. Modules are named by
    their first path where they stand at several.

    Args:
        model: Not touched, nor run: recording works on a copy that shares its tensors.
        is_leaf: Modules whose inside is of no interest.

    Example:
        >>> calls = CallSites(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()))
        >>> [(path, calls.reader(site).node.name) for path in ("0", "1") for site in calls.of(path)]
        [('0', '_1'), ('1', '_2')]
    """

    def __init__(self, model: nn.Module, is_leaf: Callable[[nn.Module], bool] = lambda _: False) -> None:
        # Recording runs forwards, and a forward may leave things behind; the copy shares parameters and buffers.
        tensors = (*model.parameters(), *model.buffers())
        self._copy = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}).eval()
        self.first_path: dict[str, str] = {}
        self.opaque: dict[str, str] = {}
        """Modules whose forward could not be recorded, and why."""
        self._graphs: dict[str, fx.Graph] = {}
        self._sites: dict[str, list[Site]] = defaultdict(list)
        firsts: dict[int, str] = {}
        for path, module in self._copy.named_modules(remove_duplicate=False):
            self.first_path[path] = firsts.setdefault(id(module), path)
        self._modules = {path: self._copy.get_submodule(path) for path in firsts.values()}
        inside: set[str] = set()
        for path, module in self._modules.items():
            within_leaf = path != "" and path.rpartition(".")[0] in inside
            if within_leaf or is_leaf(module) or isinstance(module, Drawing):
                inside.add(path)
            elif not isinstance(module, CONTAINERS) and not _is_torchs_leaf(module):
                self._record(path, module)

    def of(self, path: str) -> list[Site]:
        """Where the module at `path` is called, as far as forwards could be recorded."""
        return self._sites[self.first_path[path]]

    def is_read(self, path: str) -> bool:
        """Whether some forward reads a parameter or buffer of the module at `path` past the module itself."""
        return any(
            node.op == "get_attr" and f"{owner}.{node.target}".lstrip(".").startswith(f"{path}.")
            for owner, graph in self._graphs.items()
            for node in graph.nodes
        )

    def called(self, site: Site) -> str | None:
        """The path of the module that is called at a site, or none where no module is."""
        if site.node.op != "call_module":
            return None
        return self.first_path[f"{site.owner}.{site.node.target}".lstrip(".")]

    def functions(self) -> list[Site]:
        """Every site at which a function is called and not a module."""
        return [
            Site(owner, node)
            for owner, graph in self._graphs.items()
            for node in graph.nodes
            if node.op == "call_function"
        ]

    def reader(self, site: Site) -> Site | None:
        """The one call that takes the result of a call; none where several do, or where it leaves the model.

        A result that a forward returns is followed to the forward's caller, and one that is handed to a module with a
        recorded forward into that; identities, noise and dropout are stepped over.
        """
        owner, node = site.owner, site.node
        while len(node.users) == 1:
            (user,) = node.users
            if user.op == "output":
                if user.args[0] is not node or len(self._sites[owner]) != 1:
                    return None
                owner, node = self._sites[owner][0].owner, self._sites[owner][0].node
                continue
            path = self.called(Site(owner, user))
            if path is None or user.args[:1] != (node,) or len(user.args) + len(user.kwargs) > 1:
                return Site(owner, user)
            if path in self._graphs:
                if len(self._sites[path]) != 1:
                    return None
                owner, node = path, next(iter(self._graphs[path].nodes))
            elif isinstance(self._modules[path], (nn.Identity, Drawing)):
                node = user
            else:
                return Site(owner, user)
        return None

    def writer(self, site: Site) -> Site | None:
        """The call whose result is the first argument of a call and goes nowhere else; none where there is no such."""
        owner, node = site.owner, site.node.args[0] if site.node.args else None
        while isinstance(node, fx.Node) and len(node.users) == 1:
            if node.op == "placeholder":
                first = next(iter(self._graphs[owner].nodes))
                if node is not first or len(self._sites[owner]) != 1:
                    return None
                caller = self._sites[owner][0]
                owner, node = caller.owner, caller.node.args[0] if caller.node.args else None
                continue
            path = self.called(Site(owner, node))
            if path is not None and path in self._graphs:
                if len(self._sites[path]) != 1:
                    return None
                owner, node = path, next(n for n in self._graphs[path].nodes if n.op == "output").args[0]
            elif path is not None and isinstance(self._modules[path], (nn.Identity, Drawing)):
                node = node.args[0] if node.args else None
            else:
                return Site(owner, node)
        return None

    def is_relu(self, site: Site) -> bool:
        """Whether a relu is called, as a module, a function or a method."""
        path = self.called(site)
        if path is not None:
            return type(self._modules[path]) is nn.ReLU
        return site.node.op in {"call_function", "call_method"} and site.node.target in RELUS

    def identities_after(self, site: Site) -> list[str]:
        """Plain identities that a result passes on its only way, each called nowhere else."""
        found = []
        owner, node = site.owner, site.node
        while len(node.users) == 1:
            (node,) = node.users
            path = self.called(Site(owner, node))
            if path is None or not isinstance(self._modules[path], (nn.Identity, Drawing)):
                break
            if type(self._modules[path]) is nn.Identity and len(self._sites[path]) == 1:
                found.append(path)
        return found

    def recordable(self, owner: str) -> fx.Graph | None:
        """The forward of `owner` as a graph that may take its place; none where the recording left something out.

        It did where the forward differs between training and evaluation, has arguments with a default, or calls some
        things with gradients or autocast turned off or on.
        """
        module = self._modules[owner]
        if owner not in self._graphs or _defaults(module):
            return None
        tracer = ChildrenAreLeaves()
        try:
            module.train()
            training = tracer.trace(module)
        except Exception:  # noqa: BLE001 (any forward's any error)
            return None
        finally:
            module.eval()
        evaluation = self._graphs[owner]
        return evaluation if str(training) == str(evaluation) and len(tracer.modes) == 1 else None

    def _record(self, path: str, module: nn.Module) -> None:
        try:
            graph = ChildrenAreLeaves().trace(module, _defaults(module))
        except Exception as error:  # noqa: BLE001 (any forward's any error)
            self.opaque[path] = str(error).partition("\n")[0] or type(error).__name__
            return
        self._graphs[path] = graph
        for node in graph.nodes:
            if node.op == "call_module":
                self._sites[self.first_path[f"{path}.{node.target}".lstrip(".")]].append(Site(path, node))


def _is_torchs_leaf(module: nn.Module) -> bool:
    """Whether a module without children, but for parametrizations, is a layer of torch or of a subclass of one."""
    bases = [base for base in type(module).__mro__ if base.__module__.startswith("torch.nn.") and base is not nn.Module]
    return bool(bases) and (next(module.children(), None) is None or parametrize.is_parametrized(module))


def _defaults(module: nn.Module) -> dict[str, Any]:
    parameters = inspect.signature(module.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
