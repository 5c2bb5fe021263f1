"""With a stand-in for timm, whose nets have what timm's have; and with timm itself where it is installed."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from normcore.build import build_model
from normcore.noise.noise import Noise, start_step
from normcore.norms.norm import Norm
from normcore.preview import preview
from normcore.refusal import Refusal
from normcore.spec import JobSpec


class Net(nn.Module):
    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = nn.Conv2d(in_chans, 8, 3), nn.BatchNorm2d(8, eps=1e-3), nn.ReLU()
        self.fc = nn.Linear(8, num_classes)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.act1(self.bn1(self.conv1(x))).mean((2, 3)))


def create_model(name: str, *, pretrained: bool, num_classes: int, in_chans: int) -> nn.Module:
    assert not pretrained
    return Net(num_classes, in_chans)


@pytest.fixture
def stand_in(monkeypatch):
    timm = SimpleNamespace(is_model=lambda name: name == "resnet18", create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", timm)


def job(norm: str = "batch", **parts: object) -> JobSpec:
    knobs = (
        {"num_groups": 2}
        if norm in {"group", "evonorm_s0"}
        else {"channels_per_group": 2}
        if norm == "whitening"
        else {}
    )
    base = {"model": {"kind": "timm"}, "data": {"kind": "digits"}, "norm": {"kind": norm} | knobs, "batch_size": 8}
    return JobSpec.model_validate(base | parts)


def test_without_timm_it_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    (reason,) = preview(job()).reasons
    assert (reason.code, reason.pointer) == ("timm-not-installed", "/model/kind")
    assert "got none of this name; install it with pip install 'normcore[timm]'" in reason.detail


@pytest.mark.parametrize("norm", ["none", "batch", "group", "layer", "filter_response", "evonorm_s0", "whitening"])
@pytest.mark.parametrize("noise", ["none", "santurkar"])
def test_every_norm_is_that_of_the_job_with_a_noise_behind_it(stand_in, norm, noise):
    spec = job(norm, noise={"kind": noise})
    seen = preview(spec)
    assert not seen.reasons
    model = build_model(spec)
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    assert [type(module) for module in norms] == [spec.norm.part()]
    assert [type(module) for module in model.modules() if isinstance(module, Noise)] == [spec.noise.part()]
    assert sum(p.numel() for p in model.parameters()) == seen.num_parameters
    start_step(model, 0, 0)
    logits = model(torch.randn(8, 1, 32, 32))
    logits.square().sum().backward()
    assert logits.shape == (8, 10)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_arms_share_their_initial_values_and_no_global_generator_moves(stand_in):
    state = torch.get_rng_state()
    one, other, third = (build_model(job(norm, seed=seed)) for norm, seed in (("batch", 1), ("group", 1), ("batch", 2)))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.net.conv1.weight, other.net.conv1.weight)
    assert not torch.equal(one.net.conv1.weight, third.net.conv1.weight)


def test_a_net_that_timm_does_not_know_is_refused(stand_in):
    with pytest.raises(Refusal, match='timm must know the net, got "resnet0"; ') as refused:
        build_model(job(model={"kind": "timm", "name": "resnet0"}))
    assert refused.value.code == "no-such-net"


def test_fixup_is_refused(stand_in):
    with pytest.raises(Refusal, match="got a net of timm") as refused:
        build_model(job("none", weight={"kind": "fixup"}))
    assert refused.value.code == "no-branches"


@pytest.mark.parametrize("name", ["", "resnet18/../x", "hf-hub:x/y", "local-dir:x"])
def test_names_that_lead_to_the_hub_or_to_files_are_refused(name):
    with pytest.raises(ValueError, match="name"):
        job(model={"kind": "timm", "name": name})


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm: pip install 'normcore[timm]'")
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_timms_own_resnet_makes_a_step(norm):
    spec = job(norm)
    assert not preview(spec).reasons
    model = build_model(spec)
    model(torch.randn(8, 1, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
