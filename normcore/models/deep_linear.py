"""The deep linear network of Santurkar, Tsipras, Ilyas & Madry 2018 (arXiv:1805.11604), appendix A."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from normcore.models.block import Part
from normcore.models.initialize import Linear, initialize
from normcore.norms.norm import Norm
from normcore.refusal import Refusal


class DeepLinear(nn.Module):
    """Square linear layers without biases or activations, a norm after each but the last.

        y = W_k ... W_2 W_1 x

    Without a norm it can be no more than one matrix, and yet its landscape is that of a deep net: the loss is a
    polynomial of degree 2k in the weights. So whatever a norm does to its training it does to the optimization alone.
    A noise stands after every norm. The paper trains 25 layers of 10x10 on the squared error, summed over all samples.

    Args:
        shape: Numbers in a vector, as a tuple of one.
        num_outputs: Numbers in a target, as many as in a vector.
        norm: Makes the norm of a layer.
        noise: Makes the noise of a layer.
        seed: Of the initial weights.
        depth: Linear layers, the last included.
        width: Units of every layer; those of the data.
        init: How weights are drawn, glorot or he.
        device: Where the parameters live.
        dtype: Of the parameters.

    Raises:
        Refusal: The data are of another size, or the norm holds a non-linearity of its own.

    Example:
        >>> from normcore.noise.none import NoNoise
        >>> from normcore.norms.batch import BatchNorm
        >>> model = DeepLinear((10,), 10, norm=BatchNorm, noise=NoNoise, seed=0)
        >>> len(model.blocks), model(torch.zeros(4, 10)).shape
        (24, torch.Size([4, 10]))
    """

    def __init__(
        self,
        shape: tuple[int],
        num_outputs: int,
        *,
        norm: Part,
        noise: Part,
        seed: int,
        depth: int = 25,
        width: int = 10,
        init: str = "glorot",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if (shape[0], num_outputs) != (width, width):
            raise Refusal(
                "layers-are-square",
                f"every layer is square, so that width must be the size of vectors and of targets, got width {width}, "
                f"vectors of {shape[0]} and targets of {num_outputs}; set width to the data's size",
            )
        self.blocks = nn.Sequential()
        for number in range(depth - 1):
            linear = Linear(width, width, bias=False, device=device, dtype=dtype)
            normalize = norm(width)
            _check_linear(f"blocks.{number}.norm", normalize)
            self.blocks.append(nn.Sequential(OrderedDict(linear=linear, norm=normalize, noise=noise(width))))
        self.classifier = Linear(width, width, bias=False, device=device, dtype=dtype)
        initialize(self, init=init, seed=seed)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs `(N, width)` of vectors `(N, width)`."""
        outputs: Tensor = self.classifier(self.blocks(x))
        return outputs


def _check_linear(path: str, norm: nn.Module) -> None:
    if isinstance(norm, Norm) and norm.activates:
        raise Refusal(
            "no-activation-to-replace",
            f"a deep linear net has no activations, got {type(norm).__name__}, which holds its own non-linearity in "
            f"the place of one; take a norm without",
            layer=path,
        )
