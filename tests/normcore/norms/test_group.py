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


@pytest.mark.parametrize(
    ("num_features", "num_groups", "taken"), [(48, 32, 24), (16, 32, 16), (7, 4, 1), (6, 5, 3), (64, 32, 32)]
)
def test_nearest_takes_the_largest_divisor_not_above_and_says_so(num_features, num_groups, taken):
    norm = GroupNorm(num_features, num_groups=num_groups, divisibility="nearest")
    assert norm.num_groups == taken
    said = f"num_groups={taken} (nearest to {num_groups})" if taken != num_groups else f"num_groups={taken},"
    assert said in repr(norm)
    x = torch.randn(2, num_features, 3)
    assert torch.equal(norm(x), GroupNorm(num_features, num_groups=taken)(x))


def test_channels_per_group_takes_the_place_of_num_groups():
    norm = GroupNorm(6, channels_per_group=2, dtype=torch.float64)
    assert norm.num_groups == 3
    assert torch.equal(norm(X), group(3)(X))
    nearest = GroupNorm(6, channels_per_group=4, divisibility="nearest")
    assert nearest.num_groups == 2
    assert "num_groups=2 (3 channels each), channels_per_group=4, divisibility=nearest" in repr(nearest)
    with pytest.raises(
        Refusal, match="channels_per_group must divide num_features, got channels_per_group 4 and"
    ) as refused:
        GroupNorm(6, channels_per_group=4)
    assert refused.value.code == "channels-per-group-do-not-divide"


def test_takes_a_mask_and_refuses_another_shape():
    mask = torch.ones(3, 4, 4, dtype=torch.bool)
    torch.testing.assert_close(group(2)(X, mask), group(2)(X))
    mask[1] = False
    assert (group(2)(X, mask)[1] == 0).all()
    with pytest.raises(Refusal, match="a mask must have the shape"):
        group(2)(X, mask[:, 0])


@pytest.mark.parametrize("num_groups", [1, 2, 6])
def test_scaling_and_shifting_a_sample_changes_nothing_and_its_sign_the_sign(num_groups):
    norm = group(num_groups, eps=1e-30)
    torch.testing.assert_close(norm(3 * X + 7), norm(X))
    torch.testing.assert_close(norm(-X), -norm(X))
    shift = torch.arange(6.0, dtype=torch.float64).view(6, 1, 1)
    by_channel = bool((norm(X + shift) - norm(X)).abs().max() < 1e-9)
    assert by_channel == (num_groups == 6) == (norm.claims.shift_invariant == "channel")


@pytest.mark.parametrize("num_groups", [1, 2, 6])
def test_weight_and_bias_can_recover_the_input(num_groups):
    x, norm = X[:1], group(num_groups)
    in_groups = x.view(num_groups, -1)
    with torch.no_grad():
        norm.weight.copy_((in_groups.var(1, correction=0) + norm.eps).sqrt().repeat_interleave(6 // num_groups))
        norm.bias.copy_(in_groups.mean(1).repeat_interleave(6 // num_groups))
    torch.testing.assert_close(norm(x), x)
