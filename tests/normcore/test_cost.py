"""The meta device's answers against what really happens on the CPU."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from normcore.build import build_model
from normcore.cost import flops_per_step
from normcore.data.shaped import shaped
from normcore.spec import JobSpec

N = 6
MLP = {"kind": "mlp", "hidden": [24, 16]}
VGG = {"kind": "vgg", "depth": 13, "width": 0.0625}
RESNET = {"kind": "resnet", "depth": 8, "width": 0.25, "shortcut": "projection"}


def job(model: dict[str, Any], **parts: Any) -> JobSpec:
    return JobSpec.model_validate({"model": model, "data": {"kind": "digits"}, "batch_size": N} | parts)


def flops(spec: JobSpec) -> int:
    return flops_per_step(build_model(spec, device="meta"), shaped(spec.data, N, torch.float32))


@pytest.mark.parametrize("model", [MLP, VGG, RESNET], ids=lambda model: model["kind"])
def test_flops_are_those_that_torch_counts_in_a_real_step(model):
    spec = job(model)
    net = build_model(spec)
    with FlopCounterMode(display=False) as counter:
        net(torch.randn(N, *spec.data.shape)).sum().backward()
    assert flops(spec) == counter.get_total_flops()


def test_flops_of_an_mlp_in_closed_form():
    forward = [2 * N * a * b for a, b in ((1024, 24), (24, 16), (16, 10))]
    assert flops(job(MLP)) == 3 * sum(forward) - forward[0]


def test_flops_of_a_vgg_in_closed_form():
    channels, sides = [1, 4, 8, 16, 16, 32, 32, 32, 32], [32, 16, 8, 8, 4, 4, 2, 2]
    convs = [2 * N * 9 * a * b * s * s for a, b, s in zip(channels[:-1], channels[1:], sides, strict=True)]
    assert flops(job(VGG | {"depth": 11})) == 3 * (sum(convs) + 2 * N * 32 * 10) - convs[0]
