import math
import statistics

import pytest
import torch
from torch import nn
from torch.nn import functional

from normcore.refusal import Refusal
from normcore.weights.standardized import WeightStandardization, apply

W = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.3


def twin(weight, convention):
    """The authors' formulas, filter by filter, with the standard library's statistics."""
    out = []
    for filter_ in weight:
        values = filter_.flatten().tolist()
        mean = statistics.fmean(values)
        if convention == "qiao":
            divisor = statistics.stdev(values) + 1e-5
        else:
            divisor = math.sqrt(statistics.pvariance(values) + 1e-6)
        out.append(torch.tensor([(value - mean) / divisor for value in values], dtype=torch.float64).view_as(filter_))
    return torch.stack(out)


@pytest.mark.parametrize("convention", ["qiao", "timm"])
@pytest.mark.parametrize("factor", [1.0, 1e-4])
def test_is_the_formula_of_its_convention(convention, factor):
    torch.testing.assert_close(WeightStandardization(convention)(factor * W), twin(factor * W, convention))


def test_conventions_differ_by_the_root_of_n_minus_one_over_n():
    qiao, timm = (WeightStandardization(convention)(1e4 * W) for convention in ("qiao", "timm"))
    torch.testing.assert_close(qiao, timm * math.sqrt(17 / 18), rtol=1e-8, atol=0)


def test_is_what_instance_norm_is_to_maps():
    rows = functional.instance_norm(W.view(1, 5, -1), eps=1e-6).view_as(W)
    torch.testing.assert_close(WeightStandardization("timm")(W), rows)


def test_neither_scale_nor_shift_of_a_filter_is_seen_and_its_gradient_sums_to_zero():
    weight = (3.0 * W + torch.arange(5.0).view(5, 1, 1, 1)).requires_grad_()
    y = WeightStandardization("qiao")(weight)
    torch.testing.assert_close(y, WeightStandardization("qiao")(W), rtol=1e-4, atol=1e-5)
    (grad,) = torch.autograd.grad(y.tanh().square().sum(), weight)
    assert grad.sum((1, 2, 3)).abs().max() < 1e-13


@pytest.mark.parametrize("convention", ["qiao", "timm"])
@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 1, groups=4), nn.Linear(1, 3)], ids=["depthwise", "linear"])
def test_a_single_weight_in_a_unit_is_refused_with_its_layer(convention, layer):
    sentence = r"more than one weight in an output unit, got a weight of shape \(.*1\).*; take wider layers"
    with pytest.raises(Refusal, match=sentence) as refused:
        apply(nn.Sequential(nn.Linear(2, 2), layer), convention=convention)
    assert (refused.value.code, refused.value.layer) == ("fan-in-of-one", "1")
