import pytest
import torch
from torch import nn
from torch.nn import functional

from normcore.models.attention import SelfAttention
from normcore.refusal import Refusal


def made(width: int = 8, heads: int = 2) -> SelfAttention:
    torch.manual_seed(0)
    attention = SelfAttention(width, heads, dtype=torch.float64)
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    return attention


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 5, 8, dtype=torch.float64), torch.arange(5).expand(3, 5) < torch.tensor([[5], [3], [1]])


@pytest.mark.parametrize("masked", [False, True])
def test_it_is_torchs_multihead_attention(masked):
    attention, (x, mask) = made(), tokens()
    theirs = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    state = attention.state_dict()
    names = {"in_proj_weight": "qkv.weight", "in_proj_bias": "qkv.bias"}
    theirs.load_state_dict(
        {name: state[names.get(name, name.replace("out_proj", "out"))] for name in theirs.state_dict()}
    )
    expected = theirs(x, x, x, key_padding_mask=~mask if masked else None, need_weights=False)[0]
    torch.testing.assert_close(attention(x, mask if masked else None), expected)


def test_its_weights_are_those_of_scaled_dot_product_attention():
    attention, (x, mask) = made(), tokens()
    q, k, v = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in attention.qkv(x).chunk(3, 2))
    heads = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
    torch.testing.assert_close(attention(x, mask), attention.out(heads.transpose(1, 2).flatten(2)))


def test_a_sample_without_real_tokens_attends_to_nothing():
    attention, (x, mask) = made(), tokens()
    torch.testing.assert_close(attention(x, mask & False), attention.out.bias.expand(3, 5, 8))


def test_it_is_differentiable_twice():
    attention, (x, mask) = made(), tokens()
    x = x[:2, :3].requires_grad_()
    assert torch.autograd.gradgradcheck(lambda values: attention(values, mask[:2, :3]), x)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(
        Refusal, match="heads must divide width, got heads 4 and width 6; take a divisor of 6, such as 3"
    ):
        SelfAttention(6, 4)
