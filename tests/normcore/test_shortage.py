"""What is advised where memory ran out, and that it would do."""

import re

import pytest
import torch

from normcore.memory import MIB
from normcore.rehearsal import memory_mib
from normcore.shortage import HELD_BACK, available_mib, more_micro_batches, remedy, smaller_batches
from normcore.spec import JobSpec


def job(**changes):
    """A thin net at a batch that is most of what it takes."""
    small = {"model": {"kind": "mlp", "hidden": [32, 32]}, "data": {"kind": "digits", "size": 8}, "batch_size": 7680}
    return JobSpec.model_validate(small | {"steps": 2} | changes)


def with_(spec, **changes):
    return JobSpec.model_validate(spec.model_dump() | changes)


@pytest.mark.parametrize(
    "spec",
    [
        job(),
        job(accumulation=2),
        job(devices=2),
        job(norm={"kind": "sync"}, devices=2, accumulation=4),
        job(norm={"kind": "layer"}, optimizer={"kind": "adamw"}),
        job(norm={"kind": "ghost", "virtual_batch_size": 8}),
        job(norm={"kind": "none"}, precision="float64"),
    ],
    ids=["plain", "micro-batches", "devices", "sync", "layer", "ghost", "none"],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_advised_fits_by_the_estimate_and_is_the_first_that_does(spec, device):
    available = 0.6 * memory_mib(spec, device) * HELD_BACK[device]
    advice = remedy(spec, device, available)
    size, count = (re.search(rf"{word} (\d+)", advice) for word in ("a batch_size of", "accumulation"))
    assert size, advice
    assert count, advice

    def fits(change):
        return memory_mib(with_(spec, **change), device) * HELD_BACK[device] <= available

    chosen = {"batch_size": int(size[1]), "batch_size_per_device": None}, {"accumulation": int(count[1])}
    for change, offered in zip(chosen, (smaller_batches(spec), more_micro_batches(spec)), strict=True):
        assert fits(change)
        for before in offered:
            if before == change:
                break
            assert not fits(before)
        else:
            pytest.fail(f"{change} is not on offer")


def test_micro_batches_are_said_to_do_to_a_norm_of_the_batch_what_a_smaller_batch_does_and_more():
    spec = job(devices=2, accumulation=2)
    advice = remedy(spec, "cuda", memory_mib(spec, "cuda") * HELD_BACK["cuda"] * 0.9)
    assert "over 960 samples instead of 1920; or accumulation 3 with the batch_size as it is" in advice
    assert "for updates of 3 micro-batches of 1280 samples each: " in advice
    assert advice.endswith("over 1280 samples instead of 1920, and running statistics move 3 times an update")


@pytest.mark.parametrize(
    ("norm", "sentence"),
    [
        ({"kind": "none"}, "there is no norm to notice it"),
        ({"kind": "layer"}, "layer norm does not depend on the batch size"),
        (
            {"kind": "ghost", "virtual_batch_size": 8},
            "over virtual batches of 8 samples, which must divide it, and run",
        ),
        ({"kind": "sync"}, "sync norm would then take its statistics over 3840 samples instead of 7680"),
    ],
)
def test_each_kind_of_norm_is_told_of_as_it_is(norm, sentence):
    spec = job(norm=norm, devices=2)
    advice = remedy(spec, "cuda", memory_mib(spec, "cuda") * HELD_BACK["cuda"] * 0.95)
    assert sentence in advice.partition("; or ")[2]


def test_where_nothing_fits_that_is_said():
    assert remedy(job(), "cuda", 0.05).endswith(
        "no smaller batch_size would fit, nor would micro-batches: lower the model's width"
    )


def test_of_a_gpu_in_slots_only_the_share_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (900 * MIB, 1000 * MIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 50 * MIB)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 0.25)
    assert available_mib("cuda") == 200
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 1.0)
    assert available_mib("cuda") == 900
