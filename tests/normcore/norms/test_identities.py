"""The identities of the norms, in order: equalities that mathematics proves, tried on the layers in float64.

What each layer is besides stands in its own file; here one sees how they are all related.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from normcore.models.residual import ResidualBlock
from normcore.models.resnet import ResNet
from normcore.noise.noise import start_step
from normcore.noise.none import NoNoise
from normcore.noise.santurkar import SanturkarNoise
from normcore.norms.batch import BatchNorm
from normcore.norms.batch_renorm import BatchRenorm
from normcore.norms.dyt import DynamicTanh
from normcore.norms.filter_response import FilterResponseNorm
from normcore.norms.ghost import GhostBatchNorm
from normcore.norms.group import GroupNorm
from normcore.norms.instance import InstanceNorm
from normcore.norms.iterative import IterativeNorm
from normcore.norms.layer import LayerNorm
from normcore.norms.layer_channels import LayerNormChannels
from normcore.norms.local_response import LocalResponseNorm
from normcore.norms.lp import LpNorm
from normcore.norms.none import NoNorm
from normcore.norms.power import PowerNorm
from normcore.norms.rms import RmsNorm
from normcore.norms.switchable import SwitchableNorm
from normcore.norms.sync import SyncBatchNorm
from normcore.norms.whitening import Whitening
from normcore.weights import fixup
from normcore.weights.scaled import ScaledStandardization
from normcore.weights.standardized import WeightStandardization
from normcore.weights.weight_norm import WeightNorm

N, C = 6, 4
ALMOST_ZERO = 1e-30
"""An eps that leaves identities exact; torch refuses zero."""


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(kind, num_features: int = C, **knobs):
    return kind(num_features, dtype=torch.float64, **{"eps": ALMOST_ZERO, **knobs})


def same(actual: Tensor, expected: Tensor, within: float = 1e-11) -> None:
    torch.testing.assert_close(actual, expected, rtol=within, atol=within)


X = 2 + 3 * randn(N, C, 5, 2)
G = randn(N, C, 5, 2, seed=1)
"""Maps, and the gradient of a loss with respect to what becomes of them."""


def test_01_group_layer_instance_ghost_and_batch_norm_are_one_where_their_sets_are():
    """GN(1) = LN, but not LN over channels alone; GN(C) = IN; Ghost(1) = IN; Ghost(N) = BN; BN of one sample = IN."""
    over_all = functional.layer_norm(X, X.shape[1:], eps=ALMOST_ZERO)
    same(exact(GroupNorm, num_groups=1)(X), over_all)
    same(exact(LayerNorm)(X), over_all)
    assert (exact(GroupNorm, num_groups=1)(X) - exact(LayerNormChannels)(X)).abs().max() > 1
    same(exact(GroupNorm, num_groups=C)(X), exact(InstanceNorm)(X))
    same(exact(GhostBatchNorm, virtual_batch_size=1)(X), exact(InstanceNorm)(X))
    same(exact(GhostBatchNorm, virtual_batch_size=N)(X), exact(BatchNorm)(X))
    same(functional.batch_norm(X[:1], None, None, training=True, eps=ALMOST_ZERO), exact(InstanceNorm)(X[:1]))


@pytest.mark.parametrize("kind", [BatchNorm, InstanceNorm])
def test_02_a_norm_with_gamma_sqrt_var_plus_eps_and_beta_mean_is_the_identity(kind):
    """What a norm takes away, its gamma and beta can give back (of one sample for instance norm)."""
    x = X if kind is BatchNorm else X[:1]
    norm = exact(kind, eps=1e-2)
    with torch.no_grad():
        norm.weight.copy_((x.var((0, 2, 3), correction=0) + norm.eps).sqrt())
        norm.bias.copy_(x.mean((0, 2, 3)))
    same(norm(x), x)


def through_batch_norm(eps: float):
    """Of a weight `(C, 7)`, what it makes of some inputs, batch normalized."""
    inputs, norm = randn(50, 7), exact(BatchNorm, eps=eps)
    return lambda weight: norm(inputs @ weight.T)


@pytest.mark.parametrize(
    ("function", "within"),
    [
        (through_batch_norm(ALMOST_ZERO), 1e-11),
        (through_batch_norm(1e-5), 1e-4),
        (WeightStandardization("timm"), 1e-4),
        (ScaledStandardization(randn(C, 7)), 1e-11),
        (WeightNorm(randn(C, 7)), 1e-11),
    ],
    ids=["batch", "batch with eps", "standardized", "scaled", "weight_norm"],
)
def test_03_the_scale_of_a_weight_is_not_seen_and_its_gradient_is_orthogonal_to_it(function, within):
    """f(a W) = f(W), so grad f(a W) = grad f(W) / a, and <grad, W> = 0 for each output unit; up to eps."""

    def gradient(weight: Tensor) -> Tensor:
        weight = weight.detach().requires_grad_()
        (at,) = torch.autograd.grad(function(weight).sin().square().sum(), weight)
        return at

    weight, a = 2 * randn(C, 7, seed=2), 5.0
    same(function(a * weight), function(weight), within)
    same(a * gradient(a * weight), gradient(weight), within)
    inner = (gradient(weight) * weight).sum(1).abs()
    assert (inner <= within * gradient(weight).norm(dim=1) * weight.norm(dim=1)).all()
    assert gradient(weight).norm() > 0.01


def test_04_backward_of_batch_norm_is_the_closed_form():
    """dx = gamma / sigma (g - mean(g) - y mean(g y)); so sum(dx) = 0 and sum(dx y) = 0 for each channel."""
    norm, x, dims = exact(BatchNorm), X.clone().requires_grad_(), (0, 2, 3)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1, C + 1))
    (dx,) = torch.autograd.grad(norm(x), x, G)
    y = exact(BatchNorm, affine=False)(X)
    scale = norm.weight.view(C, 1, 1) / X.var(dims, correction=0, keepdim=True).sqrt()
    same(dx, scale * (G - G.mean(dims, keepdim=True) - y * (G * y).mean(dims, keepdim=True)))
    same(dx.sum(dims), torch.zeros(C, dtype=torch.float64))
    same((dx * y).sum(dims), torch.zeros(C, dtype=torch.float64))


@pytest.mark.parametrize("kind", [BatchNorm, SyncBatchNorm])
def test_05_theorem_4_1_of_santurkar_et_al_is_an_equality(kind):
    """||dL/dx||^2 = gamma^2 / sigma^2 (||g||^2 - <1, g>^2 / m - <g, y>^2 / m) for each channel."""
    norm, x, dims = exact(kind), X.clone().requires_grad_(), (0, 2, 3)
    assert norm.claims.theorem_4_1
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1, C + 1))
    (dx,) = torch.autograd.grad(norm(x), x, G)
    y = exact(BatchNorm, affine=False)(X)
    m = X.numel() // C
    left = G.square().sum(dims) - G.sum(dims) ** 2 / m - (G * y).sum(dims) ** 2 / m
    same(dx.square().sum(dims), norm.weight.detach() ** 2 / X.var(dims, correction=0) * left)


INVARIANT = {
    "batch": (exact(BatchNorm), True),
    "ghost": (exact(GhostBatchNorm, virtual_batch_size=2), True),
    "group": (exact(GroupNorm, num_groups=2), True),
    "instance": (exact(InstanceNorm), True),
    "layer": (exact(LayerNorm), True),
    "lp": (exact(LpNorm), False),
    "switchable": (exact(SwitchableNorm), True),
    "layer_channels": (exact(LayerNormChannels), True),
    "rms": (exact(RmsNorm), False),
    "filter_response": (exact(FilterResponseNorm, tlu=False), False),
}


@pytest.mark.parametrize(("norm", "shift_too"), INVARIANT.values(), ids=INVARIANT)
def test_06_scale_is_not_seen_and_shift_only_where_no_mean_is_taken_from_what_divides(norm, shift_too):
    """f(a x) = f(x) for all; f(x + b) = f(x) for BN, GN, IN, LN, not for RMS, FRN, lp; f(-x) = -f(x) if beta = 0."""
    same(norm(7 * X), norm(X))
    same(norm(-X), -norm(X))
    shifted = norm(X - 9)
    if shift_too:
        same(shifted, norm(X))
    else:
        assert (shifted - norm(X)).abs().max() > 1


def covariance(y: Tensor) -> Tensor:
    return y.transpose(0, 1).flatten(1).cov(correction=0)


def test_07_zca_whitens_by_a_symmetric_matrix_and_newtons_iteration_by_a_scalar_recursion():
    """cov(ZCA x) = I. Of IterNorm it has the eigenvalues l p_T^2 / tr, p <- (3 p - p^3 l / tr) / 2 from p = 1."""
    mixed = (randn(C, C, seed=3) @ X.flatten(2)).view_as(X)
    zca = exact(Whitening, channels_per_group=C, momentum=1.0)
    same(covariance(zca(mixed)), torch.eye(C, dtype=torch.float64), 1e-9)
    same(zca.running_whitening[0], zca.running_whitening[0].mT)
    lengths, axes = torch.linalg.eigh(covariance(mixed))
    shares, p = lengths / lengths.sum(), torch.ones(C, dtype=torch.float64)
    for _ in range(5):
        p = 1.5 * p - 0.5 * p**3 * shares
    newton = exact(IterativeNorm, channels_per_group=C, iterations=5)
    same(covariance(newton(mixed)), axes @ (shares * p**2).diag() @ axes.T)


def test_08_batch_renorm_is_evaluation_between_its_bounds_and_batch_norm_where_they_are_shut():
    """(x - mean_B) / sigma_B r + d = (x - mean) / sigma unclipped; BN for r = 1, d = 0; no gradient through r and d."""
    open_at_once = {"warmup_steps": 0, "r_steps": 0, "d_steps": 0, "eps": 1e-13}
    wide = exact(BatchRenorm, r_max=1e6, d_max=1e6, **open_at_once)
    with torch.no_grad():
        wide.running_mean.copy_(torch.arange(C))
        wide.running_std.copy_(torch.arange(1, C + 1))
    r = (X.std((0, 2, 3), correction=0) / wide.running_std).view(C, 1, 1)
    x = X.clone().requires_grad_()
    evaluated = wide.eval()(X)
    y, batch = wide.train()(x), exact(BatchNorm)(x)
    same(y, evaluated)
    (dx_batch,) = torch.autograd.grad(batch, x, G, retain_graph=True)
    same(torch.autograd.grad(y, x, G)[0], r * dx_batch)
    shut = exact(BatchRenorm, r_max=1.0, d_max=0.0, **open_at_once)(x)
    same(shut, batch)
    same(torch.autograd.grad(shut, x, G)[0], dx_batch)


@pytest.mark.parametrize(("logit", "kind"), list(enumerate([InstanceNorm, LayerNorm, BatchNorm])))
def test_09_switchable_norm_of_one_kind_is_that_kind(logit, kind):
    """All weight on the instance's, the layer's or the batch's statistics is IN, LN or BN, gradients included."""
    norm, x = exact(SwitchableNorm), X.clone().requires_grad_()
    with torch.no_grad():
        for logits in (norm.mean_weight, norm.var_weight):
            logits[logit] = 1e4
    switched, plain = norm(x), exact(kind)(x)
    same(switched, plain)
    same(*(torch.autograd.grad(y, x, G)[0] for y in (switched, plain)))


