"""Against torch's softmax over the values that are let in, written as a loop over rows."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from normcore.attention.masked_softmax import masked_log_softmax, masked_softmax
from normcore.refusal import Refusal

DRAWS = torch.Generator().manual_seed(0)
SCORES = torch.randn(4, 5, generator=DRAWS, dtype=torch.float64)
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0]], dtype=torch.bool)
"""A whole row, a part, none, and a single value."""

each_softmax = pytest.mark.parametrize("softmax", [masked_softmax, masked_log_softmax])
each_dtype = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])


def twin(scores: Tensor, mask: Tensor) -> Tensor:
    """Row by row, over the last dimension: leave out, exponentiate, divide."""
    p = torch.zeros_like(scores)
    for row, inside, out in zip(scores.flatten(0, -2), mask.flatten(0, -2), p.flatten(0, -2), strict=True):
        if inside.any():
            weights = torch.exp(row[inside] - row[inside].max())
            out[inside] = weights / weights.sum()
    return p


def zeroed_log(softmax, *arguments) -> Tensor:
    """What can be summed: the log softmax with zeros for its -inf."""
    y = softmax(*arguments)
    return torch.where(y == -torch.inf, 0.0, y)


def test_equals_the_definition_written_as_a_loop():
    torch.testing.assert_close(masked_softmax(SCORES, MASK), twin(SCORES, MASK), rtol=0, atol=1e-15)


def test_an_all_true_mask_is_torch_softmax():
    everything = torch.ones_like(MASK)
    assert torch.equal(masked_softmax(SCORES, everything, 0), torch.softmax(SCORES, 0))
    assert torch.equal(masked_log_softmax(SCORES, everything, 0), torch.log_softmax(SCORES, 0))


def test_log_softmax_is_the_logarithm():
    torch.testing.assert_close(masked_log_softmax(SCORES, MASK).exp(), masked_softmax(SCORES, MASK))
    assert (masked_log_softmax(SCORES, MASK) == -torch.inf).equal(~MASK)


@each_dtype
def test_rows_without_any_true_are_zeros_where_torch_has_nan(dtype):
    scores = SCORES.to(dtype)
    assert torch.softmax(scores.masked_fill(~MASK, -torch.inf), -1)[2].isnan().all()
    p = masked_softmax(scores, MASK)
    assert p.dtype == dtype
    assert (p[2] == 0).all()
    torch.testing.assert_close(p.sum(-1), torch.tensor([1, 1, 0, 1], dtype=dtype))


def test_attention_with_it_equals_torch_scaled_dot_product_attention():
    query, key, value = (torch.randn(2, 3, n, 8, generator=DRAWS, dtype=torch.float64) for n in (4, 5, 5))
    attended = masked_softmax(query @ key.mT / math.sqrt(8), MASK) @ value
    torch.testing.assert_close(attended, functional.scaled_dot_product_attention(query, key, value, attn_mask=MASK))
    assert (attended[..., 2, :] == 0).all()


@each_softmax
@each_dtype
@pytest.mark.parametrize("size", [1e4, "max", "-max"])
def test_huge_scores_are_right_in_every_dtype(softmax, dtype, size):
    """The largest number of a dtype, less the same: 0. A mask of "-1e9" would be infinite in half."""
    limit = torch.finfo(dtype).max
    huge = {"max": limit, "-max": -limit}.get(size, size)
    scores = torch.tensor([[huge, huge, -limit, limit], [-limit, 3.0, -limit, limit]], dtype=dtype)
    mask = torch.tensor([[True, True, False, False], [True, True, True, False]])
    expected = torch.tensor([[0.5, 0.5, 0, 0], [0, 1, 0, 0]], dtype=dtype)
    y = softmax(scores, mask)
    torch.testing.assert_close(y if softmax is masked_softmax else y.exp(), expected)


@each_dtype
def test_a_score_of_minus_infinity_is_out_like_a_masked_one(dtype):
    scores = torch.tensor([[-torch.inf, 1, 1], [-torch.inf, -torch.inf, 7]], dtype=dtype)
    p = masked_softmax(scores, torch.tensor([[True, True, True], [True, True, False]]))
    assert torch.equal(p, torch.tensor([[0, 0.5, 0.5], [0, 0, 0]], dtype=dtype))


@each_softmax
@each_dtype
def test_what_stands_in_masked_scores_does_not_get_in_and_has_no_gradient(softmax, dtype):
    clean, scores = SCORES.to(dtype), SCORES.to(dtype)
    for rubbish in (torch.nan, torch.inf, -torch.inf, torch.finfo(dtype).max):
        scores = torch.where(MASK, clean, rubbish).requires_grad_()
        y = softmax(scores, MASK)
        assert torch.equal(y, softmax(clean, MASK))
        (dx,) = torch.autograd.grad(torch.where(MASK, y, 0).square().sum(), scores)
        assert dx.isfinite().all()
        assert (dx[~MASK] == 0).all()


def test_nan_in_a_score_that_takes_part_is_not_hidden():
    assert masked_softmax(torch.tensor([torch.nan, 1.0]), torch.tensor([True, True])).isnan().all()


@each_softmax
def test_first_and_second_derivatives(softmax):
    scores = torch.cat([SCORES, SCORES]).requires_grad_()
    mask = torch.cat([MASK, MASK.flip(1)])
    assert torch.autograd.gradcheck(zeroed_log, (softmax, scores, mask), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(zeroed_log, (softmax, scores, mask), check_fwd_over_rev=True)


@each_softmax
def test_all_derivatives_are_finite_in_empty_rows_and_at_infinite_scores(softmax):
    scores = torch.tensor([[1.0, 2.0], [-torch.inf, 2.0], [-torch.inf, -torch.inf]], dtype=torch.float64)
    mask = torch.tensor([[False, False], [True, True], [True, True]])

    def loss(scores: Tensor) -> Tensor:
        return (zeroed_log(softmax, scores, mask) ** 3).sum()

    gradient = torch.func.grad(loss)
    assert (gradient(scores) == 0).all()
    for second in (torch.func.jacrev(gradient), torch.func.jacfwd(gradient)):
        assert second(scores).isfinite().all()


@each_softmax
def test_adding_a_number_to_all_scores_of_a_row_changes_nothing(softmax):
    shift = torch.tensor([[3.0], [-200.0], [5.0], [1e4]], dtype=torch.float64)
    torch.testing.assert_close(softmax(SCORES + shift, MASK), softmax(SCORES, MASK))


@each_softmax
def test_permuting_scores_and_mask_permutes_the_output(softmax):
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(softmax(SCORES[:, order], MASK[:, order]), softmax(SCORES, MASK)[:, order])


@pytest.mark.parametrize("shape", [(1, 5), (5,), (3, 1, 1), (2, 1, 4, 5), (1, 1, 1, 1)])
def test_a_mask_that_broadcasts_is_one_that_is_written_out(shape):
    scores = torch.randn(2, 3, 4, 5, generator=DRAWS, dtype=torch.float64)
    mask = torch.rand(shape, generator=DRAWS) < 0.6
    torch.testing.assert_close(masked_softmax(scores, mask), twin(scores, mask.expand(2, 3, 4, 5).contiguous()))


def test_any_dimension_sums_to_one():
    for dim in (0, 1, -1, -3):
        moved = masked_softmax(SCORES.view(4, 5, 1).movedim(1, dim), MASK.view(4, 5, 1).movedim(1, dim), dim)
        torch.testing.assert_close(moved.movedim(dim, 1)[..., 0], masked_softmax(SCORES, MASK))


@each_softmax
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_scores_are_computed_in_float32_and_rounded_once(softmax, dtype):
    """3,000 probabilities of 1/3,000: their sum in half would stop growing long before 1."""
    scores = torch.zeros(1, 3000, dtype=dtype)
    mask = torch.ones(1, 3000, dtype=torch.bool)
    assert torch.equal(softmax(scores, mask), softmax(scores.float(), mask).to(dtype))
    torch.testing.assert_close(masked_softmax(scores, mask).double().sum().item(), 1.0, rtol=5e-3, atol=0)


def test_gradients_of_half_scores_are_computed_in_float32_too():
    """p (g - sum(p g)) is a small difference of large numbers, of which p rounded to half leaves nothing."""
    g = torch.tensor([1000.0, 1000.0, 1001.0], dtype=torch.float64)
    everything = torch.ones(3, dtype=torch.bool)

    def gradient(dtype: torch.dtype) -> Tensor:
        scores = torch.tensor([0.0, 0.7, 1.9], dtype=torch.float16).to(dtype).requires_grad_()
        (dx,) = torch.autograd.grad(masked_softmax(scores, everything), scores, g.to(dtype))
        return dx.double()

    torch.testing.assert_close(gradient(torch.float16), gradient(torch.float64), rtol=1e-3, atol=0)


@each_softmax
def test_anomaly_detection_finds_no_nan_inside_either(softmax):
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        zeroed_log(softmax, SCORES.clone().requires_grad_(), MASK).sum().backward()


def test_vmap_over_rows_equals_the_whole():
    assert torch.equal(torch.func.vmap(masked_softmax)(SCORES, MASK), masked_softmax(SCORES, MASK))
    over_scores = torch.func.vmap(masked_softmax, in_dims=(0, None))(SCORES, MASK[1])
    assert torch.equal(over_scores, masked_softmax(SCORES, MASK[1]))


def test_compiles_without_a_break_and_runs_on_meta():
    compiled = torch.compile(masked_softmax, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(SCORES, MASK), masked_softmax(SCORES, MASK))
    assert masked_softmax(SCORES.to("meta"), MASK.to("meta")).shape == SCORES.shape


@each_softmax
def test_masks_that_would_be_added_are_refused_with_the_remedy(softmax):
    added = torch.where(MASK, 0.0, -torch.inf)
    with pytest.raises(Refusal, match=r"must be boolean.*got torch.float32; pass mask > -inf for") as refused:
        softmax(SCORES, added)
    assert refused.value.code == "mask-not-bool"
    assert torch.equal(softmax(SCORES, added > -torch.inf), softmax(SCORES, MASK))
    with pytest.raises(Refusal, match=r"got torch.int64; .* mask.bool\(\) for one of zeros and ones"):
        softmax(SCORES, MASK.long())


@pytest.mark.parametrize("shape", [(4,), (5, 5), (2, 4, 5), (4, 0)])
def test_masks_that_do_not_broadcast_to_the_scores_are_refused(shape):
    with pytest.raises(
        Refusal, match=r"must broadcast .* got mask \(.*\) and scores \(4, 5\); add dimensions"
    ) as refused:
        masked_softmax(SCORES, torch.ones(shape, dtype=torch.bool))
    assert refused.value.code == "mask-differs"


def test_integer_scores_are_refused():
    with pytest.raises(Refusal, match=r"needs floating point scores, got torch.int64; pass scores.float\(\)"):
        masked_softmax(torch.tensor([1, 2]), torch.tensor([True, True]))
