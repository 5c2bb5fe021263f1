"""When probes are asked, what they cost, and that whatever they do the training goes on as if unseen."""

import sys
from types import SimpleNamespace

import pytest
import torch

from normcore.learner import Learner
from normcore.menu.smoothness_probes import LandscapeProbeSpec
from normcore.records import Checkpoint, Diverged, Figure, Finished, Metrics, Reading, Remark, Stopped
from normcore.snapshot import readings_of
from normcore.spec import JobSpec
from normcore.train import train
from tests.normcore.probes.test_no_footprints import of_the_training
from tests.normcore.test_resume import through_the_wire
from worker.checkpoint import load, save

SPEC = {
    "model": {"kind": "mlp", "hidden": [8]},
    "data": {"kind": "digits", "size": 8},
    "noise": {"kind": "santurkar"},
    "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
    "batch_size": 8,
    "steps": 6,
    "checkpoint_every": 2,
    "evaluate_every": 6,
    "deterministic": True,
}


class Probe:
    """Stands on the menu in the place of the landscape probe; tests say what it does."""

    kind, sees, evaluates = "landscape", "step", False

    def __init__(self, **_):
        pass

    def read(self, moment):
        return Reading("landscape", moment.step, {"loss": 1.0}, {"losses": (1.0, 2.0)})

    def cost(self, _):
        return 1.0


class Watcher(Probe):
    """Reads at the end the sum of the first weight at every step that it watched."""

    sees = "end"

    def __init__(self, **_):
        self.steps, self.total = [], torch.zeros(())

    def watch(self, step, model):
        self.steps.append(step)
        self.total = self.total + next(model.parameters()).detach().flatten()[0]

    def read(self, moment):
        arrays = {"steps": tuple(map(float, self.steps)), "total": (self.total.item(),)}
        return Reading("landscape", moment.step, {}, arrays)

    def state(self):
        return {"steps": torch.tensor(self.steps), "total": self.total}

    def restore(self, state):
        self.steps, self.total = state["steps"].tolist(), state["total"]


@pytest.fixture
def on_the_menu(monkeypatch):
    """Puts a class of probes in the place of the landscape probe."""

    def put(probe, drawing=lambda _: b"png"):
        module = SimpleNamespace(probe=probe, drawing=drawing)
        monkeypatch.setitem(sys.modules, "probe_of_a_test", module)
        monkeypatch.setattr(LandscapeProbeSpec, "target", "probe_of_a_test:probe")
        monkeypatch.setattr(LandscapeProbeSpec, "figure", "probe_of_a_test:drawing")

    return put


def job(every=1, **changes):
    return JobSpec.model_validate(SPEC | {"probes": [{"kind": "landscape", "every": every}]} | changes)


def steps_of(records):
    return [record.step for record in records if isinstance(record, Reading)]


def failures(records):
    return [record for record in records if isinstance(record, Remark) and record.code == "probe-landscape-failed"]


def unseen(folders, **changes):
    return list(of_the_training(train(JobSpec.model_validate(SPEC | changes), folders=folders)))


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (3, [3, 6, 9, 12]),
        ({"kind": "epochs"}, [3, 6, 9, 12]),
        ({"kind": "epochs", "every": 2}, [6, 12]),
        ({"kind": "log_spaced", "per_decade": 3}, [1, 2, 5, 10]),
        ({"kind": "log_spaced", "per_decade": 1}, [1, 10]),
    ],
)
def test_probes_are_asked_on_occasion(folders, on_the_menu, every, steps):
    on_the_menu(Probe)
    # 1437 images of digits: three whole batches.
    assert steps_of(train(job(every, steps=12, batch_size=450), folders=folders)) == steps


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """A step takes a second, and all else no time."""
    clock, update = Clock(), Learner.update

    def slow(*args):
        clock.now += 1.0
        update(*args)

    monkeypatch.setattr("normcore.curves.perf_counter", clock)
    monkeypatch.setattr(Learner, "update", slow)
    return clock


def slow_probe(clock, takes, states):
    class Slow(Probe):
        def read(self, moment):
            clock.now += takes
            return super().read(moment)

        def cost(self, _):
            return states

    return Slow


def overheads(records):
    told = (point for record in records if isinstance(record, Metrics) for point in record.points)
    return {point.step: point.value for point in told if point.key == "probe/overhead_fraction"}


BUDGET = {"deterministic": False, "steps": 100, "evaluate_every": 100, "checkpoint_every": 50}


def test_a_budget_waits_until_each_reading_fits_and_never_is_exceeded(folders, on_the_menu, clock):
    on_the_menu(slow_probe(clock, takes=4.0, states=4.0))
    records = list(train(job({"kind": "budget", "fraction": 0.125}, **BUDGET), folders=folders))
    # 4 s fit an eighth of 32 s, 8 s of 64 s, 12 s of 96 s.
    assert steps_of(records) == [33, 65, 97]
    overhead = overheads(records)
    assert max(overhead.values()) <= 0.125
    assert overhead[33] == 4 / 33
    assert overhead[100] == 12 / 100


