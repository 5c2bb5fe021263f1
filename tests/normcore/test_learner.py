"""A step, an update, and the update that is not made."""

import pytest
import torch
from torch.nn import functional

from normcore.learner import Learner
from normcore.noise.noise import start_step
from normcore.spec import JobSpec


def learner_of(folders, **changes):
    spec = {"model": {"kind": "mlp", "hidden": [8]}, "data": {"kind": "digits", "size": 8}} | changes
    return Learner(JobSpec.model_validate(spec), torch.device("cpu"), folders)


def weights(learner):
    return torch.cat([parameter.detach().flatten() for parameter in learner.model.parameters()])


def test_a_step_seen_again_is_the_same_step(folders):
    learner = learner_of(folders, noise={"kind": "santurkar"})
    loss, logits, labels = learner.forward(5)
    other = learner.forward(6)
    again = learner.forward(5)
    assert torch.equal(loss, again[0])
    assert torch.equal(logits, again[1])
    assert torch.equal(labels, again[2])
    assert torch.equal(learner.replay(5)(), loss)
    assert not torch.equal(other[0], loss)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_plain_replay_may_have_the_noise_of_another_step(folders, parts):
    learner = learner_of(folders, noise={"kind": "santurkar"}, precision="float64", accumulation=parts, seed=4)
    batch, losses = learner.batch(3), []
    for number, (x, y) in enumerate(zip(batch.inputs.chunk(parts), batch.labels.chunk(parts), strict=True)):
        # Update number 5 is made after 4 updates.
        start_step(learner.model, 4, 4 * parts + number)
        losses.append(functional.cross_entropy(learner.model(x), y))
    later = learner.plain_replay(3, noise_ahead=2)()
    torch.testing.assert_close(later, sum(losses) / parts)
    assert not torch.isclose(later, learner.plain_replay(3)())


@pytest.mark.parametrize("kind", ["batch_renorm", "power"])
def test_a_norm_that_remembers_is_put_back_before_a_step_is_seen_again(folders, kind):
    learner = learner_of(folders, norm={"kind": kind, "warmup_steps": 0})
    for step in (1, 2, 3):
        learner.backward(learner.forward(step)[0])
    replay = learner.replay(4)
    loss = learner.forward(4)[0]
    learner.backward(loss)
    first = gradient(learner)
    assert not torch.equal(learner.forward(4)[0], loss), "it does remember"
    for _ in range(2):
        again = replay()
        assert torch.equal(again, loss)
        learner.backward(again)
        assert torch.equal(gradient(learner), first)


def gradient(learner):
    return torch.cat([parameter.grad.flatten() for parameter in learner.model.parameters()])


def test_gradients_of_a_second_loss_do_not_add_to_those_of_the_first(folders):
    learner = learner_of(folders)
    learner.backward(learner.replay(1)())
    first = gradient(learner)
    learner.backward(learner.replay(2)())
    assert not torch.equal(gradient(learner), first)
    learner.backward(learner.replay(1)())
    assert torch.equal(gradient(learner), first)


def test_an_update_takes_the_lr(folders):
    learner = learner_of(folders)
    before = weights(learner)
    loss, _, _ = learner.forward(1)
    learner.backward(loss)
    learner.update(loss, 0.125)
    torch.testing.assert_close(weights(learner), before - 0.125 * gradient(learner))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_from_the_first_loss_that_is_not_finite_no_update_is_made(folders, optimizer, precision, value):
    learner = learner_of(folders, optimizer={"kind": optimizer}, precision=precision)
    loss, _, _ = learner.forward(1)
    learner.backward(loss)
    learner.update(loss, 0.1)
    before = weights(learner)
    loss, _, _ = learner.forward(2)
    learner.backward(loss * value)
    learner.update(loss * value, 0.1)
    assert torch.equal(weights(learner), before)
    loss, _, _ = learner.forward(3)
    learner.backward(loss)
    learner.update(loss, 0.1)
    assert torch.equal(weights(learner), before)


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_logits_and_loss_are_in_float32_or_better(folders, precision):
    loss, logits, _ = learner_of(folders, precision=precision).forward(1)
    dtype = torch.float64 if precision == "float64" else torch.float32
    assert (loss.dtype, logits.dtype) == (dtype, dtype)


def test_convolutions_are_channels_last(folders):
    learner = learner_of(folders, model={"kind": "vgg", "width": 0.0625}, data={"kind": "digits"})
    assert learner.model.blocks[3].conv.weight.is_contiguous(memory_format=torch.channels_last)
