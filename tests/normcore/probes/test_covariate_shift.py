"""The probe of internal covariate shift against closed forms and a slow, obvious twin."""

import copy
import json
import re
from math import isfinite, isnan, nan

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from normcore.build import build_model
from normcore.noise.noise import start_step
from normcore.probes.covariate_shift import CovariateShiftProbe
from normcore.probes.covariate_shift_figure import draw
from normcore.probes.look import look
from normcore.records import Reading, Remark
from normcore.refusal import Refusal
from normcore.spec import JobSpec
from normcore.train import train


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vgg(**parts):
    spec = {"model": {"kind": "vgg", "width": 0.0625, "dropout": 0.2}, "data": {"kind": "digits"}, "seed": 1}
    spec |= {"norm": {"kind": "batch"}, "noise": {"kind": "santurkar"}, "precision": "float64"}
    model = build_model(JobSpec.model_validate(spec | parts))
    x = normal(8, 1, 32, 32)

    def loss(of=model):
        start_step(of, 0, 5)
        return functional.cross_entropy(of(x), torch.arange(8))

    return model, loss


def updated_from(model, seed=3):
    """Parameters after some update, in which every single one has moved."""
    return [p.detach() + 0.05 * normal(*p.shape, seed=seed + i) for i, p in enumerate(model.parameters())]


def rows(reading):
    names = ("l2", "cosine", "gradient_norm")
    columns = zip(*(reading.arrays[name] for name in names), strict=True)
    return {path: dict(zip(names, values, strict=True)) for path, values in zip(reading.layers, columns, strict=True)}


def test_a_linear_net_of_two_layers_has_the_shift_of_its_closed_form():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)).double()
    x, y = normal(6, 3, seed=1), normal(6, 2, seed=2)
    first, second = (layer.weight.detach().clone() for layer in model)
    moved, unused = updated_from(model)

    def gradient(first):
        hidden = x @ first.T
        return 2 * (hidden @ second.T - y).T @ hidden

    reading = look(
        CovariateShiftProbe(layers="all"),
        model,
        lambda: (model(x) - y).square().sum(),
        lr=0.1,
        step=9,
        updated=[moved, unused],
    )
    before, after = gradient(first), gradient(moved)
    seen = rows(reading)
    assert (reading.probe, reading.step, reading.layers) == ("covariate_shift", 9, ("0", "1"))
    assert (seen["0"]["l2"], seen["0"]["cosine"]) == (0.0, 1.0)
    assert seen["1"]["l2"] == pytest.approx((before - after).norm().item(), rel=1e-12)
    cosine = functional.cosine_similarity(before.flatten(), after.flatten(), dim=0).item()
    assert seen["1"]["cosine"] == pytest.approx(cosine, rel=1e-12)
    assert cosine < 0.999
    assert seen["1"]["gradient_norm"] == pytest.approx(before.norm().item(), rel=1e-12)
    assert reading.scalars["cosine_min"] == reading.scalars["cosine_median"] == seen["1"]["cosine"]
    assert reading.scalars["l2_max"] == reading.scalars["l2_median"] == seen["1"]["l2"]
    # The layers' own outputs, where there is no norm.
    drift = (x @ (moved - first).T).mean(0).abs().mean().item()
    assert reading.arrays["mean_drift"][0] == pytest.approx(drift, rel=1e-12)
    assert reading.arrays["mean"][0] == pytest.approx((x @ first.T).mean().item(), rel=1e-12)
    spread = ((x @ moved.T).var(0, correction=0) - (x @ first.T).var(0, correction=0)).abs().mean().item()
    assert reading.arrays["var_drift"][0] == pytest.approx(spread, rel=1e-12)


def slow_twin(model, loss, updated, path):
    """G and G' of a layer of a vgg, from two copies of it: all modules in front stand in the order they run in."""
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for (name, parameter), value in zip(theirs.named_parameters(), updated, strict=True):
            if name.startswith(f"{path}."):
                break
            parameter.copy_(value)
    return [
        torch.autograd.grad(loss(net), net.get_submodule(path).get_parameter("weight"))[0] for net in (ours, theirs)
    ]


def test_it_is_the_slow_twin_with_batch_norm_noise_and_dropout():
    model, loss = vgg()
    updated = updated_from(model)
    seen = rows(look(CovariateShiftProbe(layers="all"), model, loss, lr=0.1, updated=updated))
    assert list(seen) == [*(f"blocks.{i}.conv" for i in range(8)), "classifier"]
    for path in ("blocks.1.conv", "blocks.4.conv", "classifier"):
        before, after = slow_twin(model, loss, updated, path)
        cosine = functional.cosine_similarity(before.flatten(), after.flatten(), dim=0).item()
        assert cosine < 0.99
        assert seen[path]["cosine"] == pytest.approx(cosine, rel=1e-9)
        assert seen[path]["l2"] == pytest.approx((before - after).norm().item(), rel=1e-9)
        assert seen[path]["gradient_norm"] == pytest.approx(before.norm().item(), rel=1e-9)


