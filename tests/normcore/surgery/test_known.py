import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from normcore.norms.group import GroupNorm
from normcore.surgery.channels_last import ChannelsLast
from normcore.surgery.known import Known, norms_of, recognize


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm has it: a batch norm that goes on with a dropout and an activation."""

    def __init__(self, num_features: int, act: nn.Module):
        super().__init__(num_features)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class RmsNorm2d(nn.Module):
    def __init__(self, num_channels: int, eps: float = 1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(num_channels)), eps


class MyOwnNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.g = nn.Parameter(torch.ones(3))


class NormedHead(nn.Sequential):
    pass


class HeadWithNorm(nn.Module):
    """Its name ends in Norm and it is more than one."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(3), nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("layer", "kind", "num_features", "knobs", "channels_last"),
    [
        (nn.BatchNorm1d(3), "batch", 3, {"eps": 1e-5, "momentum": 0.1}, False),
        (nn.BatchNorm3d(3, eps=0.1, momentum=0.3), "batch", 3, {"eps": 0.1, "momentum": 0.3}, False),
        (nn.SyncBatchNorm(3), "batch", 3, {"eps": 1e-5, "momentum": 0.1}, False),
        (nn.GroupNorm(2, 6), "group", 6, {"num_groups": 2, "eps": 1e-5}, False),
        (nn.InstanceNorm2d(3), "instance", 3, {"eps": 1e-5}, False),
        (nn.LayerNorm(3), "layer_channels", 3, {"eps": 1e-5}, True),
        (nn.LayerNorm((3, 4, 5)), "layer", 3, {"eps": 1e-5}, False),
        (LayerNorm2d(3, eps=1e-6), "layer_channels", 3, {"eps": 1e-6}, False),
        (nn.RMSNorm(3, eps=1e-6), "rms", 3, {"eps": 1e-6}, True),
        (nn.RMSNorm(3), "rms", 3, {"eps": torch.finfo(torch.float32).eps}, True),
        (RmsNorm2d(3), "rms", 3, {"eps": 1e-6}, False),
        (GroupNorm(6, num_groups=3), "group", 6, {"num_groups": 3, "eps": 1e-5}, False),
        (ChannelsLast(GroupNorm(6, num_groups=3)), "group", 6, {"num_groups": 3, "eps": 1e-5}, True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_norm_is_told_in_the_words_of_the_shelf(layer, kind, num_features, knobs, channels_last):
    known = recognize(layer)
    assert isinstance(known, Known)
    assert (known.kind, known.num_features, known.channels_last) == (kind, num_features, channels_last)
    assert knobs.items() <= known.knobs.items()
    assert known.remark == ""


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (nn.LazyBatchNorm2d(), "its channels are unknown until it has seen a batch"),
        (nn.LocalResponseNorm(5), "it does not say how many channels it is given; hand in a calibration batch"),
        (nn.LayerNorm((3, 4)), r"normalized_shape (3, 4) does not say which dimension is the channels"),
        (MyOwnNorm(), "MyOwnNorm is called a norm and is none that is known here"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_what_cannot_be_told_says_why(layer, why):
    assert recognize(layer).startswith(why)


def test_local_response_norm_is_known_once_its_channels_are():
    known = recognize(nn.LocalResponseNorm(5, k=2.0), channels=6)
    assert (known.kind, known.num_features, known.knobs["convention"]) == ("local_response", 6, "torch")


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 3, 1), nn.ReLU(), HeadWithNorm(), NormedHead()], ids=lambda m: str(m)[:9]
)
def test_other_layers_are_no_norms(layer):
    assert recognize(layer) is None


@pytest.mark.parametrize(
    ("layer", "remark"),
    [
        (nn.BatchNorm2d(3, momentum=None), "plain averages"),
        (nn.BatchNorm2d(3, track_running_stats=False), "by the batch in evaluation as well"),
        (nn.InstanceNorm2d(3, track_running_stats=True), "by running statistics in evaluation"),
    ],
)
def test_what_differs_from_the_shelf_is_remarked(layer, remark):
    assert remark in recognize(layer).remark


def test_a_gamma_per_pixel_is_averaged_and_remarked_unless_it_is_one_per_channel():
    layer = nn.LayerNorm((2, 2, 2))
    layer.weight.data[1] = 3.0
    known = recognize(layer)
    assert known.remark == ""
    assert known.gamma.tolist() == [1, 3]
    layer.weight.data[1, 0, 0] = 7.0
    known = recognize(layer)
    assert "from pixel to pixel" in known.remark
    assert known.gamma.tolist() == [1, 4]


def test_the_activation_that_a_layer_holds_is_seen():
    known = recognize(BatchNormAct2d(3, nn.SiLU()))
    assert known.kind == "batch"
    assert [type(part) for part in known.after.values()] == [nn.SiLU]
    assert recognize(BatchNormAct2d(3, nn.Identity())).after == {}


def test_norms_in_a_scripted_module_cannot_be_reached():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.BatchNorm2d(3)))
    assert norms_of(nn.Sequential(scripted)) == {"0.0": "it stands in a scripted module, whose code is fixed"}


def test_norms_of_weights_are_not_listed():
    assert norms_of(nn.Sequential(weight_norm(nn.Linear(2, 2)), spectral_norm(nn.Linear(2, 2)))) == {}


def test_norms_within_norms_are_not_listed():
    assert list(norms_of(nn.Sequential(ChannelsLast(GroupNorm(6, num_groups=3))))) == ["0"]
    assert list(norms_of(nn.BatchNorm2d(3))) == [""]
