"""The activations probe: planted layers are found, and what norms do to activations is seen."""

import math

import pytest
import torch
from torch import nn

from normcore.build import build_model
from normcore.learner import Learner
from normcore.noise.noise import start_step
from normcore.probes.activations import ActivationsProbe
from normcore.probes.activations_figure import draw
from normcore.probes.look import look
from normcore.probes.sheet import DARK, LIGHT
from normcore.spec import JobSpec


def model_of(**changes):
    spec = {"model": {"kind": "mlp", "hidden": [12, 10, 8]}, "data": {"kind": "digits", "size": 8}, "batch_size": 64}
    return build_model(JobSpec.model_validate(spec | changes)).double()


def images(rows=64, size=8):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 1, size, size, generator=generator, dtype=torch.float64)
    # Neighbours and channels alike, as pixels of real images are.
    return x + 2 * torch.randn(rows, 1, 1, 1, generator=generator, dtype=torch.float64) + 1


def read(model, x, step=7, calls=1):
    def replay():
        start_step(model, 0, 5)
        return torch.stack([model(part).square().mean() for part in x.chunk(calls)]).sum()

    return look(ActivationsProbe(), model, replay, lr=0.1, step=step)


def test_a_planted_dead_layer_is_found():
    model, x = model_of(norm={"kind": "none"}), images()
    healthy = read(model, x)
    nn.init.constant_(model.blocks[1].linear.bias, -1e3)
    reading = read(model, x)
    assert reading.layers == tuple(f"blocks.{number}.activation" for number in range(3))
    assert reading.arrays["dead"][1] == reading.scalars["dead_max"] == 1.0
    assert reading.arrays["saturated"][1] == reading.scalars["saturated_max"] == 1.0
    assert healthy.scalars["dead_max"] < 1
    with torch.no_grad():
        model.blocks[1].linear.bias[:4] = 0
    assert read(model, x).arrays["dead"][1] == pytest.approx(0.6, abs=0.21)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_a_planted_saturated_layer_is_found(activation):
    model, x = model_of(model={"kind": "mlp", "hidden": [12, 10, 8], "activation": activation}), images()
    healthy = read(model, x)
    with torch.no_grad():
        model.blocks[1].norm.weight.fill_(1e3)
    reading = read(model, x)
    assert reading.arrays["saturated"][1] == reading.scalars["saturated_max"] > 0.98
    assert healthy.scalars["saturated_max"] < 0.1
    assert all(math.isnan(dead) for dead in reading.arrays["dead"])
    assert "dead_max" not in reading.scalars


def test_what_is_seen_is_behind_norm_and_noise_and_before_the_non_linearity():
    model, x = model_of(norm={"kind": "batch"}, noise={"kind": "santurkar"}), images()
    start_step(model, 0, 5)
    values = model.blocks[0].noise(model.blocks[0].norm(model.blocks[0].linear(x.flatten(1))))
    reading = read(model, x)
    assert reading.arrays["mean"][0] == pytest.approx(values.mean().item(), rel=1e-12)
    assert reading.arrays["p85"][0] == pytest.approx(values.quantile(0.85).item(), rel=1e-12)


def test_whitening_leaves_no_correlation_and_batch_norm_does():
    by_kind = {}
    for kind, knobs in {"none": {}, "batch": {}, "whitening": {"channels_per_group": 12}}.items():
        model = {"kind": "mlp", "hidden": [12, 12, 12]}
        by_kind[kind] = read(model_of(model=model, norm={"kind": kind} | knobs), images(rows=200))
    first = {kind: reading.arrays["correlation"][0] for kind, reading in by_kind.items()}
    assert first["whitening"] < 0.01
    assert first["batch"] == pytest.approx(first["none"], rel=1e-6)
    assert first["batch"] > 0.15
    whitened = by_kind["whitening"].arrays
    assert whitened["effective_rank"][0] == pytest.approx(whitened["channels"][0], rel=0.01) == pytest.approx(12, 0.01)
    assert by_kind["batch"].arrays["var"] == pytest.approx((1, 1, 1), rel=1e-3)
    assert by_kind["batch"].scalars["mean_abs_max"] < 1e-12
    assert by_kind["batch"].scalars["var_ratio"] == pytest.approx(1, rel=1e-3)
    assert by_kind["none"].scalars["mean_abs_max"] > 0.1


def test_scalars_are_the_extremes_of_the_arrays():
    reading = read(model_of(norm={"kind": "none"}), images())
    arrays, scalars = reading.arrays, reading.scalars
    assert len(scalars) == 6
    assert scalars["mean_abs_max"] == max(map(abs, arrays["mean"]))
    assert scalars["var_ratio"] == arrays["var"][-1] / arrays["var"][0]
    assert scalars["correlation_max"] == max(arrays["correlation"])
    assert scalars["rank_share_min"] == min(
        rank / channels for rank, channels in zip(arrays["effective_rank"], arrays["channels"], strict=True)
    )


