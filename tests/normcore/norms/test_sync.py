"""Synchronized batch norm against batch norm on the concatenation of the shards, by ranks real and virtual."""

import os
import subprocess
import sys

import pytest
import torch

from normcore.norms.batch import BatchNorm
from normcore.norms.sync import SyncBatchNorm
from normcore.refusal import Refusal
from normcore.statistics.recompute import recompute_statistics

SHARDS = [(3, 5), (1, 7), (8, 0)]

RANK = """
import sys, torch
from torch import distributed
from normcore.norms.sync import SyncBatchNorm
from normcore.statistics.recompute import recompute_statistics

rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
answers = []
for case in torch.load(f"{folder}/cases"):
    norm = SyncBatchNorm(3, momentum=0.3, virtual_ranks=case["virtual_ranks"], dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(case["gamma"])
    x, weights = case["x"].split(case["shards"])[rank].requires_grad_(), case["weights"].split(case["shards"])[rank]
    y = norm(x)
    loss = (y ** 3 * weights).sum()
    dx, dgamma, dbeta = torch.autograd.grad(loss, (x, norm.weight, norm.bias), create_graph=True)
    (ddx,) = torch.autograd.grad((dx * weights).sum(), x)
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    recompute_statistics(norm, [x.detach()])
    answers.append([t.detach() for t in (y, dx, dgamma, dbeta, ddx, *state.values(), norm.running_var)])
torch.save(answers, f"{folder}/answers{rank}")
distributed.destroy_process_group()
"""


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def derivatives(norm, x, weights):
    y = norm(x)
    dx, dgamma, dbeta = torch.autograd.grad((y**3 * weights).sum(), (x, norm.weight, norm.bias), create_graph=True)
    (ddx,) = torch.autograd.grad((dx * weights).sum(), x)
    return [t.detach() for t in (y, dx, dgamma, dbeta, ddx)]


def test_two_processes_with_unequal_shards_are_batch_norm_on_the_concatenation(tmp_path):
    """Outputs, gradients, second derivatives, running statistics, and those computed anew, at a large mean."""
    gamma = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    x, weights = 1e4 + randn(8, 3, 2), randn(8, 3, 2, seed=1)
    cases = [
        {"x": x, "weights": weights, "gamma": gamma, "shards": list(shards), "virtual_ranks": virtual}
        for shards, virtual in [*((shards, 1) for shards in SHARDS), ((3, 5), 2)]
    ]
    torch.save(cases, tmp_path / "cases")
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path)], env=quiet, stderr=subprocess.PIPE)
        for rank in (0, 1)
    ]
    assert [rank.wait(60) for rank in ranks] == [0, 0], [rank.communicate()[1].decode() for rank in ranks]
    for rank in ranks:
        rank.stderr.close()
    norm = BatchNorm(3, momentum=0.3, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(gamma)
    y, dx, dgamma, dbeta, ddx = derivatives(norm, x.requires_grad_(), weights)
    state = [value.clone() for value in norm.state_dict().values()]
    recompute_statistics(norm, [x.detach()])
    for first, second in zip(*(torch.load(tmp_path / f"answers{rank}") for rank in (0, 1)), strict=True):
        for theirs, ours in ((y, 0), (dx, 1), (ddx, 4)):
            torch.testing.assert_close(torch.cat([first[ours], second[ours]]), theirs, rtol=1e-8, atol=1e-8)
        for theirs, ours in ((dgamma, 2), (dbeta, 3)):
            torch.testing.assert_close(first[ours] + second[ours], theirs, rtol=1e-8, atol=1e-8)
        for answers in (first, second):
            # The parameters come first in a state, and are each rank's own.
            torch.testing.assert_close(answers[5:10], state, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(answers[10], norm.running_var, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("virtual_ranks", [1, 2, 3, 7])
def test_virtual_ranks_are_batch_norm_also_with_unequal_shares(virtual_ranks):
    ours = SyncBatchNorm(4, virtual_ranks=virtual_ranks, momentum=0.3, dtype=torch.float64)
    theirs = BatchNorm(4, momentum=0.3, dtype=torch.float64)
    for step in range(2):
        x, weights = (5 + randn(7, 4, 3, 2, seed=step)).requires_grad_(), randn(7, 4, 3, 2, seed=9)
        torch.testing.assert_close(derivatives(ours, x, weights), derivatives(theirs, x, weights), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_a_large_mean_does_not_eat_the_variance_in_float32():
    x = 1e4 + randn(64, 2, 4)
    y = SyncBatchNorm(2, virtual_ranks=4)(x.float())
    torch.testing.assert_close(y.double(), BatchNorm(2, dtype=torch.float64)(x.float().double()), rtol=0, atol=2e-3)


def test_gradient_norm_of_theorem_4_1_with_virtual_ranks():
    x, norm = randn(6, 4, 3).requires_grad_(), SyncBatchNorm(4, virtual_ranks=3, eps=1e-30, dtype=torch.float64)
    y = norm(x)
    g = torch.sin(torch.arange(y.numel(), dtype=torch.float64)).view_as(y)
    (dx,) = torch.autograd.grad(y, x, g)
    for c in range(4):
        xs, gs, dxs, ys = (t.detach()[:, c] for t in (x, g, dx, y))
        m, var = xs.numel(), xs.var(correction=0)
        bound = ((gs**2).sum() - gs.sum() ** 2 / m - (gs * ys).sum() ** 2 / m) / var
        torch.testing.assert_close((dxs**2).sum(), bound, rtol=1e-11, atol=0)


def test_more_virtual_ranks_than_samples_are_refused():
    with pytest.raises(
        Refusal, match="each virtual rank needs a sample, got virtual_ranks 5 and a batch of 4"
    ) as refused:
        SyncBatchNorm(4, virtual_ranks=5)(torch.randn(4, 4))
    assert refused.value.code == "more-ranks-than-samples"


def test_a_batch_of_one_in_a_single_process_is_refused():
    with pytest.raises(Refusal, match="at least 2 samples in training, got 1") as refused:
        SyncBatchNorm(4)(torch.randn(1, 4, 3))
    assert refused.value.code == "batch-of-one"
