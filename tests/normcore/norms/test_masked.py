import pytest
import torch

from normcore.norms.masked import masked_mean_var, zero_where_masked
from normcore.refusal import Refusal

X = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 1, 0]]).bool()
DIMS = [(1,), (2,), (1, 2), (0, 2), (-1, 0)]


def statistics_of_real_values(dims: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """The slow twin: one cell of the result at a time, from a list of its real values."""
    dims = tuple(d % 3 for d in dims)
    shape = [1 if d in dims else X.shape[d] for d in range(3)]
    mean, var, count = (torch.empty(shape, dtype=torch.float64) for _ in range(3))
    for cell in torch.cartesian_prod(*(torch.arange(size) for size in shape)).tolist():
        here = tuple(slice(None) if d in dims else slice(i, i + 1) for d, i in enumerate(cell))
        real = X[here][MASK.unsqueeze(1).expand_as(X)[here]]
        mean[tuple(cell)] = real.mean() if len(real) else 0
        var[tuple(cell)] = real.var(correction=0) if len(real) else 0
        count[tuple(cell)] = max(len(real), 1)
    return mean, var, count


@pytest.mark.parametrize("dims", DIMS)
def test_is_the_mean_and_variance_of_the_real_values(dims):
    for ours, theirs in zip(masked_mean_var(X, MASK, dims), statistics_of_real_values(dims), strict=True):
        torch.testing.assert_close(ours.expand_as(theirs), theirs)


@pytest.mark.parametrize("dims", DIMS)
def test_with_all_real_it_is_torch(dims):
    mean, var, _ = masked_mean_var(X, torch.ones_like(MASK), dims)
    torch.testing.assert_close(mean, X.mean(dims, keepdim=True))
    torch.testing.assert_close(var, X.var(dims, correction=0, keepdim=True))


def test_without_a_real_value_count_is_one_and_mean_and_variance_are_zero():
    mean, var, count = masked_mean_var(X, torch.zeros_like(MASK), (1, 2))
    assert (mean == 0).all()
    assert (var == 0).all()
    assert (count == 1).all()


def test_padding_has_no_influence_and_no_gradient_even_where_it_is_nan():
    padded = torch.where(MASK.unsqueeze(1), X, torch.nan).requires_grad_()
    clean = X.clone().requires_grad_()
    for x in (padded, clean):
        mean, var, _ = masked_mean_var(x, MASK, (1, 2))
        (mean.sum() + (var * torch.arange(3).view(3, 1, 1)).sum()).backward()
    assert torch.equal(padded.grad, clean.grad)
    assert (padded.grad.movedim(1, -1)[~MASK] == 0).all()
    assert (padded.grad.movedim(1, -1)[MASK] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_values_have_float32_statistics_that_neither_overflow_nor_drown(dtype):
    x = (200 + 50 * torch.randn(2, 3, 500, generator=torch.Generator().manual_seed(0))).to(dtype)
    mean, var, _ = masked_mean_var(x, torch.ones(2, 500, dtype=torch.bool), (1, 2))
    assert (mean.dtype, var.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(var.double(), x.double().var((1, 2), correction=0, keepdim=True), rtol=1e-5, atol=0)
    far = 1000 + torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(0))
    _, var, _ = masked_mean_var(far, torch.ones(1, 4000, dtype=torch.bool), (2,))
    torch.testing.assert_close(var.double(), far.double().var(2, correction=0, keepdim=True), rtol=1e-5, atol=0)


def test_masks_of_another_shape_or_dtype_are_refused():
    sentence = r"a mask must have the shape \(3, 5\), that of the input \(3, 4, 5\) without its channels, got \(3, 4\)"
    with pytest.raises(Refusal, match=sentence) as refused:
        masked_mean_var(X, MASK[:, :4], (1, 2))
    assert refused.value.code == "mask-differs"
    with pytest.raises(Refusal, match=r"a mask must be bool, True where a token is real, got torch.float32") as refused:
        masked_mean_var(X, MASK.float(), (1, 2))
    assert refused.value.code == "mask-not-bool"


def test_masked_outputs_are_zero_and_pass_no_gradient():
    y = torch.full((3, 4, 5), torch.nan).masked_fill(MASK.unsqueeze(1), 2.0).requires_grad_()
    zeroed = zero_where_masked(y, MASK)
    zeroed.sum().backward()
    expected = 1.0 * MASK.unsqueeze(1).expand(3, 4, 5)
    assert torch.equal(zeroed, 2 * expected)
    assert torch.equal(y.grad, expected)
