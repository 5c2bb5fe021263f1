"""Which norms see padding, found by putting something there."""

import re

import pytest
import torch

from normcore.menu.spec import Spec
from normcore.norms.norm import Norm
from normcore.norms.padding import check_padding
from normcore.refusal import Refusal
from normcore.spec import MENU, kind_of

KNOBS = {
    "ghost": {"virtual_batch_size": 2},
    "group": {"num_groups": 2},
    "evonorm_s0": {"num_groups": 2},
    "whitening": {"channels_per_group": 2},
    "iterative": {"channels_per_group": 2},
}
"""Knobs that let a norm stand on four samples of six channels and seven tokens."""


def made(spec: type[Spec]) -> Norm:
    asked = spec(**KNOBS.get(kind_of(spec), {}))
    norm: Norm = asked.part()(6, **asked.knobs(), dtype=torch.float64)
    return norm.train()


def batch(seed: int) -> torch.Tensor:
    return torch.randn(4, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spec", MENU["norm"], ids=kind_of)
def test_the_norms_that_say_they_look_at_each_token_by_itself_are_those_that_do(spec):
    x, other = batch(0), batch(1)
    changed = torch.cat([x[:, :, :5], other[:, :, 5:]], 2)
    difference = (made(spec)(changed) - made(spec)(x))[:, :, :5].abs().max().item()
    assert (difference <= 1e-15) == made(spec).claims.per_pixel


@pytest.mark.parametrize("spec", [spec for spec in MENU["norm"] if made(spec).takes_mask], ids=kind_of)
def test_norms_that_take_a_mask_leave_padding_out(spec):
    x, other = batch(0), batch(1)
    mask = torch.arange(7).expand(4, 7) < torch.tensor([[7], [5], [2], [3]])
    changed = torch.where(mask.unsqueeze(1), x, other)
    assert torch.equal(made(spec)(changed, mask), made(spec)(x, mask))


@pytest.mark.parametrize("spec", MENU["norm"], ids=kind_of)
def test_a_norm_may_stand_on_padded_data_if_it_takes_a_mask_or_needs_none(spec):
    norm = made(spec)
    if norm.takes_mask or norm.claims.per_pixel:
        check_padding(norm)
        return
    with pytest.raises(Refusal, match=re.escape(type(norm).__name__)) as refused:
        check_padding(norm, "blocks.0.norm")
    assert (refused.value.code, refused.value.layer) == ("norm-takes-no-mask", "blocks.0.norm")
    assert ("mixes samples" in str(refused.value)) == (norm.claims.statistics == "batch")
