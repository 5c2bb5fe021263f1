"""What half precision overflows, and what is done about it."""

import pytest
import torch

from normcore.learner import Learner
from normcore.precision import PRECISIONS, LossScaler
from normcore.spec import JobSpec

CPU = torch.device("cpu")


def learner_of(folders, **changes):
    spec = {"model": {"kind": "mlp", "hidden": [8]}, "data": {"kind": "digits", "size": 8}} | changes
    return Learner(JobSpec.model_validate(spec), CPU, folders)


def step(learner, number, lr=0.1, spoil=None):
    loss, _, _ = learner.forward(number)
    learner.backward(loss)
    if spoil is not None:
        learner.model.classifier.weight.grad[0, 0] = spoil
    learner.update(loss, lr)
    return loss


def weights(learner):
    return torch.cat([parameter.detach().flatten() for parameter in learner.model.parameters()])


def gradient(learner):
    return torch.cat([parameter.grad.flatten() for parameter in learner.model.parameters()])


def test_the_scale_follows_torchs_own_scaler():
    """The slow twin is `torch.amp.GradScaler`, on a parameter whose gradients overflow now and then."""
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=2000)
    ours, skipped = LossScaler(CPU), 0
    theirs.scale(torch.ones(()))
    for number in range(4105):
        overflows = number in (0, 1, 50)
        weight.grad = torch.tensor(torch.inf if overflows else 1.0)
        theirs.step(optimizer)
        theirs.update()
        ours.advance(torch.tensor(float(overflows)), unless=torch.zeros(()))
        skipped += overflows
    assert ours.scale.item() == theirs.get_scale() == 2.0**15
    assert ours.skipped.item() == skipped == 3


@pytest.mark.parametrize("optimizer", [{"kind": "sgd", "momentum": 0.9}, {"kind": "adamw"}, {"kind": "muon"}])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_an_update_whose_gradient_overflows_is_left_out_and_the_next_is_made(folders, optimizer, value):
    learner = learner_of(folders, model={"kind": "mlp", "hidden": [8, 8]}, precision="float16", optimizer=optimizer)
    step(learner, 1)
    kept = weights(learner), {p: {k: v.clone() for k, v in s.items()} for p, s in learner.optimizer.state.items()}
    step(learner, 2, spoil=value)
    assert torch.equal(weights(learner), kept[0])
    for parameter, state in kept[1].items():
        assert all(torch.equal(learner.optimizer.state[parameter][name], was) for name, was in state.items())
    assert (learner.scaler.scale.item(), learner.scaler.skipped.item()) == (2.0**15, 1.0)
    step(learner, 3)
    assert not torch.equal(weights(learner), kept[0])
    assert weights(learner).isfinite().all()


def test_a_loss_that_is_not_finite_is_a_divergence_under_a_scale_too(folders):
    learner = learner_of(folders, precision="float16")
    loss, _, _ = learner.forward(1)
    learner.backward(loss)
    before = weights(learner)
    learner.update(loss * torch.inf, 0.1)
    step(learner, 2)
    assert torch.equal(weights(learner), before)
    assert learner.scaler.skipped == 0


def test_losses_and_gradients_are_seen_unscaled(folders):
    half, single = learner_of(folders, precision="float16"), learner_of(folders)
    replay = half.replay(1)
    for learner in (half, single):
        learner.backward(learner.forward(1)[0])
    seen = gradient(half)
    torch.testing.assert_close(seen, gradient(single), rtol=0.05, atol=2e-3)
    loss = replay()
    torch.testing.assert_close(loss, single.forward(1)[0], rtol=1e-2, atol=0)
    half.backward(loss)
    assert torch.equal(gradient(half), seen)


def test_small_gradients_survive_that_float16_alone_would_lose(folders):
    """Gradients of a loss 2^-20 times as large: float16 ends at 2^-24."""
    learner = learner_of(folders, precision="float16")
    learner._loss = lambda outputs, labels: torch.nn.functional.cross_entropy(outputs, labels) * 2.0**-20
    learner.backward(learner.forward(1)[0])
    scaled = gradient(learner) * 2.0**20
    learner.scaler = None
    learner.backward(learner.forward(1)[0])
    alone = gradient(learner) * 2.0**20
    plain = learner_of(folders)
    plain.backward(plain.forward(1)[0])
    error, lost = ((seen - gradient(plain)).norm() / gradient(plain).norm() for seen in (scaled, alone))
    assert error < 0.01
    assert lost > 10 * error


def test_only_float16_is_scaled_and_only_halves_are_cast():
    assert [name for name, precision in PRECISIONS.items() if precision.scaler(CPU)] == ["float16"]
    assert [name for name, precision in PRECISIONS.items() if precision.autocasts] == ["bfloat16", "float16"]
