"""Products with the Hessian against finite differences of gradients, for every norm and weight method on the menu."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from normcore.build import build_model
from normcore.learner import Learner
from normcore.norms.batch_renorm import BatchRenorm
from normcore.norms.power import PowerNorm
from normcore.probes.hessian import Hessian, hessian_of, is_held
from normcore.probes.moment import Moment
from normcore.spec import MENU, JobSpec, kind_of
from normcore.statistics.freeze import freeze_statistics

C = 4
PAST_WARMUP = {"batch_renorm": {"warmup_steps": 0, "r_steps": 0, "d_steps": 0}, "power": {"warmup_steps": 0}}
KNOBS = {
    "ghost": [{"virtual_batch_size": 2}],
    "sync": [{"virtual_ranks": 2}],
    "group": [{"num_groups": 2}],
    "evonorm_s0": [{"num_groups": 2}],
    "lp": [{"p": "1"}, {"p": "2"}, {"p": "inf"}],
    "filter_response": [{}, {"learned_eps": True}],
    "whitening": [{"channels_per_group": 2}, {"channels_per_group": 2, "method": "pca"}],
    "iterative": [{"channels_per_group": 2}],
    "batch_renorm": [{}, PAST_WARMUP["batch_renorm"]],
    "power": [{}, PAST_WARMUP["power"]],
}
CASES = [(kind_of(spec), knobs) for spec in MENU["norm"] for knobs in KNOBS.get(kind_of(spec), [{}])]
SPECS = {kind_of(spec): spec for spec in MENU["norm"]}


class Net(nn.Module):
    """Two norms below each other, so that there is a way through the derivatives of both."""

    def __init__(self, norm):
        super().__init__()
        layers = [nn.Conv2d(1, C, 3), norm(), nn.Tanh(), nn.Conv2d(C, C, 2), norm(), nn.Tanh(), nn.Flatten()]
        self.layers = nn.Sequential(*layers, nn.Linear(C * 4, 3)).double()

    def forward(self, x):
        return self.layers(x)


def net(kind, knobs):
    torch.manual_seed(0)
    spec = SPECS[kind](**knobs)
    model = Net(lambda: spec.part()(C, **spec.knobs()))
    with torch.no_grad():
        for parameter in model.parameters():
            # Scales and shifts that are not special, or their derivatives might hide one another.
            parameter.add_(0.1 * torch.randn_like(parameter))
        for norm in model.modules():
            if isinstance(norm, PowerNorm):
                norm.running_square.fill_(0.7)
                norm.nu.fill_(0.3)
    return model


def loss_of(model, x, y):
    """The training loss, always from the same memory of earlier batches."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def loss():
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        return functional.cross_entropy(model(x), y)

    return loss


def moment_of(model, loss):
    def plain(ahead=0, dtype=None):
        return loss

    return Moment(1, 0.1, model, loss, plain, tuple(p.detach().clone() for p in model.parameters()))


