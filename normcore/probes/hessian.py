"""The Hessian of a training loss, as products with vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from normcore.menu.probe import BnMode
from normcore.norms.power import PowerNorm
from normcore.probes.moment import Moment, Replay
from normcore.pulse import beat


class Hessian:
    """H, the matrix of second derivatives of a loss at the parameters as they stand, by double backward.

        H v = d(g^T v) / d theta,    g = dL / d theta

    The graph of g is built once and kept; each product is one more backward pass through it. That takes the memory of
    the graphs of a forward and a backward pass; building them anew for each product would take a quarter to a half
    longer. A product is always of the same function, with the same batch and the same noise.

    Args:
        loss: Computes L, as a plain graph.
        parameters: theta. Those that L does not depend on are left out.
        average: Replaces values of this device by their means over the devices, in place.

    Attributes:
        size: P, the number of parameters that count.
        gradient: g, `(P,)`.

    Example:
        >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> hessian = Hessian(lambda: (theta**3).sum(), [theta])
        >>> hessian.gradient, hessian.product(torch.tensor([1.0, 1.0]))
        (tensor([ 3., 12.]), tensor([ 6., 12.]))
    """

    def __init__(
        self,
        loss: Replay,
        parameters: Sequence[Tensor],
        average: Callable[[Sequence[Tensor]], None] = lambda _: None,
    ) -> None:
        self._average = average
        learned = [parameter for parameter in parameters if parameter.requires_grad]
        found = torch.autograd.grad(loss(), learned, create_graph=True, allow_unused=True)
        pairs = [(parameter, each) for parameter, each in zip(learned, found, strict=True) if each is not None]
        self._parameters, self._gradients = [each[0] for each in pairs], [each[1] for each in pairs]
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self.size = sum(self._sizes)
        self.gradient = self._whole([each.detach() for each in self._gradients])

    def product(self, vector: Tensor) -> Tensor:
        """H v, `(P,)`, of v, `(P,)`."""
        beat()
        pieces = zip(self._gradients, torch.split(vector, self._sizes), strict=True)
        # Where the loss is linear in a parameter, its gradient has no graph.
        bent = [(gradient, piece.view(gradient.shape)) for gradient, piece in pieces if gradient.requires_grad]
        rows: Sequence[Tensor | None] = [None] * len(self._parameters)
        if bent:
            outputs, weights = zip(*bent, strict=True)
            rows = torch.autograd.grad(outputs, self._parameters, weights, retain_graph=True, allow_unused=True)
        pairs = zip(self._parameters, rows, strict=True)
        return self._whole([torch.zeros_like(parameter) if row is None else row for parameter, row in pairs])

    def _whole(self, rows: list[Tensor]) -> Tensor:
        flat = torch.cat([row.reshape(-1) for row in rows])
        self._average([flat])
        return flat


@contextmanager
def hessian_of(moment: Moment, *, bn_mode: BnMode, precision: Literal["training", "float64"]) -> Iterator[Hessian]:
    """A scope with the Hessian of the loss of a step: of its batch, its noise and its dropout.

    It is computed in the dtype of the parameters and without autocast: of what is differentiated twice the roundings of
    half precision would be a large part, and float16 would lose it altogether. Attention is computed by matrix
    products, since fused kernels have no second derivatives.

    What a norm remembers of earlier batches is a constant: see `is_held`.
    """
    with ExitStack() as scopes:
        scopes.enter_context(moment.function(bn_mode=bn_mode, precision=precision))
        scopes.enter_context(sdpa_kernel(SDPBackend.MATH))
        for module in moment.model.modules():
            if isinstance(module, PowerNorm):
                scopes.enter_context(_differentiated_as_it_is(module))
        parameters = list(moment.model.parameters())
        yield Hessian(moment.plain(dtype=parameters[0].dtype), parameters, moment.average)


def is_held(module: nn.Module) -> bool:
    """Whether a layer's backward pass is by design not the derivative of its forward pass, and depends on what the
    layer remembers of earlier batches, which a Hessian then takes as a constant.

    - The corrections r and d of batch renormalization are held still, as its own backward pass does it, which for that
      reason is the gradient of no function: the slope of what trains is not symmetric.
    - So is the running mean square that power norm divides by after its warm-up. Its backward pass also subtracts
      nu x^, the gradient of nu ||x^||^2 / 2 for a nu that moves at every backward pass; gradient and Hessian here are
      those of the loss, without. In micro-batches all of them divide by what the first does.
    """
    claims = getattr(module, "claims", None)
    return getattr(module, "remembers", False) and claims is not None and claims.gradient == "approximate"


@contextmanager
def _differentiated_as_it_is(norm: PowerNorm) -> Iterator[None]:
    """A scope in which a power norm past its warm-up has the derivatives of its forward pass: those of evaluation,
    which divides by the same running mean square.
    """
    modes: list[bool] = []

    def enter(module: nn.Module, _: tuple[Any, ...]) -> None:
        modes.append(module.training)
        module.training = module.training and bool(norm.num_batches_tracked < norm.warmup_steps)

    def leave(module: nn.Module, _: tuple[Any, ...], __: Any) -> None:
        module.training = modes.pop()

    handles = norm.register_forward_pre_hook(enter, prepend=True), norm.register_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
