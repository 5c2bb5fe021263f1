"""The probe of the health of norms."""

from dataclasses import replace
from math import isnan

import pytest
import torch
from torch import nn
from torch.nn import functional

from normcore.build import build_model
from normcore.norms.batch import BatchNorm
from normcore.norms.diagnosis import worst_diagnoses
from normcore.norms.filter_response import FilterResponseNorm
from normcore.norms.iterative import IterativeNorm
from normcore.norms.none import NoNorm
from normcore.probes.archive import pack, unpack
from normcore.probes.look import look
from normcore.probes.norm_health import NormHealthProbe
from normcore.probes.norm_health_figure import draw
from normcore.probes.sheet import DARK
from normcore.spec import MENU, JobSpec, kind_of
from normcore.statistics.gap import train_eval_gap
from normcore.surgery.channels_last import ChannelsLast

KNOBS = {
    "ghost": {"virtual_batch_size": 4},
    "group": {"num_groups": 2},
    "evonorm_s0": {"num_groups": 2},
    "whitening": {"channels_per_group": 4},
    "iterative": {"channels_per_group": 4},
    "filter_response": {"learned_eps": True},
}
LEARNED = {
    "filter_response": {"tau", "eps_l"},
    "evonorm_b0": {"v"},
    "evonorm_s0": {"v"},
    "divisive": {"sigma"},
    "dyt": {"alpha"},
    "switchable": {"mean_weight", "var_weight"},
}
RUNNING = {
    "batch",
    "ghost",
    "sync",
    "batch_renorm",
    "lp",
    "switchable",
    "power",
    "evonorm_b0",
    "whitening",
    "iterative",
}
NO_EPS = {"local_response", "divisive", "dyt"}


def seen_in(model, x, *more, step=1):
    """A reading of a model, whose loss is a cubic so that gradients reach every parameter."""
    return look(NormHealthProbe(), model, lambda: model(x, *more).pow(3).sum(), lr=0.1, step=step)


def maps(*shape):
    return 1 + torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("part", MENU["norm"], ids=kind_of)
def test_every_norm_of_the_menu_gives_a_reading(part):
    kind = kind_of(part)
    spec = part(**KNOBS.get(kind, {}))
    model = nn.Sequential(nn.Conv2d(3, 8, 1), spec.part()(8, **spec.knobs()))
    reading = seen_in(model, maps(8, 3, 4, 4))
    if kind == "none":
        assert (reading.layers, reading.scalars, reading.arrays) == ((), {}, {})
        return
    assert reading.layers == ("1",)
    (known,) = [{name for name, (value,) in reading.arrays.items() if not isnan(value)}]
    learned = {"gamma", "beta"} - ({"beta"} if kind == "rms" else set()) | LEARNED.get(kind, set())
    learned -= {"gamma", "beta"} if kind == "local_response" else set()
    assert known & {f"{name}_mean" for name in (*learned, "gamma", "beta")} == {f"{name}_mean" for name in learned}
    assert ("gap_output" in known) == (kind in RUNNING)
    assert ("below_eps" in known) == (kind not in NO_EPS)
    assert ("channel_height" in known) == (not model[1].activates)
    assert ("newton_residual" in known) == (kind == "iterative")
    assert set(reading.scalars) == {
        scalar
        for scalar, array in {
            "gamma_abs_min": "gamma_smallest",
            "channel_height_min": "channel_height",
            "below_eps_max": "below_eps",
            "gap_output_max": "gap_output",
            "newton_residual_max": "newton_residual",
        }.items()
        if array in known
    }


