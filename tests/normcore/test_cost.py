"""The meta device's answers against what really happens on the CPU."""

from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from normcore.build import build_model
from normcore.cost import MIB, flops_per_step, memory_mib
from normcore.data.shaped import shaped
from normcore.noise.noise import start_step
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


def kept_bytes(spec: JobSpec) -> int:
    """What autograd keeps of a real step on the CPU."""
    model, x = build_model(spec), torch.randn(N, *spec.data.shape, dtype=torch.float64)
    x = x.to(next(model.parameters()).dtype)
    known = {tensor.untyped_storage().data_ptr() for tensor in (x, *model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}
    start_step(model, 0, 0)
    with saved_tensors_hooks(lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t):
        loss = torch.nn.functional.cross_entropy(model(x), torch.zeros(N, dtype=torch.long))
    assert loss.isfinite()
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in known)


@pytest.mark.parametrize("noise", ["none", "santurkar"])
@pytest.mark.parametrize("norm", ["none", "batch", "group", "layer", "instance"])
def test_memory_adds_up(norm, noise):
    """Parameters, gradients, momentum, kept activations, batch and dataset, to one byte in a hundred."""
    groups = {"num_groups": 2} if norm == "group" else {}
    spec = job(VGG, norm={"kind": norm} | groups, noise={"kind": noise}, optimizer={"kind": "sgd", "momentum": 0.9})
    parameters = sum(p.numel() for p in build_model(spec).parameters())
    expected = 3 * 4 * parameters + kept_bytes(spec) + N * 1024 * 4 + 1797 * 1024
    assert memory_mib(spec) * MIB == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("weight", ["standardized", "scaled", "weight_norm", "spectral", "fixup"])
def test_memory_adds_up_with_weights_that_are_worked_out_anew(weight):
    spec = job(RESNET, norm={"kind": "none"}, weight={"kind": weight})
    parameters = sum(p.numel() for p in build_model(spec).parameters())
    expected = 2 * 4 * parameters + kept_bytes(spec) + N * 1024 * 4 + 1797 * 1024
    assert memory_mib(spec) * MIB == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("parts", "copies"),
    [
        ({"optimizer": {"kind": "sgd"}}, 2),
        ({"optimizer": {"kind": "sgd", "momentum": 0.9, "weight_decay": 0.1}}, 3),
        ({"optimizer": {"kind": "adamw"}}, 4),
        ({"optimizer": {"kind": "adamw"}, "probes": [{"kind": "landscape"}]}, 6),
        ({"optimizer": {"kind": "sgd"}, "precision": "bfloat16"}, 2.5),
        ({"optimizer": {"kind": "sgd"}, "precision": "float64"}, 4),
    ],
)
def test_each_parameter_counts_as_often_as_it_is_kept(parts, copies):
    """Two nets that differ only in the number of parameters, by a layer whose output is as narrow as before."""
    sizes = [(2000, 1), (4000, 1)]
    specs = [job({"kind": "mlp", "hidden": hidden}, norm={"kind": "none"}, **parts) for hidden in sizes]
    counts = [sum(p.numel() for p in build_model(spec, device="meta").parameters()) for spec in specs]
    activations = 2000 * N * {"bfloat16": 2, "float32": 4, "float64": 8}[specs[0].precision]
    growth = (memory_mib(specs[1]) - memory_mib(specs[0])) * MIB - activations
    assert growth / (counts[1] - counts[0]) == pytest.approx(4 * copies, rel=0.01)


def test_memory_grows_with_the_batch_as_the_activations_do():
    at = {n: memory_mib(job(VGG, batch_size=n)) for n in (64, 128, 256)}
    assert at[256] - at[128] == pytest.approx(2 * (at[128] - at[64]), rel=1e-3)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    memory_mib(job(VGG, noise={"kind": "santurkar"}))
    assert torch.equal(torch.get_rng_state(), before)