@pytest.mark.parametrize("path", ["blocks.3.conv", "blocks.6.conv"])
def test_there_is_no_shift_where_all_that_precedes_a_layer_is_frozen(path):
    model, loss = vgg()
    names = [name for name, _ in model.named_parameters()]
    first = names.index(f"{path}.weight")
    moved = updated_from(model)
    updated = [p.detach() if i < first else moved[i] for i, p in enumerate(model.parameters())]
    seen = rows(look(CovariateShiftProbe(layers="all"), model, loss, lr=0.1, updated=updated))
    order = list(seen)
    for before in order[: order.index(path) + 1]:
        assert (seen[before]["l2"], seen[before]["cosine"]) == (0.0, pytest.approx(1, abs=1e-12))
    # The norm right behind it has moved, and precedes the next one.
    assert seen[order[order.index(path) + 1]]["l2"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_drift_within_rounding_is_zero_and_the_smallest_beyond_it_is_told(dtype):
    # The norm of the first layer is followed by another: its mean is its beta, which does not move.
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(
        dtype
    )
    x, weights = normal(50, 3).to(dtype), normal(2, seed=1).to(dtype)
    updated = [p.detach() + 0.01 * normal(*p.shape, seed=i).to(dtype) for i, p in enumerate(model.parameters())]
    # Gamma and beta of the first norm stay, and beta of the second moves by 10 eps.
    step = 10 * torch.finfo(dtype).eps
    updated[2:4] = [p.detach().clone() for p in model[1].parameters()]
    updated[6:8] = [model[3].weight.detach().clone(), model[3].bias.detach() + step]
    reading = look(CovariateShiftProbe(layers="all"), model, lambda: model(x).mv(weights).sum(), lr=1, updated=updated)
    assert reading.arrays["mean_drift"][0] == 0
    assert reading.arrays["mean_drift"][1] == pytest.approx(step, rel=0.2)
    assert reading.arrays["mean_drift"][2] > 1e-4
    assert reading.arrays["var_drift"][0] < 1e-5


def test_a_drift_of_what_is_not_finite_is_not_taken_for_zero():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    updated = [torch.full((1, 1), value, dtype=torch.float64) for value in (1e308, 1.0)]
    x = torch.full((2, 1), 10.0, dtype=torch.float64)
    reading = look(CovariateShiftProbe(layers="all"), model, lambda: model(x).sum(), lr=1, updated=updated)
    assert not isfinite(reading.arrays["mean_drift"][0])


def test_layers_that_are_asked_for_are_read_as_with_all_of_them():
    model, loss = vgg()
    updated = updated_from(model)
    every, some, two = (
        rows(look(CovariateShiftProbe(layers=layers), model, loss, lr=0.1, updated=updated))
        for layers in ("all", ("blocks.5.conv", "blocks.2.conv"), 2)
    )
    assert list(some) == ["blocks.2.conv", "blocks.5.conv"]
    # Numbers 3 and 7 of 9.
    assert list(two) == ["blocks.2.conv", "blocks.6.conv"]
    assert some | two == {path: every[path] for path in ("blocks.2.conv", "blocks.5.conv", "blocks.6.conv")}


@pytest.mark.parametrize("kind", ["weight_norm", "spectral"])
def test_of_a_parametrized_weight_it_is_the_learned_one_that_counts(kind):
    model, loss = vgg(weight={"kind": kind}, norm={"kind": "none"}, noise={"kind": "none"})
    reading = look(CovariateShiftProbe(layers=("blocks.1.conv",)), model, loss, lr=0.1, updated=updated_from(model))
    learned = model.blocks[1].conv.parametrizations.weight.original
    norm = torch.autograd.grad(loss(), learned)[0].norm().item()
    assert reading.arrays["gradient_norm"] == (pytest.approx(norm, rel=1e-9),)
    assert reading.arrays["l2"][0] > 0


def test_a_layer_without_a_gradient_has_no_cosine_and_no_scalar():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    nn.init.constant_(model[0].bias, -100.0)
    x = torch.ones(3, 2)
    reading = look(CovariateShiftProbe(), model, lambda: model(x).square().sum(), lr=0.0)
    assert isnan(reading.arrays["cosine"][1])
    assert "cosine_min" not in reading.scalars
    assert reading.scalars["l2_max"] == 0


@pytest.mark.parametrize("layers", [0, 1001, True, "some", [], ["a", 1], None])
def test_what_are_no_layers_is_refused_by_the_spec(layers):
    said = "layers must be a number from 1 to 1,000, all, or a list of as many module paths, got "
    with pytest.raises(ValidationError, match=said + re.escape(json.dumps(layers))) as refused:
        job(probes=[{"kind": "covariate_shift", "layers": layers}])
    assert refused.value.error_count() == 1


@pytest.mark.parametrize("layers", [3, "all", ["blocks.0.linear", "classifier"]])
def test_a_spec_with_layers_is_read_back_from_its_json(layers):
    spec = job(probes=[{"kind": "covariate_shift", "layers": layers, "every": 5}])
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    given = tuple(layers) if isinstance(layers, list) else layers
    assert spec.probes[0].part()(**spec.probes[0].knobs()) == CovariateShiftProbe(layers=given)


@pytest.mark.parametrize(("layers", "count"), [(2, 2), ("all", 9), (("classifier",), 1)])
def test_it_costs_more_with_every_layer(layers, count):
    model, _ = vgg()
    assert CovariateShiftProbe(layers=layers).cost(model) == 1.3 + 0.7 * count


def test_it_leaves_no_hooks():
    model, loss = vgg()
    look(CovariateShiftProbe(), model, loss, lr=0.1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_unknown_layer_is_refused_with_the_known_ones():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    probe = CovariateShiftProbe(layers=("0", "1"))
    with pytest.raises(
        Refusal, match=r"layers must be paths of modules with weights, got '1'; this model has 0, 2"
    ) as refused:
        look(probe, model, lambda: model(torch.ones(1, 2)).sum(), lr=0.1)
    assert refused.value.code == "no-such-layer"


def job(**parts):
    spec = {
        "model": {"kind": "mlp", "hidden": [64, 64]},
        "data": {"kind": "digits", "size": 8},
        "norm": {"kind": "batch"},
        "optimizer": {"kind": "sgd", "lr": 1e-6},
        "batch_size": 128,
        "steps": 10,
        "precision": "float64",
        "probes": [{"kind": "covariate_shift", "every": 1}],
    }
    return JobSpec.model_validate(spec | parts)


def readings(folders, **parts):
    records = list(train(job(**parts), folders=folders))
    assert not [record for record in records if isinstance(record, Remark) and record.code.startswith("probe-")]
    return [record for record in records if isinstance(record, Reading)]


def test_noise_after_batch_norm_moves_the_means_by_two_thirds_of_its_range(folders):
    noisy, quiet = (readings(folders, noise={"kind": kind}) for kind in ("santurkar", "none"))
    for layer in (0, 1):
        drifts = [reading.arrays["mean_drift"][layer] for reading in noisy]
        # 10 steps of 64 channels; what a channel's 128 values add to its mean moves it by less than 0.02.
        assert sum(drifts) / len(drifts) == pytest.approx(2 / 3 * 0.5, abs=0.03)
        assert max(reading.arrays["mean_drift"][layer] for reading in quiet) < 1e-6
        assert max(reading.arrays["var_drift"][layer] for reading in quiet) < 1e-6
        # Uniform in [1, 1.25], squared, of a channel with variance 1: E|s'^2 - s^2| is 0.19.
        assert sum(reading.arrays["var_drift"][layer] for reading in noisy) / 10 == pytest.approx(0.19, abs=0.03)


def test_other_batches_are_no_drift(folders):
    seen = readings(folders, norm={"kind": "none"}, steps=3)
    means = [reading.arrays["mean"][0] for reading in seen]
    assert max(means) - min(means) > 1e-3
    assert all(0 < reading.arrays["mean_drift"][0] < 1e-6 for reading in seen)


def test_micro_batches_and_float64_make_no_difference(folders):
    plain = {"norm": {"kind": "layer"}, "steps": 1, "batch_size": 16, "optimizer": {"kind": "sgd", "lr": 0.1}}
    tokens = {"kind": "digits", "arrange": "tokens"}
    small = {"kind": "transformer", "depth": 1, "width": 8, "heads": 2}
    for model in ({}, {"model": small, "data": tokens}):
        whole, parts, single = (
            readings(folders, **plain | model | other)
            for other in (
                {},
                {"accumulation": 2},
                {"precision": "float32", "probes": [{"kind": "covariate_shift", "every": 1, "precision": "float64"}]},
            )
        )
        for name, values in whole[-1].arrays.items():
            assert parts[-1].arrays[name] == pytest.approx(values, rel=1e-9, abs=1e-12)
            assert single[-1].arrays[name] == pytest.approx(values, rel=1e-2, abs=1e-6)
        assert single[-1].facts == {"precision": "float64"}


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precisions_and_adam_give_finite_shifts(folders, precision):
    seen = readings(folders, precision=precision, steps=2, optimizer={"kind": "adamw", "lr": 0.01})
    assert all(isfinite(value) for reading in seen for values in reading.arrays.values() for value in values)
    assert len(seen[-1].scalars) == 6
    assert 0 < seen[-1].arrays["cosine"][1] < 1


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_figure_is_a_png_however_many_readings_and_layers(count):
    columns = ("l2", "cosine", "gradient_norm", "mean", "var", "mean_drift", "var_drift")
    for layers in ((), ("a", "b", "c")):
        values = (nan, 0.5, 1.0)[: len(layers)]
        arrays = dict.fromkeys(columns, values)
        seen = [Reading("covariate_shift", step, {}, arrays, layers) for step in range(count)]
        assert draw({"": seen})[:8] == b"\x89PNG\r\n\x1a\n"
