"""The probe of the gap between training and evaluation."""

from math import isnan

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional

from normcore.build import build_model
from normcore.noise.noise import start_step
from normcore.probes.look import look
from normcore.probes.train_eval_gap import TrainEvalGapProbe
from normcore.probes.train_eval_gap_figure import draw
from normcore.spec import JobSpec
from normcore.statistics.gap import train_eval_gap


def vgg(norm="batch"):
    spec = {"model": {"kind": "vgg", "width": 0.0625}, "data": {"kind": "digits"}, "noise": {"kind": "santurkar"}}
    model = build_model(JobSpec.model_validate(spec | {"norm": {"kind": norm}}))
    x = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(1))

    def replay():
        start_step(model, 0, 5)
        return functional.cross_entropy(model(x), torch.arange(8))

    return model, x, replay


def test_arrays_hold_the_gap_of_every_layer_and_scalars_the_largest():
    model, x, replay = vgg()
    start_step(model, 0, 5)
    gaps = train_eval_gap(model, x)
    reading = look(TrainEvalGapProbe(), model, replay, lr=0.1, step=7)
    assert (reading.probe, reading.step, len(gaps)) == ("train_eval_gap", 7, 8)
    for name in ("output", "mean", "spread"):
        assert reading.arrays[name] == tuple(getattr(gap, name) for gap in gaps)
        assert reading.scalars[f"{name}_max"] == max(reading.arrays[name])
    assert len(reading.scalars) == 3


def test_it_leaves_no_footprints():
    model, _, replay = vgg()
    replay().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [(p.grad, p.grad.clone()) for p in model.parameters()]
    random = torch.get_rng_state()
    look(TrainEvalGapProbe(), model, replay, lr=0.1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for parameter, (gradient, values) in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
        assert torch.equal(gradient, values)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())


def test_a_layer_that_is_not_reached_is_nan_and_no_scalar():
    model = nn.ModuleList([nn.BatchNorm1d(2), nn.BatchNorm1d(2)])
    x = torch.randn(4, 2)
    reading = look(TrainEvalGapProbe(), model, lambda: model[1](x).square().sum(), lr=0.1)
    assert isnan(reading.arrays["output"][0])
    assert reading.scalars["output_max"] == reading.arrays["output"][1] > 0


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_figure_is_a_png_however_many_readings_and_layers(norm, count):
    model, _, replay = vgg(norm)
    readings = [look(TrainEvalGapProbe(), model, replay, lr=0.1, step=step) for step in range(count)]
    assert all(bool(reading.scalars) == (norm == "batch") for reading in readings)
    assert draw({"": readings})[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_model_without_running_statistics_has_panels_that_say_so(monkeypatch):
    model, _, replay = vgg("layer")
    texts, save = [], Figure.savefig

    def kept(figure, *args, **knobs):
        texts.extend((axes.get_xlim(), [text.get_text() for text in axes.texts]) for axes in figure.axes)
        save(figure, *args, **knobs)

    monkeypatch.setattr(Figure, "savefig", kept)
    draw({"": [look(TrainEvalGapProbe(), model, replay, lr=0.1, step=step) for step in (20, 40)]})
    assert texts == [((19, 41), ["no running statistics"])] * 3