def test_micro_batches_count_all_together():
    model, x = model_of(norm={"kind": "none"}), images()
    whole, parts = read(model, x), read(model, x, calls=4)
    for name, values in whole.arrays.items():
        assert parts.arrays[name] == pytest.approx(values, rel=1e-9), name


def test_a_layer_that_is_not_reached_is_nan():
    model = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.ReLU()])
    reading = look(ActivationsProbe(), model, lambda: model[0](torch.ones(3, 2)).sum(), lr=0.1)
    assert reading.layers == ("0.1", "1")
    assert math.isnan(reading.arrays["mean"][1])
    assert reading.arrays["channels"] == (2, 0)
    assert draw({"": [reading]})


def test_values_that_are_no_numbers_are_no_scalars():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    nn.init.constant_(model[0].weight, math.inf)
    reading = look(ActivationsProbe(), model, lambda: model(torch.ones(3, 2)).sum(), lr=0.1)
    assert not reading.arrays["mean"][0] < math.inf
    assert all(math.isfinite(value) for value in reading.scalars.values())
    assert draw({"": [reading]})


DIGITS = {"kind": "digits", "size": 8}
MODELS = {
    "vgg": ({"kind": "vgg", "width": 0.0625}, {"kind": "digits", "size": 32}, 8),
    "resnet": ({"kind": "resnet", "depth": 8, "width": 0.25}, DIGITS, 7),
    "lstm": ({"kind": "lstm", "hidden": 8}, {"kind": "digits", "arrange": "tokens"}, 5),
    "transformer": ({"kind": "transformer", "depth": 2, "width": 8}, {"kind": "digits", "arrange": "tokens"}, 2),
    "deep_linear": ({"kind": "deep_linear", "depth": 3}, {"kind": "gaussian"}, 3),
}


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("vgg", "bfloat16"),
        ("resnet", "float16"),
        ("lstm", "bfloat16"),
        ("lstm", "float64"),
        ("transformer", "float16"),
        ("deep_linear", "float64"),
    ],
)
def test_every_kind_of_model_is_seen_in_half_precisions_too(kind, precision):
    model, data, count = MODELS[kind]
    norm = {"kind": "layer_channels" if kind == "transformer" else "batch"}
    spec = {"model": model, "data": data, "norm": norm, "precision": precision, "accumulation": 2, "batch_size": 16}
    learner = Learner(JobSpec.model_validate(spec | {"noise": {"kind": "santurkar"}}), torch.device("cpu"))
    reading = look(ActivationsProbe(), learner.model, learner.plain_replay(1), lr=0.1)
    assert len(reading.layers) == len(reading.arrays["mean"]) == count
    for name in ("mean", "var", "skew", "p15", "p50", "p85"):
        assert all(map(math.isfinite, reading.arrays[name])), name
    assert draw({"": [reading]})


def test_padded_tokens_of_a_training_do_not_count():
    model, data, _ = MODELS["transformer"]
    spec = {"model": model, "data": data, "norm": {"kind": "layer_channels"}, "batch_size": 8, "precision": "float64"}
    learner = Learner(JobSpec.model_validate(spec), torch.device("cpu"))
    batch, (path, module) = (
        learner.batch(1),
        next((path, module) for path, module in learner.model.named_modules() if isinstance(module, nn.ReLU)),
    )
    given = []
    handle = module.register_forward_pre_hook(lambda _, args: given.append(args[0].detach()))
    batch.through(learner.model)
    handle.remove()
    reading = look(ActivationsProbe(), learner.model, learner.plain_replay(1), lr=0.1)
    assert not batch.mask.all()
    assert reading.layers[0] == path
    assert reading.arrays["mean"][0] == pytest.approx(given[0][batch.mask].mean().item(), rel=1e-12)


def test_it_leaves_no_footprints_nor_hooks():
    model, x = model_of(norm={"kind": "batch"}, noise={"kind": "santurkar"}), images()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    read(model, x)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_the_figure_is_a_png_however_many_readings_and_layers(count, theme):
    readings = [read(model_of(norm={"kind": "none"}), images(), step=step) for step in range(count)]
    bare = nn.LayerNorm(2)
    nothing = look(ActivationsProbe(), bare, lambda: bare(torch.ones(2)).sum(), lr=0.1)
    assert (nothing.layers, nothing.scalars) == ((), {})
    png = draw({"some": readings, "nothing": [nothing] * count}, theme)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