def test_learned_parameters_are_read_as_they_stand():
    model = nn.Sequential(FilterResponseNorm(3, learned_eps=True), nn.Flatten(), nn.BatchNorm1d(12, affine=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([-0.5, 2.0, 3.0]))
        model[0].bias.copy_(torch.tensor([0.0, 1.0, -4.0]))
        model[0].tau.copy_(torch.tensor([-1.0, 0.0, 4.0]))
        model[0].eps_l.copy_(torch.tensor([0.25, 0.5, 0.75]))
    reading = seen_in(model, maps(4, 3, 2, 2))
    assert reading.layers == ("0", "2")
    first = {name: values[0] for name, values in reading.arrays.items()}
    assert (first["gamma_mean"], first["gamma_min"], first["gamma_max"], first["gamma_smallest"]) == (1.5, -0.5, 3, 0.5)
    assert (first["beta_mean"], first["beta_min"], first["beta_max"]) == (-1.0, -4.0, 1.0)
    assert (first["tau_mean"], first["tau_min"], first["tau_max"]) == (1.0, -1.0, 4.0)
    assert (first["eps_l_mean"], first["eps_l_min"], first["eps_l_max"]) == (0.5, 0.25, 0.75)
    assert all(isnan(reading.arrays[name][1]) for name in ("gamma_mean", "beta_max", "tau_min", "eps_l_mean"))
    assert reading.scalars["gamma_abs_min"] == 0.5


@pytest.mark.parametrize("planted", [0, 1, 3])
def test_channels_that_eps_decides_are_found(planted):
    x = maps(16, 8, 4, 4)
    x[:, :planted] = 1e-4 * x[:, :planted]
    model = nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    reading = seen_in(model, x)
    assert reading.arrays["below_eps"] == (planted / 8, 0.0)
    assert reading.scalars["below_eps_max"] == planted / 8


def test_a_dead_channel_is_found():
    x = maps(16, 8, 4, 4)
    x[:, 5] = 0.0
    assert seen_in(nn.Sequential(BatchNorm(8)), x).arrays["below_eps"] == (1 / 8,)


def test_batch_norm_holds_a_channel_at_beta_over_gamma():
    model = nn.Sequential(BatchNorm(3, eps=1e-12)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -0.5, 2.0]))
        model[0].bias.copy_(torch.tensor([0.0, -1.5, -2.0]))
    reading = seen_in(model, maps(8, 3, 4, 4).double())
    assert reading.arrays["channel_height"] == pytest.approx((-3.0,))
    assert reading.scalars["channel_height_min"] == reading.arrays["channel_height"][0]


def test_layer_norm_does_not_hold_a_channel():
    """Of two channels at distance 2 a, noise of deviation s: layer norm leaves the lower one at about -a / s."""
    x = 0.1 * torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 1] -= 2.0
    low = seen_in(nn.Sequential(nn.GroupNorm(1, 2)).double(), x).arrays["channel_height"][0]
    assert low == pytest.approx(-10.0, rel=0.05)


def test_gaps_are_those_of_the_statistics_lab():
    model, x = (
        nn.Sequential(BatchNorm(4), nn.Conv2d(4, 4, 1), nn.LayerNorm(6), ChannelsLast(BatchNorm(6))),
        maps(8, 4, 6, 6),
    )
    with torch.no_grad():
        model[0].running_mean += 5.0
    reading = seen_in(model, x)
    assert reading.layers == ("0", "2", "3.norm")
    first, last = train_eval_gap(model, x)
    for name in ("output", "mean", "spread"):
        assert reading.arrays[f"gap_{name}"] == pytest.approx(
            (getattr(first, name), float("nan"), getattr(last, name)), nan_ok=True
        )
    assert reading.scalars["gap_output_max"] == max(first.output, last.output)


def test_running_means_that_are_off_by_some_deviations_are_so_many_apart():
    x = maps(32, 3, 4, 4).double()
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    model = nn.Sequential(BatchNorm(3, momentum=1e-9)).double()
    with torch.no_grad():
        model[0].running_mean.copy_(mean + 4.0 * var.sqrt())
        model[0].running_var.copy_(2.0 * var * 512 / 511)
    reading = seen_in(model, x)
    assert reading.arrays["gap_mean"] == pytest.approx((4.0,))
    assert reading.arrays["gap_spread"] == pytest.approx((0.5,))


def test_newtons_residual_is_what_the_norm_says_of_this_batch():
    model = nn.Sequential(IterativeNorm(4, channels_per_group=4, iterations=2), nn.BatchNorm2d(4)).double()
    x = maps(16, 4, 4, 4).double() * torch.tensor([1.0, 3.0, 9.0, 0.1]).view(1, 4, 1, 1)
    reading = seen_in(model, x)
    assert model[0].newton_residual.item() == 0  # That of the probe's pass is gone with its other footprints.
    model(x)
    said = worst_diagnoses(model)["newton_residual"]
    assert 0 < said < 1
    assert reading.scalars["newton_residual_max"] == said
    assert reading.arrays["newton_residual"] == pytest.approx((said, float("nan")), nan_ok=True)


