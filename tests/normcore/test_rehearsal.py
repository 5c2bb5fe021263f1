"""The rehearsed memory of a training against what torch's allocators are asked for in a real one."""

from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from normcore.build import build_model
from normcore.menu.layer_probes import CovariateShiftProbeSpec
from normcore.menu.smoothness_probes import LandscapeProbeSpec
from normcore.rehearsal import MIB, dataset_bytes, memory_mib
from normcore.spec import JobSpec
from normcore.train import train

MLP = {"kind": "mlp", "hidden": [1024, 1024]}
VGG = {"kind": "vgg", "width": 0.25}
RESNET = {"kind": "resnet", "depth": 8}
GROUP = {"norm": {"kind": "group", "num_groups": 4}}
NONE = {"norm": {"kind": "none"}}
LANDSCAPE = {"probes": [{"kind": "landscape", "every": 1, "points": 2}]}
ADAMW = {"optimizer": {"kind": "adamw"}}
BFLOAT16 = {"precision": "bfloat16"}

CASES: list[dict[str, Any]] = [
    {"model": MLP},
    {"model": MLP, **ADAMW, **LANDSCAPE},
    {"model": MLP, **ADAMW, **BFLOAT16, "checkpoint_every": 1},
    {"model": VGG},
    {"model": VGG, **GROUP, **ADAMW, **LANDSCAPE},
    {"model": VGG, **GROUP, **BFLOAT16},
    {"model": VGG, **NONE, **BFLOAT16, **LANDSCAPE},
    {"model": RESNET, "batch_size": 256},
    {"model": RESNET, "norm": {"kind": "iterative", "channels_per_group": 4}},
    {"model": RESNET, "weight": {"kind": "standardized"}, **BFLOAT16},
    {"model": RESNET, "precision": "float64", "batch_size": 16},
]


def job(parts: dict[str, Any]) -> JobSpec:
    return JobSpec.model_validate({"data": {"kind": "digits"}, "steps": 2, "batch_size": 64} | parts)


def name(parts: dict[str, Any]) -> str:
    return "-".join(str(value.get("kind") if isinstance(value, dict) else value) for value in parts.values())


@pytest.mark.parametrize("parts", CASES, ids=name)
def test_memory_is_what_the_allocator_is_asked_for_within_30_percent(parts, folders):
    spec = job(parts)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        for _ in train(spec, folders=folders):
            pass
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert memory_mib(spec, "cpu") == pytest.approx(peak / MIB, rel=0.3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("parts", [case | {"batch_size": 1024} for case in CASES], ids=name)
def test_memory_is_what_a_gpu_is_asked_for_within_30_percent(parts, folders):
    spec = job(parts)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in train(spec, device="cuda", folders=folders):
        pass
    real = (torch.cuda.max_memory_allocated() - before) / MIB
    assert memory_mib(spec, "cuda") == pytest.approx(real, rel=0.3)


def test_memory_grows_with_the_batch_as_the_activations_do():
    at = {n: memory_mib(job({"model": VGG, "batch_size": n}), "cpu") for n in (512, 1024)}
    once = dataset_bytes(job({"model": VGG}).data, torch.float32) / MIB
    assert 1.9 < (at[1024] - once) / (at[512] - once) <= 2


def test_a_checkpoint_on_a_cpu_lives_beside_the_steps_after_it_and_on_a_gpu_not():
    parts = {"model": MLP, **NONE, **ADAMW}
    early = job(parts | {"checkpoint_every": 1})
    values = 1024 * 1024 * 2 + 1024 * 2 + 1024 * 10 + 10
    assert (memory_mib(early, "cpu") - memory_mib(early, "cuda")) * MIB == pytest.approx(3 * 4 * values, rel=0.05)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    memory_mib(job({"model": VGG, "noise": {"kind": "santurkar"}}))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_micro_batch_takes_the_memory_of_its_own_size():
    whole, parts = (memory_mib(job({"model": VGG, "accumulation": n, "batch_size": 512}), "cuda") for n in (1, 8))
    alone = memory_mib(job({"model": VGG, "batch_size": 64}), "cuda")
    assert parts < whole / 2
    # What a micro-batch does not share with a batch of its size: the sum of the gradients before it.
    assert alone < parts < 1.6 * alone


def test_an_average_of_the_weights_is_held_beside_them():
    averaged, plain = (memory_mib(job({"model": MLP, **NONE, "ema": decay}), "cuda") for decay in (0.9, None))
    values = build_model(job({"model": MLP, **NONE}), device="meta").parameters()
    assert (averaged - plain) * MIB == pytest.approx(4 * sum(value.numel() for value in values), rel=0.05)


def test_probes_hold_their_copies_one_after_the_other_and_those_that_see_updates_two_more():
    def copies(*kinds):
        parts = {"model": MLP, **NONE, "probes": [{"kind": kind, "every": 1} for kind in kinds]}
        return (memory_mib(job(parts), "cuda") - memory_mib(job({"model": MLP, **NONE}), "cuda")) * MIB / model

    model = 4 * sum(each.numel() for each in build_model(job({"model": MLP, **NONE}), device="meta").parameters())
    assert copies("landscape") == pytest.approx(LandscapeProbeSpec.copies, rel=0.05)
    assert copies("covariate_shift") == pytest.approx(CovariateShiftProbeSpec.copies + 2, rel=0.05)
    assert copies("landscape", "covariate_shift") == pytest.approx(copies("covariate_shift"), rel=0.05)


def test_the_path_that_a_probe_keeps_is_held_on_a_cpu_and_in_its_checkpoint_and_on_a_gpu_not():
    def copies(device, every=1):
        less, more = (
            memory_mib(job({"model": MLP, **NONE, "steps": 100, "checkpoint_every": 50, "probes": [plane]}), device)
            for plane in ({"kind": "plane", "every": every, "keep": keep} for keep in (4, 24))
        )
        return (more - less) * MIB / model

    model = 4 * sum(each.numel() for each in build_model(job({"model": MLP, **NONE}), device="meta").parameters())
    assert copies("cpu") == copies("cpu", every={"kind": "log_spaced"}) == pytest.approx(2 * 20)
    # Ten there are, whatever the room.
    assert copies("cpu", every=10) == pytest.approx(2 * 6)
    assert copies("cuda") == 0
