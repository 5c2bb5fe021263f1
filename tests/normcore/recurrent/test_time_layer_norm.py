import pytest
import torch
from torch import nn

from normcore.recurrent.time_layer_norm import TimeLayerNorm
from normcore.refusal import Refusal

X = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_equals_torch_layer_norm_at_every_time_step():
    ours, theirs = TimeLayerNorm(6, dtype=torch.float64), nn.LayerNorm(6).double()
    torch.testing.assert_close(ours(X), theirs(X))
    torch.testing.assert_close(ours(X[:, 2:3], time=2), theirs(X[:, 2:3]))


def test_without_shift_there_is_a_scale_alone():
    assert [name for name, _ in TimeLayerNorm(6, shift=False).named_parameters()] == ["weight"]


def test_half_values_of_200_do_not_overflow():
    x = (200 + 50 * X).half()
    torch.testing.assert_close(TimeLayerNorm(6)(x), TimeLayerNorm(6)(x.float()), rtol=0, atol=0)


def test_a_single_value_is_refused():
    with pytest.raises(Refusal, match="more than one value in a sample, got 1; take a larger hidden_size") as refused:
        TimeLayerNorm(1)
    assert refused.value.code == "one-value-layer"
