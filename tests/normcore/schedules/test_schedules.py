"""Schedules against torch's own, and what every schedule on the menu owes."""

from math import cos, pi

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, SequentialLR

from normcore.menu.schedules import ConstantScheduleSpec, CosineScheduleSpec, StepScheduleSpec
from normcore.schedules.schedule import Schedule
from normcore.spec import MENU

NUM_STEPS = 60


def build(spec, base_lr=0.3, num_steps=NUM_STEPS) -> Schedule:
    return spec.part()(base_lr, num_steps, **spec.knobs())


def torch_lrs(make_scheduler, base_lr=0.3, num_steps=NUM_STEPS):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base_lr)
    scheduler = make_scheduler(optimizer)
    lrs = []
    for _ in range(num_steps):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return lrs


def lrs_of(schedule, num_steps=NUM_STEPS):
    return [schedule.lr(step) for step in range(1, num_steps + 1)]


@pytest.mark.parametrize("spec", [kind() for kind in MENU["schedule"]], ids=lambda spec: spec.kind)
def test_without_warmup_the_first_step_has_the_full_lr(spec):
    assert build(spec).lr(1) == 0.3


@pytest.mark.parametrize("kind", MENU["schedule"], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("warmup_steps", [1, 2, 10])
def test_warmup_rises_linearly_and_its_last_step_has_the_full_lr(kind, warmup_steps):
    schedule = build(kind(warmup_steps=warmup_steps))
    expected = [0.3 * step / warmup_steps for step in range(1, warmup_steps + 1)]
    assert lrs_of(schedule, warmup_steps) == pytest.approx(expected, rel=1e-15)
    assert schedule.lr(warmup_steps) == 0.3


@pytest.mark.parametrize("kind", MENU["schedule"], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("num_steps", "warmup_steps"), [(1, 0), (1, 1), (3, 100)])
def test_a_warmup_as_long_as_the_training_is_no_error(kind, num_steps, warmup_steps):
    lrs = lrs_of(build(kind(warmup_steps=warmup_steps), num_steps=num_steps), num_steps)
    assert lrs == pytest.approx([0.3 * min(1, step / max(1, warmup_steps)) for step in range(1, num_steps + 1)])


def test_constant_stays():
    assert set(lrs_of(build(ConstantScheduleSpec()))) == {0.3}


@pytest.mark.parametrize("final_fraction", [0.0, 0.1, 1.0])
def test_cosine_is_torchs_annealing_to_the_last_step(final_fraction):
    ours = lrs_of(build(CosineScheduleSpec(final_fraction=final_fraction)))
    torchs = torch_lrs(lambda o: CosineAnnealingLR(o, T_max=NUM_STEPS - 1, eta_min=0.3 * final_fraction))
    assert ours == pytest.approx(torchs, rel=1e-12, abs=1e-15)
    assert ours[-1] == pytest.approx(0.3 * final_fraction, abs=1e-16)


def test_cosine_after_warmup_is_torchs_sequence_of_the_two():
    def sequence(optimizer):
        warmup = LinearLR(optimizer, start_factor=0.1, total_iters=9)
        return SequentialLR(optimizer, [warmup, CosineAnnealingLR(optimizer, T_max=NUM_STEPS - 10)], milestones=[9])

    ours = lrs_of(build(CosineScheduleSpec(warmup_steps=10)))
    assert ours == pytest.approx(torch_lrs(sequence), rel=1e-12, abs=1e-15)


def test_cosine_is_half_way_down_at_half_time():
    schedule = build(CosineScheduleSpec(final_fraction=0.2), base_lr=1.0, num_steps=101)
    assert schedule.lr(51) == pytest.approx(0.6, rel=1e-15)
    assert schedule.lr(26) == pytest.approx(0.2 + 0.8 * (1 + cos(pi / 4)) / 2, rel=1e-15)


def test_step_is_torchs_multi_step():
    ours = lrs_of(build(StepScheduleSpec(milestones=(7, 20, 41), gamma=0.5)))
    torchs = torch_lrs(lambda o: MultiStepLR(o, milestones=[7, 20, 41], gamma=0.5))
    assert ours == pytest.approx(torchs, rel=1e-15)


def test_step_falls_during_warmup_too():
    schedule = build(StepScheduleSpec(milestones=(5,), gamma=0.1, warmup_steps=10), base_lr=1.0)
    assert [schedule.lr(5), schedule.lr(6)] == pytest.approx([0.5, 0.06])
