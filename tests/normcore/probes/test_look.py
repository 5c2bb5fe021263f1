"""A probe asked by hand."""

from typing import ClassVar

import pytest
import torch
from torch import nn

from normcore.probes.look import look
from normcore.records import Reading


class Rough:
    """Keeps what it is given, and then ruins the model."""

    kind: ClassVar[str] = "rough"
    sees: ClassVar[str] = "update"
    evaluates: ClassVar[bool] = False

    def read(self, moment):
        self.moment = moment
        self.loss = moment.replay().item()
        self.draws = torch.rand(2, generator=moment.generator("x")).tolist()
        moment.replay().backward()
        moment.model.eval().requires_grad_(requires_grad=False)
        for tensor in (*moment.model.parameters(), *moment.model.buffers()):
            tensor.data.zero_()
        torch.rand(3)
        return Reading(self.kind, moment.step, {}, {})


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    net[0].bias.requires_grad_(requires_grad=False)
    net(torch.ones(2, 3)).sum().backward()
    return net


def bits(model):
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    return tensors, flags, [module.training for module in model.modules()], torch.get_rng_state()


def test_looking_leaves_no_footprints(model):
    x = torch.randn(5, 3)
    model[1].eval()
    before = bits(model)
    look(Rough(), model, lambda: model(x).square().mean(), lr=0.1)
    after = bits(model)
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0] | after[0])
    for (required, gradient), (still, same) in zip(before[1], after[1], strict=True):
        assert (required, gradient) == (still, same) or gradient is same
        assert required is still
    assert before[2] == after[2]
    assert torch.equal(before[3], after[3])


def test_what_is_seen_is_the_gradient_and_a_step_of_gradient_descent(model):
    x = torch.randn(5, 3)
    loss = model(x).square().mean()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = iter(torch.autograd.grad(loss, learned))
    probe = Rough()
    look(probe, model, lambda: model(x).square().mean(), lr=0.25, step=3)
    assert (probe.moment.step, probe.moment.lr, probe.loss) == (3, 0.25, pytest.approx(loss.item()))
    rows = zip(model.parameters(), probe.moment.gradient, probe.moment.updated, strict=True)
    for parameter, gradient, updated in rows:
        if not parameter.requires_grad:
            assert gradient is None
            assert torch.equal(updated, parameter)
            continue
        torch.testing.assert_close(gradient, next(expected))
        torch.testing.assert_close(updated, parameter - 0.25 * gradient)


def test_an_update_that_is_given_is_the_one_that_is_seen_and_seeds_decide_the_draws(model):
    loss = lambda: model(torch.ones(2, 3)).sum()  # noqa: E731
    given = [torch.full_like(parameter, 7.0) for parameter in model.parameters()]
    draws = []
    for seed in (0, 0, 1):
        probe = Rough()
        look(probe, model, loss, lr=0.1, seed=seed, updated=given)
        assert all(float(tensor.min()) == 7.0 for tensor in probe.moment.updated)
        draws.append(probe.draws)
    assert draws[0] == draws[1] != draws[2]