def test_09_power_norm_by_the_batchs_own_mean_square_is_batch_norm_of_channels_of_mean_zero():
    """mean(x^2) = var(x) where mean(x) = 0; so in the warm-up, gradients included."""
    x = (X - X.mean((0, 2, 3), keepdim=True)).requires_grad_()
    power, batch = (exact(kind)(x) for kind in (PowerNorm, BatchNorm))
    same(power, batch)
    g = G - G.mean((0, 2, 3), keepdim=True)
    same(*(torch.autograd.grad(y, x, g)[0] for y in (power, batch)))


def test_10_torchs_alpha_of_local_response_norm_is_alexnets_times_the_size():
    """LRN(torch, n = 5, alpha = 5e-4, k = 2) = LRN(AlexNet, alpha = 1e-4), and with alpha = 1e-4 it is not."""
    alexnet = LocalResponseNorm(C)(X)
    torchs = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
    same(alexnet, torchs(X))
    torchs.alpha = 1e-4
    assert (alexnet - torchs(X)).abs().max() > 1e-3


def test_11_dynamic_tanh_is_bounded_by_gamma_has_the_slope_alpha_gamma_at_zero_and_sees_no_neighbour():
    """|y - beta| <= |gamma|; dy/dx = alpha gamma at 0; permuting tokens permutes what becomes of them."""
    norm = DynamicTanh(C, alpha=0.7, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1, C + 1))
        norm.bias.copy_(torch.arange(C))
    gamma, beta = norm.weight.detach().view(C, 1, 1), norm.bias.detach().view(C, 1, 1)
    assert ((norm(1e3 * X) - beta).abs() <= gamma).all()
    zero = torch.zeros(1, C, 1, 1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(norm(zero).sum(), zero)
    same(slope[0], 0.7 * gamma)
    order = torch.tensor([4, 2, 0, 3, 1])
    same(norm(X[:, :, order]), norm(X)[:, :, order])


def test_11_fixup_starts_with_branches_of_zero_logits_of_zero_and_the_loss_ln_k():
    """Whatever the depth, a residual net starts as if it had no branches."""
    model = ResNet((3, 32, 32), 10, norm=NoNorm, noise=NoNoise, seed=0, depth=20, width=0.25, dtype=torch.float64)
    fixup.apply(model)
    seen = []
    for block in model.modules():
        if isinstance(block, ResidualBlock):
            block.branch.register_forward_hook(lambda branch, inputs, output: seen.append(output))
    logits = model(randn(5, 3, 32, 32))
    assert len(seen) == 9
    assert not any(output.any() for output in seen)
    assert not logits.any()
    same(functional.cross_entropy(logits, torch.arange(5)), torch.tensor(10, dtype=torch.float64).log())


def test_11_scaled_filters_have_mean_zero_and_the_norm_of_their_gain():
    """Each output unit of a scaled map: sum(w) = 0 and ||w|| = gamma g, whatever the weight that is learned."""
    layer = nn.Conv2d(3, C, 5, dtype=torch.float64)
    parametrize.register_parametrization(layer, "weight", ScaledStandardization(layer.weight, gamma=1.7))
    units = layer.weight.flatten(1)
    same(units.sum(1), torch.zeros(C, dtype=torch.float64))
    same(units.norm(dim=1), torch.full((C,), 1.7, dtype=torch.float64))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_12_batch_norm_over_ranks_is_batch_norm_of_their_batches_together(ranks):
    """Sync over P shares is BN of all samples, in value, gradient and running statistics; 4 shares of 6 are unequal."""
    x = X.clone().requires_grad_()
    sync, batch = exact(SyncBatchNorm, virtual_ranks=ranks), exact(BatchNorm)
    same(sync(x), batch(x))
    same(*(torch.autograd.grad(norm(x), x, G)[0] for norm in (sync, batch)))
    same(sync.running_var, batch.running_var)


def test_12_root_mean_square_norm_of_channels_of_mean_zero_is_layer_norm_over_channels():
    """RMS(x) = LN(x) where mean(x) = 0, and else it is not."""
    centred = X - X.mean(1, keepdim=True)
    same(exact(RmsNorm)(centred), exact(LayerNormChannels)(centred))
    assert (exact(RmsNorm)(X) - exact(LayerNormChannels)(X)).abs().max() > 0.5


def test_13_noise_after_batch_norm_gives_each_channel_the_steps_mean_and_variance():
    """Without jitter exactly: mean = mu_t and var = sigma_t^2 v. With it, and from step to step, see test_santurkar."""
    norm, noise = exact(BatchNorm, eps=1e-3), SanturkarNoise(C, mean_jitter=0, scale_jitter=0)
    dims = (0, 2, 3)
    v = X.var(dims, correction=0)
    for step in range(3):
        start_step(noise, seed=0, step=step)
        mu = noise(torch.zeros(1, C, dtype=torch.float64))[0]
        sigma = noise(torch.ones(1, C, dtype=torch.float64))[0] - mu
        y = noise(norm(X))
        same(y.mean(dims), mu)
        same(y.var(dims, correction=0), sigma**2 * v / (v + norm.eps))
