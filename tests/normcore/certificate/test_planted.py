"""Layers that are wrong in one way each: the certificate finds the row, and blames nothing else."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normcore.certificate.certify import GROUPS, certify

QUICK = [group for group in GROUPS if group != "tracing"]


class Twin(nn.Module):
    """Batch norm as one writes it down; each wrong layer overrides one line of it."""

    def __init__(self, num_features: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, 0.1
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("spread", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.promote_types(x.dtype, self.statistics_dtype(x))
        values = x.to(kept)
        dims = [dim for dim in range(x.dim()) if dim != 1]
        if self.moves():
            mean, var = self.moments(values, dims)
            m = x.numel() // x.shape[1]
            with torch.no_grad():
                self.mean.lerp_(mean.to(self.mean.dtype), self.momentum)
                self.spread.lerp_(self.held(var, m).to(self.spread.dtype), self.momentum)
        if not self.training:
            mean, var = self.mean.to(kept), self.spread.to(kept)
        shape = (1, -1, *(1 for _ in x.shape[2:]))
        y = self.normalized(values - mean.view(shape), var.view(shape))
        return self.end((y * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype))

    def statistics_dtype(self, x: Tensor) -> torch.dtype:
        return torch.float32

    def moves(self) -> bool:
        return self.training

    def moments(self, x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
        mean = x.mean(dims, keepdim=True)
        return mean.flatten(), (x - mean).square().mean(dims)

    def held(self, var: Tensor, m: int) -> Tensor:
        return var * m / (m - 1)

    def normalized(self, centred: Tensor, var: Tensor) -> Tensor:
        return centred * (var + self.eps).rsqrt()

    def end(self, y: Tensor) -> Tensor:
        return y


class HoldsBiased(Twin):
    def held(self, var: Tensor, m: int) -> Tensor:
        return var


class DividesByUnbiased(Twin):
    def moments(self, x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
        var, mean = torch.var_mean(x, dims, correction=1)
        return mean, var

    def held(self, var: Tensor, m: int) -> Tensor:
        return var


class EpsOutside(Twin):
    def normalized(self, centred: Tensor, var: Tensor) -> Tensor:
        # Not at all differentiable at zero, so that only the convention is wrong here.
        return centred / (var.clamp(min=1e-30).sqrt() + self.eps)


class OtherEps(Twin):
    def normalized(self, centred: Tensor, var: Tensor) -> Tensor:
        return centred * (var + 3 * self.eps).rsqrt()


class OtherMomentum(Twin):
    def held(self, var: Tensor, m: int) -> Tensor:
        # Called once a pass, before the running variance moves: half a step here, and a whole one there.
        return super().held(var, m) + (self.spread - super().held(var, m)) * 0.5


class HalfStatistics(Twin):
    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, eps=1e-6)

    def statistics_dtype(self, x: Tensor) -> torch.dtype:
        return x.dtype


class OnePass(Twin):
    def moments(self, x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
        mean = x.mean(dims)
        return mean, (x.square().mean(dims) - mean.square()).clamp(min=0)


class DropsChannelsLast(Twin):
    def end(self, y: Tensor) -> Tensor:
        return y.contiguous()


class WidensHalf(Twin):
    def end(self, y: Tensor) -> Tensor:
        return y.to(torch.promote_types(y.dtype, torch.float32))


class _Wrong(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 1.01 * gradient

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 1.01 * tangent


class WrongBackward(Twin):
    def end(self, y: Tensor) -> Tensor:
        return _Wrong.apply(y)


class _Square(torch.autograd.Function):
    """The square, whose backward pass takes the input for a constant."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor) -> Tensor:
        return y.square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient * ctx.saved_tensors[0].detach()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 2 * tangent * ctx.saved_tensors[0]


