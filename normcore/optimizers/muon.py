"""Muon for the matrices, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from normcore.menu.optimizers import MuonSpec
from normcore.optimizers.parameter_groups import parameter_groups
from normcore.refusal import Refusal


class MuonAndAdamW(torch.optim.Optimizer):
    """Two optimizers that update disjoint parameters in one step, with one state and one list of groups.

    Neither moves a parameter or its momentum where `found_inf` holds 1: AdamW's fused kernels look at it themselves;
    torch's Muon does not know it, so what it moved is put back, without the host having to wait.
    """

    found_inf: Tensor | None = None

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer | None) -> None:
        self._muon, self._adamw = muon, adamw
        both = [muon] if adamw is None else [muon, adamw]
        super().__init__([dict(group) for optimizer in both for group in optimizer.param_groups], {})
        # The same dictionaries: who sets an lr here sets it there, and what they remember stands here.
        self.param_groups = [group for optimizer in both for group in optimizer.param_groups]
        for optimizer in both:
            optimizer.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make an update of the gradients that are there; there is no closure to be called."""
        if closure is not None:
            raise ValueError("an update is made of gradients that are there, got a closure; call it before")
        if self._adamw is not None:
            if self.found_inf is not None:
                self._adamw.found_inf = self.found_inf  # type: ignore[attr-defined]
            self._adamw.step()
        moving = [p for group in self._muon.param_groups for p in group["params"] if p.grad is not None]
        for parameter in moving:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        moved = [tensor for parameter in moving for tensor in (parameter, self.state[parameter]["momentum_buffer"])]
        before = [] if self.found_inf is None else [tensor.clone() for tensor in moved]
        self._muon.step()
        if self.found_inf is not None:
            stays = self.found_inf == 1
            for tensor, was in zip(moved, before, strict=True):
                tensor.copy_(torch.where(stays, was, tensor))


def build(spec: MuonSpec, model: nn.Module) -> MuonAndAdamW:
    """Torch's Muon (Jordan et al. 2024) on a model's hidden matrices, and AdamW on all its other parameters.

    Muon steps by the nearest matrix with orthogonal rows or columns to the momentum, found by five Newton-Schulz
    iterations in bfloat16: every direction learns as fast as every other. That is for matrices which map activations to
    activations; the classifier, embeddings, convolutions, biases, norms and gains are AdamW's, at `adamw_lr`, with its
    usual betas. Both follow the schedule.

    Raises:
        Refusal: The model has no such matrix (code `muon-without-matrices`).

    Example:
        >>> optimizer = build(MuonSpec(lr=0.02, adamw_lr=0.001), nn.Linear(2, 3))
        >>> [(group["params"][0].dim(), group["lr_multiple"]) for group in optimizer.param_groups]
        [(2, 1.0), (1, 0.05)]
    """
    ids = {id(parameter) for parameter in matrices(model)}
    muons: list[dict[str, Any]] = []
    adamws: list[dict[str, Any]] = []
    for group in parameter_groups(model, spec.weight_decay, decay_norm_parameters=spec.decay_norm_parameters):
        mine = [p for p in group["params"] if id(p) in ids]
        others = [p for p in group["params"] if id(p) not in ids]
        if mine:
            muons.append(group | {"params": mine})
        if others:
            lr_multiple = group["lr_multiple"] * spec.adamw_lr / spec.lr
            adamws.append(group | {"params": others, "lr_multiple": lr_multiple})
    muon = torch.optim.Muon(
        muons, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov, adjust_lr_fn=spec.adjust_lr
    )
    adamw = torch.optim.AdamW(adamws, lr=spec.adamw_lr, fused=True) if adamws else None
    return MuonAndAdamW(muon, adamw)


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that Muon updates: those of two dimensions, without the classifier's and the embeddings'.

    Raises:
        Refusal: There are none (code `muon-without-matrices`).
    """
    spared = set(_ids([getattr(model, "classifier", None)]))
    spared |= set(_ids(module for module in model.modules() if isinstance(module, nn.Embedding)))
    found = [parameter for parameter in model.parameters() if parameter.dim() == 2 and id(parameter) not in spared]
    if not found:
        raise Refusal(
            "muon-without-matrices",
            "muon updates matrices between hidden layers, so that there must be some, got a model whose parameters "
            "beside the classifier are convolutions and vectors; take adamw or sgd, or an mlp or a transformer",
        )
    return found


def _ids(modules: Iterable[object]) -> Iterable[int]:
    return [id(p) for module in modules if isinstance(module, nn.Module) for p in module.parameters()]
