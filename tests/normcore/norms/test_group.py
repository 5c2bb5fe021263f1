import pytest
import torch
from torch import nn

from normcore.norms.group import GroupNorm
from normcore.norms.instance import InstanceNorm
from normcore.norms.layer import LayerNorm
from normcore.refusal import Refusal

X = torch.randn(3, 6, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def group(num_groups: int, num_features: int = 6, **knobs: float) -> GroupNorm:
    return GroupNorm(num_features, num_groups=num_groups, dtype=torch.float64, **knobs)


@pytest.mark.parametrize("num_groups", [1, 2, 3, 6])
def test_equals_torch(num_groups):
    torch.testing.assert_close(group(num_groups)(X), nn.GroupNorm(num_groups, 6).double()(X))


def test_one_group_is_layer_norm():
    assert torch.equal(group(1)(X), LayerNorm(6, dtype=torch.float64)(X))


def test_a_group_per_channel_is_instance_norm():
    torch.testing.assert_close(group(6)(X), InstanceNorm(6, dtype=torch.float64)(X))


def test_is_the_same_in_evaluation_and_for_every_batch():
    norm = group(2)
    torch.testing.assert_close(norm.eval()(X), norm.train()(X), rtol=0, atol=0)
    torch.testing.assert_close(norm(X[:1]), norm(X)[:1])


@pytest.mark.parametrize(("num_groups", "num_features", "remedy"), [(32, 48, 24), (32, 16, 16), (4, 7, 1), (5, 6, 3)])
def test_groups_that_do_not_divide_are_refused_with_a_number_that_does(num_groups, num_features, remedy):
    sentence = (
        f"num_groups must divide num_features, got num_groups {num_groups} and num_features {num_features}; "
        f"take a divisor of {num_features}, such as {remedy}$"
    )
    with pytest.raises(Refusal, match=sentence) as refused:
        GroupNorm(num_features, num_groups=num_groups)
    assert refused.value.code == "groups-do-not-divide"
    GroupNorm(num_features, num_groups=remedy)


@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 1, 1)])
def test_groups_of_a_single_value_are_refused(shape):
    """Torch returns zeros for them, but for rounding, whatever the input."""
    assert nn.GroupNorm(6, 6)(torch.randn(shape)).abs().max() < 1e-3
    sentence = "more than one value in a group, got 6 channels of one pixel in num_groups 6; take fewer groups"
    with pytest.raises(Refusal, match=sentence) as refused:
        GroupNorm(6, num_groups=6)(torch.randn(shape))
    assert refused.value.code == "one-value-group"
    assert GroupNorm(6, num_groups=3)(torch.randn(shape)).abs().max() > 0.5
