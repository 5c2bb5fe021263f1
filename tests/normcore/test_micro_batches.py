"""A batch in parts against the batch as a whole."""

import pytest
import torch

from normcore.data.batch import Batch
from normcore.learner import Learner
from normcore.micro_batches import loss_with_gradients, micro_batches
from normcore.spec import JobSpec
from normcore.train import _remarks

CNN = {"model": {"kind": "vgg", "width": 0.0625}, "data": {"kind": "digits"}, "batch_size": 12}


def learner_of(folders, **changes):
    return Learner(JobSpec.model_validate(CNN | {"precision": "float64"} | changes), torch.device("cpu"), folders)


def gradient(learner):
    return torch.cat([parameter.grad.flatten() for parameter in learner.model.parameters()])


@pytest.mark.parametrize("parts", [2, 3, 12])
@pytest.mark.parametrize("norm", [{"kind": "none"}, {"kind": "group", "num_groups": 2}, {"kind": "layer"}])
def test_without_batch_statistics_loss_and_gradients_are_those_of_the_batch(folders, parts, norm):
    whole, split = (learner_of(folders, norm=norm, accumulation=count) for count in (1, parts))
    seen = []
    for learner in (whole, split):
        loss, outputs, labels = learner.forward(4)
        learner.backward(loss)
        seen.append((loss, outputs, labels, gradient(learner)))
    for ours, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_a_summed_loss_stays_a_sum(folders):
    job = {"model": {"kind": "deep_linear"}, "data": {"kind": "gaussian"}, "norm": {"kind": "none"}}
    whole, split = (learner_of(folders, **job, accumulation=count) for count in (1, 4))
    for learner in (whole, split):
        learner.backward(learner.forward(1)[0])
    torch.testing.assert_close(split.forward(1)[0], whole.forward(1)[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(split), gradient(whole), rtol=1e-12, atol=1e-12)


def test_batch_norm_sees_micro_batches_and_its_statistics_move_with_each(folders):
    learner = learner_of(folders, accumulation=3)
    sizes = []
    learner.model.blocks[0].norm.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    learner.forward(1)
    assert sizes == [4, 4, 4]
    assert learner.model.blocks[0].norm.num_batches_tracked == 3


def test_each_micro_batch_has_noise_of_its_own_the_same_each_time(folders):
    learner = learner_of(folders, noise={"kind": "santurkar"}, accumulation=2)
    seeds = []
    noise = next(module for module in learner.model.modules() if hasattr(module, "step_seed"))
    noise.register_forward_pre_hook(lambda module, _: seeds.append(module.step_seed))
    losses = [learner.forward(number)[0] for number in (1, 2, 1)]
    assert len(set(seeds[:4])) == 4
    assert seeds[:2] == seeds[4:]
    assert torch.equal(losses[0], losses[2])


def test_a_replay_has_the_loss_and_the_gradients_of_the_step(folders):
    learner = learner_of(folders, norm={"kind": "batch_renorm", "warmup_steps": 0}, accumulation=3)
    learner.forward(1)
    replay = learner.replay(2)
    loss = learner.forward(2)[0]
    learner.backward(loss)
    first = gradient(learner)
    for _ in range(2):
        again = replay()
        assert torch.equal(again, loss)
        learner.backward(again)
        assert torch.equal(gradient(learner), first)
    with torch.no_grad():
        assert torch.equal(replay(), loss)


def test_only_one_part_is_alive_at_a_time():
    """What autograd keeps of a part is gone when the next is computed."""
    alive, most = [0], [0]

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor
            alive[0] += 1
            most[0] = max(most[0], alive[0])

        def __del__(self):
            alive[0] -= 1

    w = torch.ones(3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        loss = loss_with_gradients([lambda: w.exp().sum()] * 5, [w])
    loss.backward()
    assert most == [1]
    torch.testing.assert_close(w.grad, 5 * torch.ones(3).exp())


def test_a_parameter_that_no_part_uses_has_no_gradient():
    used, unused = (torch.ones((), requires_grad=True) for _ in range(2))
    loss_with_gradients([lambda: 2 * used, lambda: 3 * used], [used, unused]).backward()
    assert used.grad == 5
    assert unused.grad is None


def test_masks_are_split_too():
    parts = micro_batches(Batch(torch.zeros(4, 3), torch.arange(4), torch.eye(4, 3) > 0), 2)
    assert [part.mask.tolist() for part in parts] == [
        (torch.eye(4, 3) > 0)[:2].tolist(),
        [[False, False, True], [False] * 3],
    ]


def test_accumulation_must_divide_the_batch():
    with pytest.raises(ValueError, match=r"got accumulation 5 and batch_size 12 on devices 1; take a divisor"):
        JobSpec.model_validate(CNN | {"accumulation": 5})


RENORM = {"model": {"kind": "mlp"}, "data": {"kind": "digits"}, "norm": {"kind": "batch_renorm"}, "steps": 30}


def test_warmups_of_norms_are_counted_in_micro_batches():
    """They count training passes, of which an update has several: 101 of them are within 30 updates of 4."""
    assert JobSpec.model_validate(RENORM | {"accumulation": 4}).num_steps == 30
    with pytest.raises(ValueError, match="is itself only after warmup_steps 100, and the job has 30 steps"):
        JobSpec.model_validate(RENORM)
    with pytest.raises(ValueError, match="after warmup_steps 100, of which a step has 2, and the job has 30 steps"):
        JobSpec.model_validate(RENORM | {"accumulation": 2})


def test_sync_norm_sees_the_micro_batches_of_all_devices(folders):
    job = {"model": {"kind": "mlp"}, "data": {"kind": "digits", "size": 8}, "batch_size": 32, "accumulation": 4}
    for norm, told in (("sync", "see the 8 samples of one on all devices,"), ("batch", "see the 4 samples of one,")):
        spec = JobSpec.model_validate(job | {"norm": {"kind": norm}, "devices": 2})
        (remark,) = _remarks(spec, Learner(spec, torch.device("cpu"), folders), 0)
        assert told in remark.detail
