import pytest
import torch
from torch import nn

from normcore.norms.group import GroupNorm
from normcore.norms.none import NoNorm
from normcore.surgery.evaluation_affine import evaluation_affine
from tests.normcore.surgery.nets import lived


@pytest.mark.parametrize(
    ("norm", "pixels"),
    [(nn.BatchNorm1d(3), (5,)), (nn.BatchNorm2d(3, eps=0.1), (2, 2)), (nn.BatchNorm3d(3), (2, 2, 2))],
)
def test_batch_norm_is_gamma_over_the_root_of_the_running_variance(norm, pixels):
    lived(norm, 4, 3, *pixels)
    found = evaluation_affine(norm, 3)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(found.scale, scale, rtol=1e-15, atol=0)
    torch.testing.assert_close(found.shift, norm.bias - norm.running_mean * scale, rtol=1e-13, atol=1e-15)


def test_the_scale_keeps_its_digits_beside_a_huge_shift():
    norm = nn.BatchNorm2d(2).double().eval()
    norm.running_mean.fill_(1e8)
    norm.running_var.fill_(1e-6)
    torch.testing.assert_close(
        evaluation_affine(norm, 2).scale, (norm.running_var + norm.eps).rsqrt(), rtol=1e-15, atol=0
    )


def test_the_identity_is_one_and_zero():
    found = evaluation_affine(NoNorm(3), 3)
    assert torch.equal(found.scale, torch.ones(3).double())
    assert torch.equal(found.shift, torch.zeros(3).double())


@pytest.mark.parametrize(
    "layer",
    [
        GroupNorm(4, num_groups=2),
        nn.ReLU(),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Conv2d(4, 4, 1),
        nn.Softmax(dim=1),
        nn.BatchNorm2d(4, device="meta"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_other_functions_are_not_affine(layer):
    assert evaluation_affine(layer, 4) is None


def test_the_layer_is_left_alone_and_its_hooks_do_not_run():
    norm = nn.BatchNorm2d(2)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    norm.register_forward_hook(lambda *_: pytest.fail("a hook ran"))
    assert evaluation_affine(norm, 2) is not None
    assert norm.training
    assert norm.weight.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
