import itertools
from typing import Any

import pytest
import torch

from normcore.build import build_model
from normcore.norms.norm import Norm
from normcore.refusal import Refusal
from normcore.spec import JobSpec

VGG = {"kind": "vgg", "width": 0.0625}
NORMS = [{"kind": "none"}, {"kind": "batch"}, {"kind": "group", "num_groups": 4}, {"kind": "layer"}]


def job(**parts: Any) -> JobSpec:
    return JobSpec.model_validate({"model": VGG, "data": {"kind": "digits"}} | parts)


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm["kind"])
def test_arms_share_every_weight_that_they_both_have(norm):
    plain = dict(build_model(job(norm={"kind": "none"}, seed=3)).named_parameters())
    assert plain
    for noise, placement in itertools.product(("none", "santurkar"), ("before", "after")):
        spec = job(norm=norm, noise={"kind": noise}, model=VGG | {"norm_placement": placement}, seed=3)
        arm = dict(build_model(spec).named_parameters())
        assert all(torch.equal(arm[name], value) for name, value in plain.items())
        assert {name.split(".")[-2] for name in arm.keys() - plain.keys()} <= {"norm"}


def test_another_seed_is_another_model():
    first, second = (build_model(job(seed=seed)).classifier.weight for seed in (0, 1))
    assert not torch.equal(first, second)


def test_knobs_reach_the_norm_and_the_noise():
    norm = {"kind": "batch", "eps": 0.5, "momentum": 0.25, "affine": False}
    block = build_model(job(norm=norm, noise={"kind": "santurkar", "mean_range": 3.0})).blocks[0]
    assert (block.norm.eps, block.norm.momentum, block.norm.weight) == (0.5, 0.25, None)
    assert block.noise.mean_range == 3.0


def test_every_site_has_a_norm_and_the_logits_have_none():
    model = build_model(job(model={"kind": "vgg", "depth": 16, "width": 0.0625}))
    assert sum(isinstance(module, Norm) for module in model.modules()) == 13


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("float32", torch.float32), ("bfloat16", torch.float32), ("float64", torch.float64)],
)
def test_parameters_have_the_dtype_of_the_precision(precision, dtype):
    assert {p.dtype for p in build_model(job(precision=precision)).parameters()} == {dtype}


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    build_model(job(noise={"kind": "santurkar"}))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_does_not_fit_is_refused():
    with pytest.raises(Refusal, match="got num_groups 32 and num_features 4; take a divisor of 4"):
        build_model(job(norm={"kind": "group"}))
