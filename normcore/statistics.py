"""The statistics that batch norm evaluates with, computed anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normcore.noise.noise import Noise
from normcore.probes.footprints import no_footprints

Moments = dict[nn.Module, list[tuple[int, Tensor, Tensor]]]
"""For each layer, of each batch: values per channel, their mean and their biased variance, in float64."""


def has_running_statistics(module: nn.Module) -> bool:
    """Whether a layer normalizes by running statistics in evaluation."""
    return isinstance(getattr(module, "running_mean", None), Tensor)


@contextmanager
def recomputed_statistics(
    model: nn.Module, infer: Callable[[Tensor], object], batches: Iterable[Tensor]
) -> Iterator[None]:
    """A scope in which running statistics are those of `batches` without noise; then they are what they were.

    Running statistics gathered under noise describe other activations than an evaluation without noise meets, and
    misjudge the model. Here the batches pass once through the model in training mode with its noise off, each layer
    normalizing by the batch as in training, and of every layer's input the moments are pooled over the batches b:

        mean = sum_b n_b m_b / n        var = sum_b n_b (v_b + (m_b - mean)^2) / n

    with n_b values per channel, their mean m_b and biased variance v_b, and n = sum_b n_b: mean and variance of all
    values together, so batches may differ in size. (Averaging the v_b, as torch's `update_bn` does, misses the variance
    between batches.) Moments are taken in float32 or better and pooled in float64. Costs a forward pass per batch.

    Args:
        model: The model; it is left as it was found, in parameters, buffers, modes and random state.
        infer: Runs it on images.
        batches: Images of the training set.
    """
    with no_footprints(model):
        moments: Moments = {module: [] for module in model.modules() if has_running_statistics(module)}
        model.train()
        for module in model.modules():
            if isinstance(module, Noise):
                module.eval()
        handles = [layer.register_forward_pre_hook(partial(_take_moments, moments)) for layer in moments]
        try:
            with torch.no_grad():
                for images in batches:
                    infer(images)
        finally:
            for handle in handles:
                handle.remove()
        for layer, seen in moments.items():
            mean, var = _pool(seen)
            layer.get_buffer("running_mean").copy_(mean)
            layer.get_buffer("running_var").copy_(var)
        yield


def _take_moments(moments: Moments, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    values = inputs[0].transpose(0, 1).flatten(1)
    var, mean = torch.var_mean(values.to(torch.promote_types(values.dtype, torch.float32)), dim=1, correction=0)
    moments[layer].append((values.shape[1], mean.double(), var.double()))


def _pool(seen: list[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    counts = torch.tensor([count for count, _, _ in seen], dtype=torch.float64, device=seen[0][1].device)
    weights = (counts / counts.sum())[:, None]
    means, variances = torch.stack([mean for _, mean, _ in seen]), torch.stack([var for _, _, var in seen])
    mean = (weights * means).sum(0)
    return mean, (weights * (variances + (means - mean) ** 2)).sum(0)