def test_under_a_budget_the_first_reading_waits_for_the_stated_cost_and_the_next_for_the_measured(
    folders, on_the_menu, clock
):
    on_the_menu(slow_probe(clock, takes=4.0, states=2.0))
    records = list(train(job({"kind": "budget", "fraction": 0.125}, **BUDGET), folders=folders))
    assert steps_of(records) == [17, 65, 97]


def test_a_budget_begins_anew_with_a_resume(folders, on_the_menu, clock):
    on_the_menu(slow_probe(clock, takes=4.0, states=4.0))
    spec = job({"kind": "budget", "fraction": 0.125}, **BUDGET)
    snapshot = next(record.snapshot for record in train(spec, folders=folders) if isinstance(record, Checkpoint))
    assert snapshot.step == 50
    assert steps_of(train(spec, folders=folders, resume=snapshot)) == [83]


@pytest.mark.parametrize("every", [20, 50])
def test_the_overhead_is_the_time_of_readings_over_that_of_steps(folders, on_the_menu, clock, every):
    on_the_menu(slow_probe(clock, takes=3.0, states=1.0))
    records = list(train(job(every, **BUDGET), folders=folders))
    assert overheads(records)[100] == 3.0 * (100 // every) / 100


def test_what_evaluation_uses_is_made_ready_for_whoever_looks_at_it_and_counts_as_its_time(
    folders, on_the_menu, clock, monkeypatch
):
    class Evaluating(Probe):
        evaluates = True

    def gather(*_):
        clock.now += 2.0

    monkeypatch.setattr("normcore.train.gather_statistics", gather)
    on_the_menu(Evaluating)
    records = train(job({"kind": "budget", "fraction": 0.125}, **BUDGET | {"steps": 40}), folders=folders)
    # The stated second first, then the two that it took: 4 s fit an eighth of 32 s.
    assert steps_of(records) == [9, 33]


def test_at_the_end_what_evaluation_uses_is_that_of_the_last_weights(folders, on_the_menu, monkeypatch):
    gathered, read = [], []

    class Evaluating(Watcher):
        evaluates = True

        def read(self, moment):
            read.append((gathered[-1], moment.model.classifier.weight.detach().clone()))
            return super().read(moment)

    monkeypatch.setattr(
        "normcore.train.gather_statistics",
        lambda _, learner: gathered.append(learner.model.classifier.weight.detach().clone()),
    )
    on_the_menu(Evaluating)
    list(train(job(every=2), folders=folders))
    ((ready, last),) = read
    assert torch.equal(ready, last)


def vandal(where):
    """A probe that changes all that it can get at, and raises."""

    class Vandal(Watcher if where in ("watch", "state", "restore") else Probe):
        sees = {"update": "update", "end": "end", "watch": "end", "state": "end"}.get(where, "step")
        readings = 0

        def read(self, moment):
            Vandal.readings += 1
            if where == "lengths":
                return Reading("landscape", moment.step, {}, {"losses": (1.0,) * Vandal.readings})
            if where == "names":
                return Reading("landscape", moment.step, {"loss": 1.0}, {"loss": (1.0,)})
            if where in ("read", "update", "end"):
                moment.plain(ahead=2)().backward()
                moment.model.eval().requires_grad_(requires_grad=False)
                for tensor in (*moment.model.parameters(), *moment.model.buffers()):
                    tensor.data.zero_()
                torch.rand(5)
                raise ZeroDivisionError("by nothing\0at all")
            return super().read(moment)

        def watch(self, step, model):
            if where == "watch":
                raise ZeroDivisionError
            super().watch(step, model)

        def state(self):
            if where == "state":
                raise ZeroDivisionError
            return super().state()

    return Vandal


@pytest.mark.parametrize("where", ["read", "update", "end", "watch", "state", "lengths", "names", "figure"])
def test_a_probe_that_raises_is_reported_once_and_leaves_every_bit(folders, on_the_menu, where):
    def drawing(_):
        if where == "figure":
            raise ZeroDivisionError
        return b"png"

    on_the_menu(vandal(where), drawing)
    records = list(train(job(every=2), folders=folders))
    assert len(failures(records)) == 1
    assert isinstance(records[-1], Finished)
    assert list(of_the_training(records)) == unseen(folders)
    assert [type(record) for record in records[-2:]] == [Remark if where == "figure" else type(records[-2]), Finished]


def test_a_failure_says_what_was_raised_and_where(folders, on_the_menu):
    on_the_menu(vandal("read"))
    (remark,) = failures(train(job(every=2), folders=folders))
    assert remark.step == 2
    assert remark.detail.startswith("the probe failed and is asked no more: ZeroDivisionError: by nothing at all (read")


def test_a_cost_that_cannot_be_stated_stops_no_training(folders, on_the_menu):
    class Costly(Probe):
        def cost(self, _):
            raise ZeroDivisionError("no cost")

    on_the_menu(Costly)
    records = list(train(job({"kind": "budget"}, deterministic=False), folders=folders))
    assert [remark.step for remark in failures(records)] == [2]
    assert steps_of(records) == []
    assert isinstance(records[-1], Finished)


def test_a_probe_that_failed_is_asked_no_more_after_a_resume(folders, on_the_menu):
    class Fleeting(Probe):
        times = 0

        def read(self, moment):
            Fleeting.times += 1
            if Fleeting.times == 2:
                raise ZeroDivisionError
            return super().read(moment)

    on_the_menu(Fleeting)
    records = list(train(job(every=1), folders=folders))
    assert (steps_of(records), len(failures(records))) == ([1], 1)
    snapshot = next(record.snapshot for record in records if isinstance(record, Checkpoint) and record.step == 4)
    again = list(train(job(every=1), folders=folders, resume=through_the_wire(snapshot)))
    assert (steps_of(again), failures(again)) == ([], [])
    assert [type(record) for record in again[-2:]] == [Figure, Finished]


def test_scalars_that_are_not_finite_are_left_out(folders, on_the_menu):
    class Wild(Probe):
        def read(self, moment):
            scalars = {"nan": float("nan"), "inf": float("inf"), "tensor": torch.tensor(2.0)}
            return Reading("landscape", moment.step, scalars, {"losses": (float("nan"), 1.0)})

    on_the_menu(Wild)
    records = list(train(job(every=6), folders=folders))
    assert failures(records) == []
    points = [point for record in records if isinstance(record, Metrics) for point in record.points]
    assert [point.value for point in points if point.key.startswith("landscape/")] == [2.0]


def test_what_watches_is_watched_on_schedule_and_goes_on_after_a_resume_bit_for_bit(folders, on_the_menu):
    on_the_menu(Watcher)
    spec = job(every=3, steps=7, evaluate_every=7)
    whole = list(train(spec, folders=folders))
    (reading,) = [record for record in whole if isinstance(record, Reading)]
    assert (reading.step, reading.arrays["steps"]) == (7, (3.0, 6.0, 7.0))
    for snapshot in [record.snapshot for record in whole if isinstance(record, Checkpoint)][:-1]:
        again = list(train(spec, folders=folders, resume=through_the_wire(snapshot)))
        assert [record for record in again if isinstance(record, Reading)] == [reading]
        ours, theirs = (
            [r for r in records if isinstance(r, Checkpoint)][-1].snapshot.tensors for records in (again, whole)
        )
        assert "watched.landscape.total" in ours
        assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def test_layers_facts_and_who_failed_come_through_a_checkpoint_on_disk(folders, tmp_path, on_the_menu):
    class Layered(Probe):
        def read(self, moment):
            if moment.step == 3:
                raise ZeroDivisionError
            values = (1.0, float("nan"), float("inf"))
            scalars = {"odd": 1.0} if moment.step % 2 else {}
            return Reading("landscape", moment.step, scalars, {"a": values}, ("x", "y.0", "z"), {"bn_mode": "batch"})

    on_the_menu(Layered)
    whole = list(train(job(every=1), folders=folders))
    readings = [record for record in whole if isinstance(record, Reading)]
    assert [reading.step for reading in readings] == [1, 2]
    snapshot = [record.snapshot for record in whole if isinstance(record, Checkpoint)][1]
    loaded = load(save(tmp_path, snapshot).path)
    assert repr(readings_of(loaded)) == repr(readings)
    again = list(train(job(every=1), folders=folders, resume=loaded))
    assert (steps_of(again), failures(again)) == ([], [])
    ours, theirs = ([r for r in told if isinstance(r, Checkpoint)][-1].snapshot for told in (again, whole))
    assert ours.facts == theirs.facts
    assert ours.facts["failed"] == ["landscape"]


def test_an_end_that_is_none_any_more_is_forgotten(folders, on_the_menu):
    on_the_menu(Watcher)
    first = [r.snapshot for r in train(job(every=3), folders=folders) if isinstance(r, Checkpoint)][-1]
    longer = list(train(job(every=3, steps=9), folders=folders, resume=first))
    whole = list(train(job(every=3, steps=9), folders=folders))
    last = [record for record in longer if isinstance(record, Checkpoint)][-1].snapshot.tensors
    assert last["readings.landscape.step"].tolist() == [9]
    # The longer training was also watched at the end of the shorter, which here is on schedule.
    assert [r for r in longer if isinstance(r, Reading)] == [r for r in whole if isinstance(r, Reading)] != []


def test_the_end_is_not_read_when_the_training_stops_before_or_diverges(folders, on_the_menu):
    on_the_menu(Watcher)
    asked = iter([False, False, True])
    stopped = list(train(job(every=1), folders=folders, stop=lambda: next(asked)))
    assert isinstance(stopped[-1], Stopped)
    assert steps_of(stopped) == []
    wild = {"model": {"kind": "deep_linear"}, "data": {"kind": "gaussian"}, "norm": {"kind": "none"}}
    wild |= {"noise": {"kind": "none"}, "optimizer": {"kind": "sgd", "lr": 1e6}, "steps": 20, "deterministic": False}
    diverged = list(train(job(every=1, **wild), folders=folders))
    assert isinstance(diverged[-1], Diverged)
    assert steps_of(diverged) == []
