"""Initial values, drawn per parameter name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from normcore.seeds import generator

INITS: dict[str, Callable[..., Tensor]] = {"glorot": nn.init.xavier_uniform_, "he": nn.init.kaiming_normal_}


class Linear(nn.Linear):
    """A fully connected layer without values until `initialize` draws them."""

    def reset_parameters(self) -> None:
        """Nothing: torch's own values would cost time and move the global generator, only to be overwritten."""


class Conv2d(nn.Conv2d):
    """A convolution without values until `initialize` draws them."""

    def reset_parameters(self) -> None:
        """Nothing: torch's own values would cost time and move the global generator, only to be overwritten."""


class Embedding(nn.Embedding):
    """A vector for each id, and zeros for id 0, which is padding; without values until `initialize` draws them."""

    def __init__(
        self, vocabulary: int, width: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(vocabulary, width, padding_idx=0, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Nothing: torch's own values would cost time and move the global generator, only to be overwritten."""


def initialize(model: nn.Module, *, init: str, seed: int) -> None:
    """Draw the weights of all linear and convolutional layers and embeddings, and set their biases to zero.

    - `glorot`: U(-a, a) with a = sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010, equation 16);
    - `he`: N(0, 2 / fan_in) (He et al. 2015, equation 10);
    - of an embedding, either way: N(0, 1), and zero for padding.

    Each weight has a stream of its own, `(seed, "init", name)`, so two models share the initial values of all
    parameters whose names and shapes they share. Values are drawn on the CPU in float32 and then converted, so they
    are the same on every device and in every precision. The global generators are left alone.

    Example:
        >>> small, large = nn.Sequential(nn.Linear(3, 4)), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        >>> initialize(small, init="glorot", seed=1)
        >>> initialize(large, init="glorot", seed=1)
        >>> bool((small[0].weight == large[0].weight).all())
        True
    """
    for path, module in model.named_modules():
        # On the meta device there is nothing to set, and a net too large for this machine must not be drawn.
        if not isinstance(module, nn.Linear | nn.Conv2d | Embedding) or module.weight.is_meta:
            continue
        weight = torch.empty(module.weight.shape, dtype=torch.float32)
        draw = nn.init.normal_ if isinstance(module, Embedding) else INITS[init]
        draw(weight, generator=generator("cpu", seed, "init", f"{path}.weight"))
        with torch.no_grad():
            module.weight.copy_(weight)
            if isinstance(module, Embedding):
                module.weight[0].zero_()
            elif module.bias is not None:
                module.bias.zero_()
