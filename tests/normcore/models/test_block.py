import pytest
import torch
from torch import nn

from normcore.models.block import ACTIVATIONS, Site, block
from normcore.noise.noise import start_step
from normcore.noise.santurkar import SanturkarNoise
from normcore.norms.batch import BatchNorm
from normcore.norms.filter_response import FilterResponseNorm
from normcore.refusal import Refusal


def built(placement: str, activation: str = "relu") -> nn.Sequential:
    return block(("linear", nn.Linear(2, 3)), 3, Site(BatchNorm, SanturkarNoise, activation, placement))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("placement", ["before", "after"])
def test_noise_follows_the_norm_and_both_stand_before_or_after_the_activation(placement, activation):
    parts, x = built(placement, activation), torch.randn(8, 2)
    start_step(parts, 0, 0)
    y, act = parts.linear(x), getattr(torch, activation)
    expected = act(parts.noise(parts.norm(y))) if placement == "before" else parts.noise(parts.norm(act(y)))
    torch.testing.assert_close(parts(x), expected)


def test_placement_changes_no_name():
    assert set(dict(built("before").named_modules())) == set(dict(built("after").named_modules()))


@pytest.mark.parametrize("tlu", [True, False])
def test_a_relu_gives_way_to_a_norm_that_holds_its_own_non_linearity(tlu):
    def norm(num_features: int) -> FilterResponseNorm:
        return FilterResponseNorm(num_features, learned_eps=True, tlu=tlu)

    parts = block(("linear", nn.Linear(2, 32)), 32, Site(norm, SanturkarNoise))
    assert set(dict(parts.named_modules())) == set(dict(built("before").named_modules()))
    start_step(parts, 0, 0)
    x = torch.randn(8, 2)
    noisy = parts.noise(parts.norm(parts.linear(x)))
    start_step(parts, 0, 0)
    assert noisy.min() < 0
    assert torch.equal(parts(x), noisy if tlu else noisy.relu())


@pytest.mark.parametrize(("activation", "placement"), [("tanh", "before"), ("sigmoid", "before"), ("relu", "after")])
def test_no_other_activation_and_no_other_place_is_given_to_such_a_norm(activation, placement):
    sentence = (
        f"FilterResponseNorm holds its own non-linearity and takes the place of a relu that follows it, got activation "
        f"{activation} with norm_placement {placement}; take relu and before, or a norm without a non-linearity$"
    )
    with pytest.raises(Refusal, match=sentence) as refused:
        block(("linear", nn.Linear(2, 3)), 3, Site(FilterResponseNorm, SanturkarNoise, activation, placement))
    assert refused.value.code == "norm-activates"