def test_a_layer_that_is_not_reached_has_what_it_has_learned_and_nothing_else():
    model, x = nn.ModuleList([BatchNorm(2), IterativeNorm(2, channels_per_group=2), nn.Linear(2, 2)]), maps(8, 2)
    reading = look(NormHealthProbe(), model, lambda: model[2](model[0](x)).square().sum(), lr=0.1)
    assert reading.arrays["gamma_mean"] == (1.0, 1.0)
    for name in ("gap_output", "below_eps", "channel_height", "newton_residual"):
        assert isnan(reading.arrays[name][1])


def test_parts_of_a_batch_count_by_what_they_hold():
    """Two passes of one reading, as with micro-batches: one in three of all variances is below eps."""
    model, parts = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)), [maps(4, 4), torch.ones(2, 4)]
    reading = look(NormHealthProbe(), model, lambda: sum(model(part).square().sum() for part in parts), lr=0.1)
    assert reading.arrays["below_eps"] == pytest.approx((1 / 3,))


@pytest.mark.parametrize(
    ("model", "arrange", "norm", "layers"),
    [
        ({"kind": "lstm", "hidden": 4}, "rows", "batch", 3),
        ({"kind": "lstm", "hidden": 4}, "tokens", "layer", 3),
        ({"kind": "lstm", "hidden": 4}, "rows", "none", 0),
        ({"kind": "transformer", "depth": 1, "width": 8, "heads": 2}, "tokens", "layer", 3),
        ({"kind": "transformer", "depth": 1, "width": 8, "heads": 2}, "tokens", "batch", 3),
    ],
)
def test_norms_of_sequences_and_of_padded_tokens_are_seen(model, arrange, norm, layers):
    data = {"kind": "digits", "size": 8, "arrange": arrange}
    net = build_model(JobSpec.model_validate({"model": model, "data": data, "norm": {"kind": norm}}))
    x = maps(8, 8, 8)
    if arrange == "tokens":
        x = torch.where(torch.arange(8) < torch.arange(1, 9)[:, None], torch.arange(1, 65).view(8, 8), 0)
    reading = look(NormHealthProbe(), net, lambda: functional.cross_entropy(net(x), torch.arange(8)), lr=0.1)
    assert len(reading.layers) == layers
    for name in ("gamma_mean", "below_eps", "channel_height"):
        assert not any(isnan(value) for value in reading.arrays.get(name, ()))


def test_running_statistics_cost_more():
    batch, group = (nn.Sequential(norm) for norm in (nn.BatchNorm2d(4), nn.GroupNorm(2, 4)))
    assert NormHealthProbe().cost(batch) > NormHealthProbe().cost(group) > 0


def test_it_leaves_no_footprints_and_no_hooks():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNorm(4), NoNorm(4), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    reading = seen_in(model, maps(8, 3, 4, 4))
    assert reading.layers == ("1",)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_figure_is_a_png_however_many_readings_and_layers(count):
    arms = {}
    for name, norm in {"newton": IterativeNorm(3, channels_per_group=3), "none": NoNorm(3)}.items():
        model = nn.Sequential(norm, nn.Conv2d(3, 3, 1))
        arms[name] = [seen_in(model, maps(8, 3, 2, 2), step=step) for step in range(count)]
    assert draw(arms, DARK)[:8] == b"\x89PNG\r\n\x1a\n"


def test_what_was_kept_is_drawn_as_it_was_seen():
    readings = [seen_in(nn.Sequential(FilterResponseNorm(3), nn.Conv2d(3, 3, 1)), maps(8, 3, 2, 2))]
    assert draw({"": unpack(pack(readings))}) == draw({"": readings})


def test_the_figure_of_a_resumed_training_is_that_of_one_that_was_not():
    # What a snapshot gave back has its arrays in another order.
    readings = [seen_in(nn.Sequential(FilterResponseNorm(3, learned_eps=True), nn.Conv2d(3, 3, 1)), maps(8, 3, 2, 2))]
    resumed = [replace(reading, arrays=dict(reversed(reading.arrays.items()))) for reading in readings]
    assert draw({"": resumed}) == draw({"": readings})
