from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from normcore.learner import Learner
from normcore.spec import JobSpec
from normcore.weights.spectral import SpectralNorm

LAYERS = [partial(nn.Linear, 5, 3), partial(nn.Conv2d, 4, 6, 3, groups=2)]
UPDATED, DIVERGED = torch.zeros(()), torch.ones(())


def pair(layer, iterations):
    """The same weight under torch's spectral norm and under ours, at the same vectors."""
    ours = SpectralNorm(layer.weight.detach(), iterations=iterations)
    torchs = parametrizations.spectral_norm(layer, n_power_iterations=iterations).parametrizations.weight
    ours.u.copy_(torchs[0]._u)
    ours.v.copy_(torchs[0]._v)
    return ours, torchs


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("make", LAYERS)
def test_a_loop_of_updates_gives_the_weights_and_gradients_of_torchs(make, iterations):
    torch.manual_seed(0)
    layer = make().double()
    ours, torchs = pair(layer, iterations)
    weight = torchs.original.detach().clone().requires_grad_()
    probe = torch.randn_like(weight)
    for _ in range(4):
        # Torch moves its vectors in the forward pass, we did after the update before.
        ours.advance(weight.detach(), unless=UPDATED)
        torchs.original.grad = weight.grad = None
        theirs, mine = layer.weight, ours(weight)
        torch.testing.assert_close(mine, theirs)
        (theirs * probe).tanh().sum().backward()
        (mine * probe).tanh().sum().backward()
        torch.testing.assert_close(weight.grad, torchs.original.grad)
        with torch.no_grad():
            torchs.original.sub_(torchs.original.grad)
            weight.sub_(weight.grad)


def test_in_the_end_the_largest_singular_value_is_one():
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    method = SpectralNorm(weight, iterations=500)
    method.advance(weight, unless=UPDATED)
    assert torch.linalg.matrix_norm(method(weight).flatten(1), 2).item() == pytest.approx(1.0, rel=1e-10)
    torch.testing.assert_close(method(weight), weight / torch.linalg.matrix_norm(weight.flatten(1), 2))


def test_a_forward_pass_moves_nothing():
    weight = torch.randn(4, 3)
    method = SpectralNorm(weight).train()
    before = {name: value.clone() for name, value in method.named_buffers()}
    y = method(2 * weight)
    assert torch.equal(method(2 * weight), y)
    assert all(torch.equal(value, before[name]) for name, value in method.named_buffers())


def test_where_no_update_was_made_the_vectors_stay():
    method = SpectralNorm(torch.randn(4, 3))
    before = [value.clone() for value in method.buffers()]
    method.advance(torch.full((4, 3), torch.nan), unless=DIVERGED)
    assert all(map(torch.equal, method.buffers(), before))
    method.advance(torch.randn(4, 3), unless=UPDATED)
    assert not any(map(torch.equal, method.buffers(), before))


def test_an_update_advances_every_layer_by_one_iteration():
    model = {"kind": "mlp", "hidden": [6, 5]}
    spec = {"model": model, "data": {"kind": "digits", "size": 8}, "weight": {"kind": "spectral"}, "batch_size": 16}
    learner = Learner(JobSpec.model_validate(spec), torch.device("cpu"))
    loss, _, _ = learner.forward(1)
    learner.backward(loss)
    vectors = [block.linear.parametrizations.weight[0].v.clone() for block in learner.model.blocks]
    learner.update(loss, 0.1)
    for block, v in zip(learner.model.blocks, vectors, strict=True):
        weight, (method,) = block.linear.parametrizations.weight.original, block.linear.parametrizations.weight
        u = weight @ v / (weight @ v).norm()
        torch.testing.assert_close(method.u, u)
        torch.testing.assert_close(method.v, weight.T @ u / (weight.T @ u).norm())
    again = learner.replay(2)()
    assert torch.equal(learner.replay(2)(), again)
