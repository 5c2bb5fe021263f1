"""Against batch norm at each time step by itself, over the samples that are real then."""

import pytest
import torch
from torch import nn

from normcore.norms.batch import BatchNorm
from normcore.recurrent.time_batch_norm import TimeBatchNorm
from normcore.refusal import Refusal

DRAWS = torch.Generator().manual_seed(0)
X = 3 + 2 * torch.randn(5, 4, 3, generator=DRAWS, dtype=torch.float64)
"""Five samples, four time steps, three values."""
REAL = torch.arange(4) < torch.tensor([4, 2, 3, 1, 3]).unsqueeze(1)
"""5, 4, 3 and 1 samples are real at the four time steps."""


def norm(max_length: int = 4, **knobs: object) -> TimeBatchNorm:
    return TimeBatchNorm(3, max_length=max_length, dtype=torch.float64, **knobs)


def torch_norms(gamma: float = 0.1) -> list[nn.BatchNorm1d]:
    norms = [nn.BatchNorm1d(3).double() for _ in range(4)]
    for one in norms:
        nn.init.constant_(one.weight, gamma)
    return norms


def test_equals_a_batch_norm_per_time_step_with_running_statistics():
    ours, theirs = norm(), torch_norms()
    for x in (X, 2 * X - 1):
        expected = torch.stack([one(x[:, t]) for t, one in enumerate(theirs)], 1)
        torch.testing.assert_close(ours(x), expected)
    torch.testing.assert_close(ours.running_mean, torch.stack([one.running_mean for one in theirs]))
    torch.testing.assert_close(ours.running_var, torch.stack([one.running_var for one in theirs]))
    assert ours.num_batches_tracked.tolist() == [2, 2, 2, 2]
    ours.eval()
    torch.testing.assert_close(ours(X), torch.stack([one.eval()(X[:, t]) for t, one in enumerate(theirs)], 1))


def test_padding_enters_no_statistics():
    """At each time step as if the padded samples were not in the batch."""
    ours, theirs = norm(), torch_norms()
    padded = torch.where(REAL.unsqueeze(2), X, torch.nan)
    y = ours(torch.nan_to_num(padded, 1e6), real=REAL)
    for t in range(3):
        torch.testing.assert_close(y[REAL[:, t], t], theirs[t](X[REAL[:, t], t]))
        torch.testing.assert_close(ours.running_mean[t], theirs[t].running_mean)
        torch.testing.assert_close(ours.running_var[t], theirs[t].running_var)


def test_a_time_step_of_one_real_sample_gives_beta_and_moves_no_statistics():
    ours = norm()
    nn.init.constant_(ours.bias, 7.0)
    y = ours(X, real=REAL)
    assert (y[0, 3] == 7).all()
    assert (ours.running_mean[3] == 0).all()
    assert (ours.running_var[3] == 1).all()
    assert ours.num_batches_tracked.tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("estimator", ["ema", "paper", "population"])
def test_statistics_computed_anew_are_those_of_batch_norm_on_the_real_samples(estimator):
    """Each batch norm sees a time step's real samples alone, and no batch of fewer than two."""
    ours = norm()
    ours(100 * X)
    theirs = [BatchNorm(3, estimator=estimator, affine=False, dtype=torch.float64) for _ in range(4)]
    ours.estimator = estimator
    ours.reset_statistics()
    for real in (REAL[:, [1, 1, 2, 2]], REAL, torch.ones_like(REAL)):
        x = torch.randn(5, 4, 3, generator=DRAWS, dtype=torch.float64)
        ours(x, real=real)
        for t, one in enumerate(theirs):
            if real[:, t].sum() >= 2:
                one(x[real[:, t], t])
    torch.testing.assert_close(ours.running_mean, torch.stack([one.running_mean for one in theirs]))
    torch.testing.assert_close(ours.running_var, torch.stack([one.running_var for one in theirs]))
    assert ours.num_batches_tracked.tolist() == [3, 3, 3, 2]


