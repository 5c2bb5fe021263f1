"""Fixup (Zhang et al. 2019, arXiv:1901.09321): deep residual nets without norms, by their initial values."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from normcore.models.block import ACTIVATIONS
from normcore.models.plain import Plain
from normcore.models.residual import ResidualBlock
from normcore.models.timm import Timm
from normcore.norms.none import NoNorm
from normcore.norms.norm import Norm, at_least_float32
from normcore.refusal import Refusal
from normcore.weights.weight import check_no_cell, maps


class Scalar(nn.Module):
    """One number that is learned for a whole map, at a tenth of the lr and without weight decay."""

    lr_multiple: ClassVar[float] = 0.1
    """Of the lr, as in the authors' code."""


class ScalarBias(Scalar):
    """Adds one number, which starts at zero.

    Example:
        >>> ScalarBias()(torch.ones(2)).tolist()
        [1.0, 1.0]
    """

    def __init__(self, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros((), device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """The sum, in the shape and dtype of x."""
        return x + self.bias


class ScalarMultiplier(Scalar):
    """Multiplies by one number, which starts at one.

    Example:
        >>> ScalarMultiplier()(torch.ones(2)).tolist()
        [1.0, 1.0]
    """

    def __init__(self, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """The product, in the shape and dtype of x."""
        return x * self.scale


def apply(model: nn.Module) -> None:
    """Start a model as Fixup does, and give it the numbers that stand for a norm's scales and shifts.

    1. The classifier and the last map of each residual branch start at zero: every branch gives zero, every logit is
       zero, and the loss is the logarithm of the number of classes.
    2. The other maps of a branch are scaled by L^(-1 / (2m - 2)), L the number of branches and m that of maps in one:
       1/sqrt(L) for two, L^(-1/4) for three. What they are scaled from is what the model's `init` drew; the paper's
       is `he`.
    3. A number is added before each map and before each activation, and each branch is multiplied by one. These numbers
       take the place of the maps' own biases, are learned at a tenth of the lr and not decayed.

    A model without branches (mlp, vgg) has nothing for the depth to scale and nothing to multiply: what is left there
    is the model's own start with a classifier at zero, and one number where each map had a bias per channel. No weight
    is reparametrized anywhere.

    Args:
        model: One of ours, its values drawn.

    Raises:
        Refusal: A norm follows the last map of a branch: it would divide zeros by their own scale; or the model is a
            plain net, which is there to be compared with what has branches; or its maps do not stand in sequences.
    """
    if isinstance(model, Timm):
        raise Refusal(
            "no-branches",
            "fixup must know the branches that it starts at zero, got a net of timm, whose it does not; take the "
            "resnet, or another weight method",
            layer="net",
        )
    if isinstance(model, Plain):
        raise Refusal(
            "no-branches",
            "fixup starts residual branches at zero, so that there must be some, got a plain net, which has none; take "
            "the resnet of the same depth, or another weight method",
            layer="blocks.0",
        )
    check_no_cell(model)
    _check_sequences(model)
    for path, block in model.named_modules():
        if isinstance(block, ResidualBlock):
            _check_no_norm_after_zero(path, block)
    layers = maps(model)
    for layer in layers.values():
        layer.bias = None
    branches = [block for block in model.modules() if isinstance(block, ResidualBlock)]
    with torch.no_grad():
        for block in branches:
            _start(list(maps(block.branch).values()), len(branches))
        for parameter in model.get_submodule("classifier").parameters():
            parameter.zero_()
    _add_scalars(model, branches)


def _check_sequences(model: nn.Module) -> None:
    for path in maps(model):
        holder = model.get_submodule(path.rpartition(".")[0])
        if not isinstance(holder, nn.Sequential):
            raise Refusal(
                "maps-not-in-sequence",
                f"fixup puts a number before each map and each activation, and can where they stand in a sequence, got "
                f"a map in {type(holder).__name__}; take another weight method, or a resnet",
                layer=path,
            )


def _check_no_norm_after_zero(path: str, block: ResidualBlock) -> None:
    last = f"{len(block.branch) - 1}"
    for name, part in block.branch.get_submodule(last).named_children():
        if isinstance(part, Norm) and not isinstance(part, NoNorm):
            raise Refusal(
                "norm-after-zero",
                f"fixup starts the last map of a branch at zero, so that no norm may follow it, got "
                f"{type(part).__name__}; take norm none, or activation_placement pre",
                layer=f"{path}.branch.{last}.{name}",
            )


def _start(layers: list[nn.Linear | nn.Conv2d], num_branches: int) -> None:
    *first, last = layers
    for layer in first:
        layer.weight.mul_(num_branches ** (-1 / (2 * len(layers) - 2)))
    last.weight.zero_()


def _add_scalars(model: nn.Module, branches: list[ResidualBlock]) -> None:
    like = next(model.get_submodule("classifier").parameters())
    device, dtype = like.device, at_least_float32(like.dtype)
    bias = partial(ScalarBias, device=device, dtype=dtype)
    activations = tuple(ACTIVATIONS.values())
    for sequence in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        for name, part in list(sequence.named_children()):
            # Taken out and put back, each behind the number that goes before it.
            delattr(sequence, name)
            if isinstance(part, (nn.Linear, nn.Conv2d, *activations)):
                sequence.add_module(f"before_{name}", bias())
            sequence.add_module(name, part)
    for block in branches:
        last = block.branch[-1]
        last.add_module("multiplier", ScalarMultiplier(device=device, dtype=dtype))
        if isinstance(block.activation, activations):
            last.add_module("before_activation", bias())
    # Pooling and flattening in between do not see a number that is added to everything.
    model.get_submodule("blocks").add_module("before_classifier", bias())
