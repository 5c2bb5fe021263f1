"""Whose global state holds when."""

import pytest
import torch

from normcore.determinism import GlobalState, isolated
from normcore.records import Finished, Metrics
from normcore.spec import JobSpec
from normcore.train import train

CPU = torch.device("cpu")
SPEC = {
    "model": {"kind": "mlp", "hidden": [8]},
    "data": {"kind": "digits", "size": 8},
    "steps": 30,
    "evaluate_every": 2,
    "deterministic": True,
}


@pytest.fixture(autouse=True)
def _unchanged():
    before = GlobalState.now(CPU)
    yield
    assert same(GlobalState.now(CPU), before)
    before.apply()


def same(one, other):
    fields = ("grad_enabled", "deterministic", "warn_only", "cudnn_deterministic", "cudnn_benchmark")
    return all(getattr(one, f) == getattr(other, f) for f in fields) and torch.equal(one.rng, other.rng)


def spec_of(**changes):
    return JobSpec.model_validate(SPEC | changes)


def points_of(records):
    return [p for r in records if isinstance(r, Metrics) for p in r.points if p.key.startswith(("train", "test"))]


def test_the_callers_state_holds_whenever_the_caller_holds_a_record(folders):
    before = GlobalState.now(CPU)
    for _ in train(spec_of(), folders=folders):
        assert same(GlobalState.now(CPU), before)


def test_closing_early_leaves_nothing_behind(folders):
    records = train(spec_of(), folders=folders)
    next(records)
    records.close()


def test_forgetting_the_generator_leaves_nothing_behind(folders):
    next(train(spec_of(), folders=folders))


def test_an_error_leaves_nothing_behind(folders):
    with pytest.raises(ZeroDivisionError):
        list(train(spec_of(), folders=folders, stop=lambda: 1 // 0))


def states_inside(*, deterministic):
    def records():
        seen.append(GlobalState.now(CPU))
        torch.rand(1)
        yield Finished(1)
        seen.append(GlobalState.now(CPU))

    seen = []
    list(isolated(records(), deterministic=deterministic, device=CPU))
    return seen


@pytest.mark.parametrize("deterministic", [False, True])
def test_inside_algorithms_are_as_asked_and_gradients_on(deterministic):
    with torch.no_grad():
        seen = states_inside(deterministic=deterministic)
    for state in seen:
        assert state.grad_enabled
        assert state.deterministic is deterministic
        assert state.cudnn_deterministic is deterministic
        assert state.cudnn_benchmark is not deterministic


@pytest.mark.parametrize("tf32", [False, True])
def test_inside_a_gpu_rounds_factors_only_where_asked(tf32):
    def records():
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        yield Finished(1)

    seen = []
    list(isolated(records(), deterministic=False, device=CPU, tf32=tf32))
    assert seen == [(tf32, tf32)]


def test_inside_random_numbers_go_on_where_they_were():
    first, second = states_inside(deterministic=False)
    assert not torch.equal(first.rng, second.rng)
    generator = torch.Generator()
    generator.set_state(first.rng)
    torch.rand(1, generator=generator)
    assert torch.equal(generator.get_state(), second.rng)


def test_a_caller_without_gradients_or_in_another_mode_gets_the_same_training(folders):
    plain = points_of(train(spec_of(), folders=folders))
    with torch.no_grad():
        assert points_of(train(spec_of(), folders=folders)) == plain


def test_two_trainings_that_take_turns_are_as_if_alone(folders):
    specs = [spec_of(seed=1), spec_of(seed=2, deterministic=False)]
    alone = [points_of(train(spec, folders=folders)) for spec in specs]
    told = [[], []]
    waiting = [(records, train(spec, folders=folders)) for records, spec in zip(told, specs, strict=True)]
    with torch.random.fork_rng(devices=[]):
        while waiting:
            torch.rand(7)
            records, training = waiting.pop(0)
            if record := next(training, None):
                records.append(record)
                waiting.append((records, training))
    assert [points_of(records) for records in told] == alone