def test_the_population_is_all_real_samples_of_a_time_step_together():
    ours, seen = norm(estimator="population"), [[], [], [], []]
    for real in (REAL, ~REAL, torch.ones_like(REAL)):
        x = torch.randn(5, 4, 3, generator=DRAWS, dtype=torch.float64)
        ours(x, real=real)
        for t in range(4):
            if real[:, t].sum() >= 2:
                seen[t].append(x[real[:, t], t])
    torch.testing.assert_close(ours.running_mean, torch.stack([torch.cat(each).mean(0) for each in seen]))
    torch.testing.assert_close(ours.running_var, torch.stack([torch.cat(each).var(0, correction=0) for each in seen]))
    assert ours.values_tracked.tolist() == [len(torch.cat(each)) for each in seen]


def test_time_steps_one_by_one_are_time_steps_together():
    together, apart = norm(), norm()
    expected = together(X, real=REAL)
    y = torch.cat([apart(X[:, t : t + 1], time=t, real=REAL[:, t : t + 1]) for t in range(4)], 1)
    torch.testing.assert_close(y, expected)
    for name, buffer in together.named_buffers():
        torch.testing.assert_close(apart.get_buffer(name), buffer)


def test_evaluation_beyond_the_last_time_step_uses_its_statistics():
    ours = norm()
    ours(X)
    ours.eval()
    longer = torch.randn(1, 9, 3, generator=DRAWS, dtype=torch.float64)
    y = ours(longer)
    torch.testing.assert_close(y[:, :4], ours(longer[:, :4]))
    for t in range(4, 9):
        torch.testing.assert_close(y[:, t : t + 1], ours(longer[:, t : t + 1], time=3))
        torch.testing.assert_close(y[:, t : t + 1], ours(longer[:, t : t + 1], time=t))


def test_evaluation_beyond_what_training_has_seen_uses_the_last_seen_statistics():
    """Statistics of mean 0 and variance 1, at which unseen time steps stand, would be nobody's."""
    exact, generous = norm(max_length=4), norm(max_length=100)
    for each in (exact, generous):
        each(X)
        each.eval()
    longer = torch.randn(2, 9, 3, generator=DRAWS, dtype=torch.float64)
    assert torch.equal(generous(longer), exact(longer))
    with_padding = norm(max_length=100)
    with_padding(X, real=REAL)
    y = with_padding.eval()(longer)
    torch.testing.assert_close(
        y[:, 3:], (longer[:, 3:] - with_padding.running_mean[2]) * 0.1 / (with_padding.running_var[2] + 1e-5).sqrt()
    )


def test_evaluation_of_one_sample_leaves_the_statistics_alone():
    ours = norm()
    ours(X)
    before = {name: buffer.clone() for name, buffer in ours.named_buffers()}
    ours.eval()
    torch.testing.assert_close(ours(X[:1]), ours(X)[:1])
    assert all(torch.equal(buffer, before[name]) for name, buffer in ours.named_buffers())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("offset", "spread"), [(200, 50), (0, 1e-4)])
def test_statistics_of_half_inputs_are_in_float32(dtype, offset, spread):
    x = (offset + spread * torch.randn(500, 2, 3, generator=DRAWS)).to(dtype)
    ours = TimeBatchNorm(3, max_length=2, eps=1e-12, gamma=1.0, dtype=dtype)
    y = ours(x)
    assert {tensor.dtype for tensor in (y, ours.weight, ours.bias, ours.running_mean)} == {torch.float32}
    exact = TimeBatchNorm(3, max_length=2, eps=1e-12, gamma=1.0, dtype=torch.float64)(x.double())
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)


def test_a_batch_of_one_is_refused_in_training():
    with pytest.raises(Refusal, match="needs a batch of at least 2 samples in training, got 1; take") as refused:
        norm()(X[:1])
    assert refused.value.code == "batch-of-one"


def test_a_sequence_beyond_max_length_is_refused_in_training():
    sentence = (
        "at most max_length 3 time steps, which have statistics of their own, got 4; set max_length to the longest"
    )
    with pytest.raises(Refusal, match=sentence) as refused:
        norm(max_length=3)(X)
    assert refused.value.code == "sequence-too-long"
    with pytest.raises(Refusal, match=sentence):
        norm(max_length=3)(X[:, 3:], time=3)


def test_repr_says_the_conventions():
    assert repr(norm(shift=False)) == (
        "TimeBatchNorm(3, max_length=4, eps=1e-05, momentum=0.1, estimator=ema, gamma=0.1, shift=False)"
    )
