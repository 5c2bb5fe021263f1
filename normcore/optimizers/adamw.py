"""Adam with decoupled weight decay."""

from __future__ import annotations

import torch
from torch import nn

from normcore.menu.optimizers import AdamWSpec
from normcore.optimizers.parameter_groups import parameter_groups


def build(spec: AdamWSpec, model: nn.Module) -> torch.optim.AdamW:
    """Torch's AdamW (Loshchilov & Hutter 2019, Algorithm 2) on the model's parameters.

    Fused for the same reasons as `normcore.optimizers.sgd`.

    Example:
        >>> optimizer = build(AdamWSpec(lr=1e-3, beta2=0.95), nn.Linear(2, 3))
        >>> optimizer.param_groups[0]["betas"]
        (0.9, 0.95)
    """
    return torch.optim.AdamW(
        parameter_groups(model, spec.weight_decay, decay_norm_parameters=spec.decay_norm_parameters),
        lr=spec.lr,
        betas=(spec.beta1, spec.beta2),
        eps=spec.eps,
        fused=True,
    )
