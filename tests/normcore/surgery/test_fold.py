import pytest
import torch
from torch import nn

from normcore.norms.batch import BatchNorm
from normcore.surgery.fold import fold
from normcore.surgery.known import norms_of
from tests.normcore.surgery.nets import Net, gap, lived


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_folded_net_is_the_same_function_without_norms(net, x, dtype, atol):
    net, x = net.to(dtype), x.to(dtype)
    folding = fold(net)
    assert [(row.path, row.into) for row in folding.rows] == [
        ("bn", "conv"),
        ("blocks.0.bn1", "blocks.0.conv1"),
        ("blocks.0.bn2", "blocks.0.conv2"),
        ("blocks.1.bn1", "blocks.1.conv1"),
        ("blocks.1.bn2", "blocks.1.conv2"),
        ("last.1", "last.0"),
    ]
    assert not norms_of(folding.model)
    assert not any(module.training for module in folding.model.modules())
    assert gap(net(x), folding.model(x)) < atol
    assert len(norms_of(net)) == 6


def test_half_precision_is_rounded_once(net, x):
    half = fold(net.bfloat16()).model
    assert gap(net.double()(x), half(x.bfloat16())) < 0.05


@pytest.mark.parametrize("norm", [BatchNorm(6), nn.BatchNorm2d(6, affine=False), nn.SyncBatchNorm(6)])
def test_norms_of_the_shelf_and_of_torch_fold(norm):
    net = nn.Sequential(nn.Conv2d(2, 6, 3), norm).double().eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    folded = fold(net).model
    assert isinstance(folded[1], nn.Identity)
    torch.testing.assert_close(folded(x), net(x), rtol=0, atol=1e-12)


def test_a_linear_layer_before_batch_norm_of_vectors_folds():
    net = lived(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU()), 8, 3)
    x = torch.randn(4, 3, dtype=torch.float64)
    folding = fold(net)
    assert folding.rows[0].into == "0"
    torch.testing.assert_close(folding.model(x), net(x), rtol=0, atol=1e-12)


class ReadTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + y


class CalledTwice(ReadTwice):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.conv(x + 1)


class Tied(ReadTwice):
    def forward(self, x):
        return self.bn(self.conv(x)) * self.conv.weight.sum()


class Opaque(ReadTwice):
    def forward(self, x):
        return self.bn(self.conv(x)) if x.mean() > 9 else x


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    net[1].register_forward_hook(lambda *_: None)
    return net


SHARED = nn.BatchNorm2d(3)


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (ReadTwice(), "what comes before it is read by others too, or could not be recorded"),
        (CalledTwice(), "conv is called at 2 places, and only one of them is before this norm"),
        (Tied(), "the weight of conv is read by somebody else"),
        (Opaque(), "it is called at 0 places that could be recorded, and must be at one"),
        (hooked(), "it carries hooks, which would see other values"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), SHARED, nn.Conv2d(3, 3, 1), SHARED), "it is called at 2 places"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)), "1: ReLU is no linear map"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3)), "it is no scale and shift per channel in evaluation"),
        (
            nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
            "it is no scale and shift per channel in evaluation",
        ),
        (nn.BatchNorm2d(3), "it is called at 0 places"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_norm_that_cannot_be_folded_stays_and_says_why(net, why):
    net = net.double().eval()
    folding = fold(net)
    (row,) = folding.rows
    assert row.into == ""
    assert row.why.startswith(why)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    assert torch.equal(folding.model(x), net(x))


def test_a_norm_in_training_mode_is_not_folded():
    (row,) = fold(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))).rows
    assert row.why == "it is in training mode, where it normalizes by the batch; take model.eval() first"


def test_a_folded_net_exports_and_its_report_prints():
    folding = fold(Net().eval())
    torch.export.export(folding.model, (torch.randn(2, 3, 8, 8),))
    assert str(folding).splitlines()[:2] == [
        "path          was          into",
        "bn            BatchNorm2d  conv",
    ]