def flat(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def slope(model, loss, direction, epsilon=1e-5):
    """The central difference of the gradient along a direction, and the gradient in the middle."""
    parameters = list(model.parameters())
    sizes = [parameter.numel() for parameter in parameters]

    def gradient(by):
        with torch.no_grad():
            for parameter, piece in zip(parameters, direction.split(sizes), strict=True):
                parameter.add_(piece.view_as(parameter), alpha=by)
        found = torch.autograd.grad(loss(), parameters)
        with torch.no_grad():
            for parameter, piece in zip(parameters, direction.split(sizes), strict=True):
                parameter.sub_(piece.view_as(parameter), alpha=by)
        return flat(found)

    return (gradient(epsilon) - gradient(-epsilon)) / (2 * epsilon), gradient(0.0)


def directions(model, count=2):
    size = sum(parameter.numel() for parameter in model.parameters())
    return torch.randn(count, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def inputs():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(4, 1, 5, 5, generator=generator, dtype=torch.float64), torch.arange(4) % 3


def asymmetry(images, vectors):
    """Of u^T H v and v^T H u, relative."""
    first, second = vectors[0] @ images[1], vectors[1] @ images[0]
    return float((first - second).abs() / (vectors[0].norm() * images[1].norm()))


@pytest.mark.parametrize(("kind", "knobs"), CASES, ids=str)
@pytest.mark.parametrize("bn_mode", ["batch", "frozen"])
def test_products_are_slopes_of_the_gradient_and_symmetric_for_every_norm(kind, knobs, bn_mode, monkeypatch):
    model = net(kind, knobs)
    loss, vectors = loss_of(model, *inputs()), directions(model)
    with hessian_of(moment_of(model, loss), bn_mode=bn_mode, precision="training") as hessian:
        images = [hessian.product(vector) for vector in vectors]
        again = hessian.product(vectors[0])
        gradient = hessian.gradient
    held = bn_mode == "batch" and knobs == PAST_WARMUP.get(kind)
    if bn_mode == "frozen" or (held and kind == "power"):
        frozen = freeze_statistics(model)
    if held and kind == "batch_renorm":
        hold_corrections(model, loss, monkeypatch)
    expected, g = slope(model, loss, vectors[0])
    torch.testing.assert_close(images[0], expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
    torch.testing.assert_close(gradient, g, rtol=1e-10, atol=1e-12)
    assert asymmetry(images, vectors) < 1e-12
    assert torch.equal(again, images[0])
    assert float(images[0].norm()) > 1e-3
    if bn_mode == "frozen":
        frozen.thaw()


def hold_corrections(model, loss, monkeypatch):
    """Batch renormalization with the corrections of this point, wherever it is computed."""
    for norm in model.modules():
        if isinstance(norm, BatchRenorm):
            kept = []
            own = norm._correction

            def correction(mean, sigma, kept=kept, own=own):
                if not kept:
                    kept.append(own(mean, sigma))
                return kept[0]

            monkeypatch.setattr(norm, "_correction", correction)
    loss()


def test_what_trains_past_the_warmup_of_batch_renorm_has_no_hessian():
    """The reason for holding its corrections: the slope of the gradient that trains is not symmetric."""
    model = net("batch_renorm", PAST_WARMUP["batch_renorm"])
    loss, vectors = loss_of(model, *inputs()), directions(model)
    assert asymmetry([slope(model, loss, vector)[0] for vector in vectors], vectors) > 1e-4


def test_only_these_norms_hold_anything():
    nets = {kind: net(kind, knobs) for kind, knobs in CASES}
    assert {kind for kind, model in nets.items() if any(map(is_held, model.modules()))} == set(PAST_WARMUP)


@pytest.mark.parametrize("kind", [kind_of(spec) for spec in MENU["weight"]])
def test_products_are_slopes_of_the_gradient_for_every_weight_method(kind):
    kinds = {"model": {"kind": "resnet", "depth": 8, "width": 0.125}, "norm": {"kind": "none"}}
    if kind != "fixup":
        kinds = {"model": {"kind": "mlp", "hidden": [5, 4]}, "norm": {"kind": "batch"}}
    spec = JobSpec.model_validate(
        {"data": {"kind": "digits", "size": 8}, "weight": {"kind": kind}, "precision": "float64"} | kinds
    )
    model = build_model(spec)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    x = torch.randn(4, 1, 8, 8, generator=generator, dtype=torch.float64)
    loss, vectors = loss_of(model, x, torch.arange(4)), directions(model)
    hessian = Hessian(loss, list(model.parameters()))
    images = [hessian.product(vector) for vector in vectors]
    expected = slope(model, loss, vectors[0], epsilon=1e-6)[0]
    torch.testing.assert_close(images[0], expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
    assert asymmetry(images, vectors) < 1e-12


ROWS, TOKENS = ({"kind": "digits", "size": 8, "arrange": arrange} for arrange in ("rows", "tokens"))
TRANSFORMER = {"kind": "transformer", "depth": 1, "width": 8, "heads": 2, "dropout": 0.2}
JOBS = {
    "lstm": {"model": {"kind": "lstm", "hidden": 4, "dropout": 0.3}, "norm": {"kind": "layer"}, "data": ROWS},
    "transformer": {"model": TRANSFORMER, "norm": {"kind": "layer_channels"}, "data": TOKENS},
    "noise": {
        "model": {"kind": "mlp", "hidden": [5]},
        "noise": {"kind": "santurkar"},
        "accumulation": 2,
        "data": {"kind": "digits", "size": 8},
    },
    "regression": {"model": {"kind": "deep_linear", "depth": 3}, "data": {"kind": "gaussian"}},
}


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("precision", ["float64", "bfloat16", "float16"])
def test_products_are_those_of_the_step_that_trains_whatever_the_model_and_its_precision(name, precision, folders):
    """In half precision they are those of float32."""
    spec = {"batch_size": 6, "precision": precision} | JOBS[name]
    learner = Learner(JobSpec.model_validate(spec), torch.device("cpu"), folders)
    learner.begin()
    model = learner.model

    def plain(ahead=0, dtype=None):
        return learner.plain_replay(3 + ahead, None, dtype)

    origin = tuple(parameter.detach().clone() for parameter in model.parameters())
    moment = Moment(3, 0.1, model, learner.replay(3), plain, origin)
    vectors = directions(model)
    with hessian_of(moment, bn_mode="batch", precision="training") as hessian:
        assert hessian.gradient.dtype == (torch.float64 if precision == "float64" else torch.float32)
        image = hessian.product(vectors[0].to(hessian.gradient)).double()
    if precision == "float64":
        loss, close = plain(), 1e-6
    else:
        model.double()
        loss, close = plain(dtype=torch.float64), 1e-3
    expected = slope(model, loss, vectors[0])[0]
    torch.testing.assert_close(image, expected, rtol=close, atol=close * float(expected.abs().max()))


def test_parameters_without_gradient_are_left_out_and_those_without_curvature_have_zeros():
    bent, flat_one, unused, frozen = (
        torch.ones(2, requires_grad=name != "frozen") for name in ("a", "b", "c", "frozen")
    )
    hessian = Hessian(lambda: (bent**3).sum() + flat_one.sum() + frozen.sum(), [bent, flat_one, unused, frozen])
    assert hessian.size == 4
    assert hessian.gradient.tolist() == [3, 3, 1, 1]
    assert hessian.product(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [6, 12, 0, 0]
    linear = Hessian(flat_one.sum, [flat_one])
    assert linear.product(torch.ones(2)).tolist() == [0, 0]


def test_a_scope_leaves_no_hook_behind():
    model = net("power", PAST_WARMUP["power"])
    with hessian_of(moment_of(model, loss_of(model, *inputs())), bn_mode="frozen", precision="training"):
        assert any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in model.modules())