class WrongSecondDerivative(Twin):
    def moments(self, x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
        mean = x.mean(dims, keepdim=True)
        return mean.flatten(), _Square.apply(x - mean).mean(dims)


class MovesInEvaluation(Twin):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not self.training:
            self.mean.add_(0.1)
        return y


class CountsInEvaluation(Twin):
    calls = 0

    def end(self, y: Tensor) -> Tensor:
        self.calls += not self.training
        return y


class BatchInEvaluation(Twin):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        self.train()
        kept = self.mean.clone(), self.spread.clone()
        y = super().forward(x)
        self.mean.copy_(kept[0])
        self.spread.copy_(kept[1])
        self.eval()
        return y


class LouderInEvaluation(Twin):
    def end(self, y: Tensor) -> Tensor:
        return y if self.training else 1.01 * y


class OtherEpsInOneChannel(Twin):
    def normalized(self, centred: Tensor, var: Tensor) -> Tensor:
        eps = torch.full_like(var, self.eps)
        eps.view(-1)[0] *= 3
        return centred * (var + eps).rsqrt()


class OtherInLargeBatches(Twin):
    def end(self, y: Tensor) -> Tensor:
        return 1.01 * y if len(y) > 8 else y


class Leaves(Twin):
    """As a script's `sys.exit(main())` does."""

    def end(self, y: Tensor) -> Tensor:
        if y.dtype == torch.bfloat16:
            raise SystemExit(0)
        return y


class Random(Twin):
    def end(self, y: Tensor) -> Tensor:
        return y + 1e-3 * torch.randn_like(y)


class Flattens(Twin):
    def end(self, y: Tensor) -> Tensor:
        return y.flatten(1)


class NotFinite(Twin):
    def normalized(self, centred: Tensor, var: Tensor) -> Tensor:
        return centred / var.sqrt()


class ForgetsState(Twin):
    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.register_buffer("spread", torch.ones(num_features), persistent=False)


class NoRunningMean(Twin):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.zero_()
        return super().forward(x)


HALF = {"half precision inputs of 200 +- 50", "half precision inputs of 1e-4"}
PLANTED = [
    (HoldsBiased, {"running variance"}),
    (DividesByUnbiased, {"variance", "Santurkar's theorem 4.1"}),
    (EpsOutside, {"eps", "scale invariance", "gradient orthogonal to weights before it", "Santurkar's theorem 4.1"}),
    (OtherEps, {"value of eps"}),
    (OtherMomentum, {"weight of the newest batch"}),
    (HalfStatistics, HALF),
    (OnePass, {"float32 inputs of 1000 +- 1"}),
    (DropsChannelsLast, {"memory format"}),
    (WrongBackward, {"gradient", "Santurkar's theorem 4.1"}),
    (WrongSecondDerivative, {"second derivative"}),
    (MovesInEvaluation, {"state in evaluation"}),
    (CountsInEvaluation, {"state in evaluation"}),
    (BatchInEvaluation, {"statistics in evaluation", "vmap over samples in evaluation"}),
    (LouderInEvaluation, {"evaluation approaches training", "running variance"}),
    (OtherEpsInOneChannel, {"value of eps"}),
    (OtherInLargeBatches, {"same samples three times over"}),
    (Leaves, {"dtype", "dtype of half precision inputs", "autocast", *HALF}),
    (Random, {"same twice"}),
    (Flattens, {"shape"}),
    (NotFinite, {"inputs without variance", "eps"}),
    (ForgetsState, {"state dict"}),
    (NoRunningMean, {"evaluation approaches training", "weight of the newest batch"}),
]


def test_the_twin_itself_passes_as_batch_norm():
    certificate = certify(Twin(8), like="batch", groups=QUICK)
    assert certificate.passed, certificate.table()
    assert certificate.row("running variance").observed == "unbiased"


@pytest.mark.parametrize(("layer", "rows"), PLANTED, ids=lambda part: part.__name__ if isinstance(part, type) else "")
def test_a_wrong_layer_fails_in_its_row_and_in_no_other(layer, rows):
    certificate = certify(layer(8), like="batch", groups=QUICK)
    assert {row.property for row in certificate.failures} == rows, certificate.table()
