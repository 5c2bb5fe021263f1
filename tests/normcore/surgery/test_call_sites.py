import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from normcore.surgery.call_sites import CallSites
from normcore.surgery.known import is_norm
from tests.normcore.surgery.nets import Net


def reader(calls: CallSites, path: str) -> str | None:
    (site,) = calls.of(path)
    found = calls.reader(site)
    return None if found is None else calls.called(found) or found.node.target.__name__


def writer(calls: CallSites, path: str) -> str | None:
    (site,) = calls.of(path)
    found = calls.writer(site)
    return None if found is None else calls.called(found) or found.node.target.__name__


def test_who_reads_and_who_writes_in_a_residual_net():
    calls = CallSites(Net(), is_norm)
    assert not calls.opaque
    assert reader(calls, "bn") == "relu"
    assert reader(calls, "blocks.0.bn1") == "blocks.0.relu"
    assert reader(calls, "blocks.0.bn2") == "add"
    assert reader(calls, "last.1") == "last.2"
    assert writer(calls, "blocks.1.bn2") == "blocks.1.conv2"
    assert [site.owner for site in calls.of("blocks.0.relu")] == ["blocks.0", "blocks.0"]


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Identity(), nn.Sequential(nn.BatchNorm2d(2), nn.Identity()))
        self.tail = nn.Sequential(nn.ReLU(), nn.Conv2d(2, 1, 1))

    def forward(self, x):
        return self.tail(self.body(x))


def test_results_are_followed_out_of_modules_and_into_them_past_identities():
    calls = CallSites(Nested(), is_norm)
    assert reader(calls, "body.2.0") == "tail.0"
    assert writer(calls, "body.2.0") == "body.0"


class Branching(nn.Module):
    """Its own forward depends on values, that of its block does not."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU())

    def forward(self, x):
        return self.block(x) if x.sum() > 0 else x


def test_what_stands_below_a_forward_that_cannot_be_recorded_is_recorded():
    calls = CallSites(Branching(), is_norm)
    assert "symbolically traced" in calls.opaque[""]
    assert reader(calls, "block.1") == "block.2"


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x):
        y = self.conv(x)
        return functional.relu(self.bn(y)) + y


def test_a_result_that_two_read_has_no_reader():
    calls = CallSites(Twice(), is_norm)
    assert writer(calls, "bn") is None
    assert reader(calls, "conv") is None


class ReadPast(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(2)

    def forward(self, x):
        return self.bn(x) * self.bn.weight.sum()


def test_parameters_read_past_their_module_are_seen():
    assert CallSites(ReadPast()).is_read("bn")
    assert not CallSites(Twice()).is_read("bn")


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x):
        self.seen = x
        return self.inner(x)


def test_recording_leaves_nothing_behind_in_the_model():
    model = nn.Sequential(Remembers(), nn.BatchNorm2d(2))
    CallSites(model)
    assert not hasattr(model[0], "seen")
    assert all(module.training for module in model.modules())


class ByMode(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(2)

    def forward(self, x):
        return functional.relu(self.bn(x)) if self.training else functional.relu(self.bn(x)) * 2


class WithDefault(ByMode):
    def forward(self, x, skip=None):
        y = functional.relu(self.bn(x))
        return y if skip is None else y + skip


class WithoutGradients(ByMode):
    def forward(self, x):
        with torch.no_grad():
            mean = x.mean()
        return functional.relu(self.bn(x - mean))


@pytest.mark.parametrize("model", [ByMode(), WithDefault(), WithoutGradients()], ids=lambda model: type(model).__name__)
def test_a_recording_that_left_something_out_takes_no_forward_s_place(model):
    calls = CallSites(model, is_norm)
    assert reader(calls, "bn") == "relu"
    assert calls.recordable("") is None
    assert CallSites(Twice(), is_norm).recordable("") is not None


def test_a_layer_with_a_parametrized_weight_is_still_a_layer():
    calls = CallSites(nn.Sequential(weight_norm(nn.Conv2d(2, 2, 1)), nn.BatchNorm2d(2)), is_norm)
    assert writer(calls, "1") == "0"


def test_a_module_that_stands_twice_has_one_name():
    norm = nn.BatchNorm2d(2)
    calls = CallSites(nn.Sequential(norm, nn.Conv2d(2, 2, 1), norm))
    assert calls.of("0") == calls.of("2")
    assert len(calls.of("0")) == 2


def test_the_tensors_are_shared_with_the_model():
    model = nn.Sequential(nn.Linear(2, 2))
    calls = CallSites(model)
    assert calls._copy[0].weight is model[0].weight
    assert isinstance(model[0].weight, torch.nn.Parameter)
