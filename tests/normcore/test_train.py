"""The training loop against a slow, obvious twin, and what it promises about its records."""

import pytest
import torch
from torch.nn import functional

from normcore.build import build_model
from normcore.data.dataset import load
from normcore.data.folders import DataFolders
from normcore.evaluation import BATCH, evaluate
from normcore.learner import Learner
from normcore.noise.noise import start_step
from normcore.records import Checkpoint, Diverged, Figure, Finished, Metrics, Point, Reading, Remark, Stopped
from normcore.spec import MENU, JobSpec, kind_of
from normcore.statistics import recomputed_statistics
from normcore.train import train

CLOCKS = ("time/step_ms", "memory/peak_mib", "probe/overhead_fraction")

SPEC = {
    "model": {"kind": "mlp", "hidden": [24, 16]},
    "data": {"kind": "digits", "size": 8, "crop_padding": 1},
    "noise": {"kind": "santurkar"},
    "optimizer": {"kind": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 1e-3},
    "schedule": {"kind": "cosine", "warmup_steps": 5},
    "batch_size": 48,
    "steps": 40,
    "evaluate_every": 15,
    "checkpoint_every": 12,
    "seed": 3,
}
PROBE = {"kind": "landscape", "every": 7, "points": 3}
SMALL = {"lr_range": {"steps": 10}, "plane": {"points": 3}, "interpolation": {"points": 3}}
"""Knobs that make a probe quick enough for a test."""


def spec_of(**changes):
    return JobSpec.model_validate(SPEC | changes)


def points_of(records):
    """All points but those of clocks, in the order they came in."""
    points = [point for record in records if isinstance(record, Metrics) for point in record.points]
    return [point for point in points if point.key not in CLOCKS]


def checkpoints_of(records):
    return {record.step: record.snapshot.tensors for record in records if isinstance(record, Checkpoint)}


def assert_same_tensors(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def slow_twin(spec, folders: DataFolders):
    """The same training as one would write it down first: every value read when it is there, no record but a list."""
    torch.manual_seed(0)
    data, model = load(spec, folders=folders), build_model(spec).to(memory_format=torch.channels_last)
    optimizer = spec.optimizer.part()(spec.optimizer, model)
    schedule = spec.schedule.part()(spec.optimizer.lr, spec.num_steps, **spec.schedule.knobs())
    points = []
    for step in range(1, spec.num_steps + 1):
        batch = data.batch(step - 1)
        x, y = batch.inputs, batch.labels
        start_step(model, spec.seed, step - 1)
        optimizer.zero_grad()
        logits = model(x)
        loss = functional.cross_entropy(logits, y)
        loss.backward()
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[-1]["lr"] = schedule.lr(step)
        optimizer.step()
        correct = sum(int(row.argmax() == label) for row, label in zip(logits, y, strict=True))
        points += [
            Point("train/loss", step, loss.item()),
            Point("train/accuracy", step, correct / len(y)),
            Point("train/lr", step, schedule.lr(step)),
        ]
        if step % spec.evaluate_every == 0 or step == spec.num_steps:
            model.eval()
            with torch.no_grad():
                logits = torch.cat([model(batch.inputs) for batch in data.test_batches(256)])
            model.train()
            loss = functional.cross_entropy(logits.double(), data.test_labels).item()
            accuracy = (logits.argmax(1) == data.test_labels).double().mean().item()
            points += [Point("test/loss", step, loss), Point("test/accuracy", step, accuracy)]
    return points, model


def test_curves_and_weights_are_exactly_the_slow_twins(folders):
    spec = spec_of()
    records = list(train(spec, folders=folders))
    points, model = slow_twin(spec, folders)
    ours = [point for point in points_of(records) if not point.key.endswith(("_recomputed", "_noisy"))]
    assert [p for p in ours if p.key != "test/loss"] == [p for p in points if p.key != "test/loss"]
    test_loss, twins = ([p.value for p in curve if p.key == "test/loss"] for curve in (ours, points))
    # The twin adds up in float64 what the loop adds up in float32 within a batch.
    assert test_loss == pytest.approx(twins, rel=1e-6)
    last = checkpoints_of(records)[40]
    assert_same_tensors(
        {name: tensor for name, tensor in last.items() if name.startswith("model.")},
        {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
    )


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_every_precision_learns(folders, precision):
    spec = spec_of(precision=precision, noise={"kind": "none"}, probes=[PROBE], steps=60)
    records = list(train(spec, folders=folders))
    points = points_of(records)
    first, last = (next(p.value for p in some if p.key == "train/loss") for some in (points, points[::-1]))
    assert last < 0.6 * first
    assert points[-1].key == "test/accuracy"
    assert points[-1].value > 0.6
    dtype = torch.float64 if precision == "float64" else torch.float32
    assert records[-2].png.startswith(b"\x89PNG")
    assert checkpoints_of(records)[60]["model.classifier.weight"].dtype == dtype


def test_bfloat16_rounds_where_float32_does_not(folders):
    quiet = {"noise": {"kind": "none"}, "steps": 1, "schedule": {"kind": "constant"}}
    first = {
        precision: points_of(train(spec_of(precision=precision, **quiet), folders=folders))[0].value
        for precision in ("float32", "bfloat16", "float64")
    }
    assert first["float32"] == pytest.approx(first["float64"], rel=1e-5)
    assert first["bfloat16"] != pytest.approx(first["float64"], rel=1e-5)
    assert first["bfloat16"] == pytest.approx(first["float64"], rel=0.05)


@pytest.mark.parametrize("part", MENU["probes"], ids=kind_of)
@pytest.mark.parametrize("model", [SPEC["model"], {"kind": "vgg", "width": 0.0625}], ids=["mlp", "vgg"])
def test_probes_change_no_bit_of_the_training(folders, model, part):
    changes = {"model": model, "data": {"kind": "digits", "size": 32}} if model["kind"] == "vgg" else {}
    steps = {"steps": 6, "checkpoint_every": 3} if changes else {}
    kind, every = kind_of(part), 2 if changes else 7
    probe = {"kind": kind, **SMALL.get(kind, {})} | ({"every": every} if "every" in part.model_fields else {})
    spec = spec_of(**changes, **steps, probes=[probe])
    unseen = list(train(spec_of(**changes, **steps), folders=folders))
    seen = list(train(spec, folders=folders))
    assert points_of(unseen) == [p for p in points_of(seen) if not p.key.startswith(f"{kind}/")]
    due = [step for step in range(1, spec.num_steps + 1) if step % every == 0]
    due = [spec.num_steps] if spec.probes[0].part().sees == "end" else due
    assert [record.step for record in seen if isinstance(record, Reading)] == due
    for step, tensors in checkpoints_of(seen).items():
        own = ("readings.", "watched.")
        training = {name: tensor for name, tensor in tensors.items() if not name.startswith(own)}
        assert_same_tensors(training, checkpoints_of(unseen)[step])


@pytest.mark.parametrize(
    "knobs",
    [
        {"precision": "float16", "accumulation": 3, "ema": 0.9},
        {"precision": "tf32", "accumulation": 2, "optimizer": {"kind": "muon", "clip_norm": 0.5}},
    ],
    ids="-".join,
)
def test_probes_change_no_bit_under_any_knob(folders, knobs):
    unseen, seen = (list(train(spec_of(**knobs, probes=probes), folders=folders)) for probes in ([], [PROBE]))
    assert points_of(unseen) == [p for p in points_of(seen) if not p.key.startswith("landscape/")]
    for step, tensors in checkpoints_of(seen).items():
        training = {name: tensor for name, tensor in tensors.items() if not name.startswith("readings.")}
        assert_same_tensors(training, checkpoints_of(unseen)[step])


@pytest.mark.parametrize("precision", ["float16", "tf32"])
def test_divergence_is_a_loss_that_is_not_finite_under_every_knob(folders, precision):
    knobs = {"precision": precision, "accumulation": 2, "ema": 0.9, "norm": {"kind": "none"}, "noise": {"kind": "none"}}
    optimizer = {"kind": "sgd", "lr": 1e4}
    records = list(
        train(spec_of(**knobs, optimizer=optimizer, schedule={"kind": "constant"}, steps=400), folders=folders)
    )
    assert isinstance(records[-1], Diverged)


def test_a_run_says_what_its_knobs_do_to_it(folders):
    knobs = {"precision": "tf32", "accumulation": 4, "steps": 5, "batch_size": 32}
    first, second = [r for r in train(spec_of(**knobs), folders=folders) if isinstance(r, Remark)]
    assert first == Remark(0, "tf32-is-float32", "tf32 is a way in which GPUs multiply; on this device it is float32")
    assert second.code == "micro-batches"
    assert second.detail == (
        "each update is that of 4 micro-batches of 8 samples; norms with batch statistics see the 8 samples of one, "
        "and their running statistics move 4 times an update"
    )


def test_label_smoothing_is_of_the_training_alone(folders):
    spec = spec_of(label_smoothing=0.2, noise={"kind": "none"}, steps=5)
    learner = Learner(spec, torch.device("cpu"), folders)
    loss, logits, labels = learner.forward(1)
    targets = 0.8 * functional.one_hot(labels, 10) + 0.2 / 10
    torch.testing.assert_close(loss, -(targets * logits.log_softmax(1)).sum(1).mean())
    test = evaluate(learner, learner.data.test_batches(2000))
    learner.model.eval()
    with torch.no_grad():
        logits = torch.cat([learner.infer(batch) for batch in learner.data.test_batches(2000)])
    assert test.loss == pytest.approx(functional.cross_entropy(logits, learner.data.test_labels).item(), rel=1e-6)


def test_noise_is_judged_with_it_on_at_the_end_whatever_the_norm(folders):
    def noisy(**changes):
        return {(p.key, p.step) for p in points_of(train(spec_of(**changes), folders=folders)) if "noisy" in p.key}

    told = {("test/loss_noisy", 40), ("test/accuracy_noisy", 40)}
    assert noisy() == noisy(norm={"kind": "none"}) == told
    assert noisy(noise={"kind": "none"}) == set()


def test_evaluation_leaves_the_training_untouched(folders):
    often = list(train(spec_of(evaluate_every=1), folders=folders))
    once = list(train(spec_of(evaluate_every=1000), folders=folders))
    curves = [[p for p in points_of(records) if p.key.startswith("train/")] for records in (often, once)]
    assert curves[0] == curves[1]
    assert_same_tensors(checkpoints_of(often)[40], checkpoints_of(once)[40])
    assert [p.step for p in points_of(often) if p.key == "test/loss"] == list(range(1, 41))
    assert [p.step for p in points_of(once) if p.key == "test/loss"] == [40]


def test_epochs_are_their_steps(folders):
    # 1,437 images in batches of 480 are two whole batches and a rest.
    by_epochs = list(train(spec_of(batch_size=480, steps=None, epochs=3), folders=folders))
    by_steps = list(train(spec_of(batch_size=480, steps=6), folders=folders))
    assert points_of(by_epochs) == points_of(by_steps)
    assert by_epochs[-1] == by_steps[-1] == Finished(6)


def test_record_every_thins_the_curves_and_changes_no_value(folders):
    every, fourth = (points_of(train(spec_of(record_every=n), folders=folders)) for n in (1, 4))
    assert fourth == [p for p in every if p.step % 4 == 0 or p.key.startswith("test/")]


def test_metrics_and_checkpoints_come_in_the_order_of_their_steps(folders):
    records = list(train(spec_of(probes=[PROBE]), folders=folders))
    assert isinstance(records[0], Metrics)
    assert records[0].step == 1
    steps = [record.step for record in records if not isinstance(record, Figure)]
    assert steps == sorted(steps)
    by_key = {}
    for point in points_of(records):
        by_key.setdefault(point.key, []).append(point.step)
    assert all(steps == sorted(set(steps)) for steps in by_key.values())
    assert by_key["train/loss"] == list(range(1, 41))
    assert by_key["landscape/effective_beta"] == [7, 14, 21, 28, 35]
    for index, record in enumerate(records):
        if isinstance(record, Checkpoint):
            told = {point.step for point in points_of(records[:index]) if point.key == "train/loss"}
            assert told == set(range(1, record.step + 1))
    assert [type(record) for record in records[-3:]] == [Checkpoint, Figure, Finished]
    assert [(r.step, r.last) for r in records if isinstance(r, Checkpoint)] == [
        (12, False),
        (24, False),
        (36, False),
        (40, True),
    ]


def test_readings_become_curves_under_the_probes_name(folders):
    records = list(train(spec_of(probes=[PROBE], steps=7), folders=folders))
    reading = next(record for record in records if isinstance(record, Reading))
    curves = {p.key: p.value for p in points_of(records) if p.step == 7 and p.key.startswith("landscape/")}
    assert curves == {f"landscape/{name}": value for name, value in reading.scalars.items()}
    assert reading.arrays["step_sizes"] == pytest.approx([x * spec_of().optimizer.lr * 0 for x in (1, 2, 3)])


def test_clocks_tell_the_time_of_a_step_and_the_memory(folders):
    records = list(train(spec_of(), folders=folders))
    clocks = {key: [p for r in records if isinstance(r, Metrics) for p in r.points if p.key == key] for key in CLOCKS}
    assert [p.step for p in clocks["time/step_ms"]] == [p.step for p in clocks["memory/peak_mib"]]
    assert all(0 < p.value < 10_000 for p in clocks["time/step_ms"])
    assert all(50 < p.value < 1e6 for p in clocks["memory/peak_mib"])


def test_stop_ends_after_the_step_with_a_checkpoint(folders):
    asked = []

    def stop():
        asked.append(None)
        return len(asked) == 9

    records = list(train(spec_of(), folders=folders, stop=stop))
    *_, metrics, checkpoint, stopped = records
    assert stopped == Stopped(9)
    assert (checkpoint.step, checkpoint.last, checkpoint.snapshot.step) == (9, False, 9)
    assert metrics.step == 9
    assert [p.step for p in points_of(records) if p.key == "train/loss"] == list(range(1, 10))


def test_a_stop_at_the_last_step_is_a_finish(folders):
    records = list(train(spec_of(steps=1, schedule={"kind": "constant"}), folders=folders, stop=lambda: True))
    assert records[-1] == Finished(1)
    assert records[-2].last


def test_noise_changes_neither_the_first_weights_nor_the_batches(folders):
    with_noise, without = (
        Learner(spec_of(noise={"kind": kind}), torch.device("cpu"), folders) for kind in ("santurkar", "none")
    )
    assert_same_tensors(dict(with_noise.model.state_dict()), dict(without.model.state_dict()))
    for step in (1, 2, 29, 30, 31, 400):
        noisy_loss, _, noisy_labels = with_noise.forward(step)
        loss, _, labels = without.forward(step)
        assert torch.equal(noisy_labels, labels)
        assert noisy_loss != loss
        ours, theirs = with_noise.data.batch(step).inputs, without.data.batch(step).inputs
        assert torch.equal(ours, theirs)


def layer_of(model, x):
    """The first layer with parameters or output that are not finite, walking by hand through an MLP."""
    for index, block in enumerate(model.blocks):
        for name, layer in block.named_children():
            x = layer(x)
            if not all(tensor.isfinite().all() for tensor in (x, *layer.parameters())):
                return f"blocks.{index}.{name}"
    return "classifier"


def diverging_twin(spec, folders):
    """First step whose loss is not finite, and the first layer of which parameters or output are not, then."""
    data, model = load(spec, folders=folders), build_model(spec)
    optimizer = torch.optim.SGD(model.parameters(), lr=spec.optimizer.lr)
    for step in range(1, spec.num_steps + 1):
        batch = data.batch(step - 1)
        x, y = batch.inputs, batch.labels
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        if not loss.isfinite():
            return step, loss.item(), layer_of(model, x.flatten(1))
        loss.backward()
        optimizer.step()
    raise AssertionError("the twin did not diverge")


@pytest.mark.parametrize("lr", [300.0, 1e4, 1e6])
def test_divergence_is_found_at_its_step_and_its_layer(folders, lr):
    spec = spec_of(
        norm={"kind": "none"},
        noise={"kind": "none"},
        optimizer={"kind": "sgd", "lr": lr},
        schedule={"kind": "constant"},
        probes=[PROBE | {"every": 1}],
        checkpoint_every=1,
        steps=400,
    )
    step, loss, layer = diverging_twin(spec, folders)
    assert step > 2
    records = list(train(spec, folders=folders))
    diverged = records[-1]
    assert (diverged.step, repr(diverged.loss), diverged.layer) == (step, repr(loss), layer)
    assert layer is not None
    assert [p.step for p in points_of(records) if p.key == "train/loss"] == list(range(1, step))
    assert max(checkpoints_of(records)) == step - 1
    assert isinstance(records[-2], Figure)


def test_divergence_within_a_window_is_told_from_the_window_alone(folders):
    changes = {"norm": {"kind": "none"}, "noise": {"kind": "none"}, "schedule": {"kind": "constant"}, "steps": 400}
    spec = spec_of(**changes, optimizer={"kind": "sgd", "lr": 300.0}, evaluate_every=400, checkpoint_every=400)
    step, _, layer = diverging_twin(spec, folders)
    records = list(train(spec, folders=folders))
    assert (records[-1].step, records[-1].layer) == (step, layer)
    assert [p.step for p in points_of(records) if p.key == "train/loss"] == list(range(1, step))
    assert records[-2].step == step - 1
    assert not checkpoints_of(records)


def test_a_sweep_that_blows_up_does_not_stop_the_training(folders):
    probe = PROBE | {"every": 5, "low": 1.0, "high": 1e30}
    spec = spec_of(norm={"kind": "none"}, schedule={"kind": "constant"}, probes=[probe], steps=10)
    records = list(train(spec, folders=folders))
    assert records[-1] == Finished(10)
    readings = [record for record in records if isinstance(record, Reading)]
    assert [reading.scalars["nonfinite_points"] for reading in readings] == [2.0, 2.0]


def test_what_norms_say_of_their_own_arithmetic_is_told_at_each_evaluation(folders):
    """Newton's residual is that of the layer farthest from white, in the training pass of that step."""
    norm = {"kind": "iterative", "channels_per_group": 8}
    spec = spec_of(norm=norm, noise={"kind": "none"}, checkpoint_every=14)
    records = list(train(spec, folders=folders))
    told = [point for point in points_of(records) if point.key.startswith("norm/")]
    assert [(point.key, point.step) for point in told] == [("norm/newton_residual", step) for step in (15, 30, 40)]
    learner = Learner(spec, torch.device("cpu"), folders)
    tensors = {name: tensor for name, tensor in checkpoints_of(records)[14].items() if name.startswith("model.")}
    learner.model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    learner.forward(15)
    residuals = [buffer.item() for name, buffer in learner.model.named_buffers() if name.endswith("newton_residual")]
    assert len(set(residuals)) == 2
    assert told[0].value == max(residuals)
    snapshot = next(record.snapshot for record in records if isinstance(record, Checkpoint))
    assert [point for point in points_of(train(spec, folders=folders, resume=snapshot)) if point in told] == told
    assert not [point for point in points_of(train(spec_of(), folders=folders)) if point.key.startswith("norm/")]


def test_recomputed_statistics_are_told_at_the_end_of_noisy_batch_norm_and_only_there(folders):
    def keys(**changes):
        return {(p.key, p.step) for p in points_of(train(spec_of(**changes), folders=folders)) if "recomputed" in p.key}

    assert keys() == {("test/loss_recomputed", 40), ("test/accuracy_recomputed", 40)}
    assert keys(noise={"kind": "none"}) == set()
    assert keys(norm={"kind": "layer"}) == set()


def test_recomputed_evaluation_is_that_of_the_last_checkpoint_with_recomputed_statistics(folders):
    # In float64 and but for rounding: only a deterministic training promises bits, and this one's loss may move by an
    # ulp of float32 between two evaluations where threads are shared out otherwise.
    spec = spec_of(precision="float64")
    records = list(train(spec, folders=folders))
    told = {point.key: point.value for point in points_of(records)}
    learner = Learner(spec, torch.device("cpu"), folders)
    tensors = {
        name.removeprefix("model."): tensor
        for name, tensor in checkpoints_of(records)[40].items()
        if name.startswith("model.")
    }
    learner.model.load_state_dict(tensors)
    before = evaluate(learner, learner.data.test_batches(BATCH))
    assert before.loss == pytest.approx(told["test/loss"], rel=1e-12)
    assert before.accuracy == told["test/accuracy"]
    batches = [learner.data.batch(step) for step in range(1437 // 48)]
    with recomputed_statistics(learner.model, batches, infer=learner.infer):
        after = evaluate(learner, learner.data.test_batches(BATCH))
    assert after.loss == pytest.approx(told["test/loss_recomputed"], rel=1e-12)
    assert after.accuracy == told["test/accuracy_recomputed"]
    assert after.loss != pytest.approx(before.loss, rel=1e-6)


def test_probes_without_matplotlib_are_refused_before_the_first_step(folders, monkeypatch):
    monkeypatch.setattr("normcore.train.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"drawn with matplotlib, .*; install it: pip install 'normcore"):
        train(spec_of(probes=[PROBE]), folders=folders)
    assert next(train(spec_of(), folders=folders)).step == 1


def test_closing_early_is_no_error(folders):
    records = train(spec_of(), folders=folders)
    next(iter(records))
    records.close()
    assert list(records) == []


def test_an_end_whose_test_loss_is_not_finite_is_a_divergence(folders):
    """The last update has no next step that would notice it."""
    spec = spec_of(
        steps=2,
        norm={"kind": "none"},
        noise={"kind": "none"},
        optimizer={"kind": "sgd", "lr": 1e6},
        schedule={"kind": "constant"},
    )
    records = list(train(spec, folders=folders))
    assert isinstance(records[-1], Diverged)
    assert records[-1].step == 2
    assert not any(isinstance(record, Checkpoint | Finished) for record in records)


def test_no_checkpoint_holds_parameters_that_are_not_finite(folders):
    spec = spec_of(
        steps=60,
        norm={"kind": "none"},
        noise={"kind": "none"},
        checkpoint_every=1,
        optimizer={"kind": "sgd", "lr": 1e5},
        schedule={"kind": "constant"},
    )
    records = list(train(spec, folders=folders))
    assert isinstance(records[-1], Diverged)
    for tensors in checkpoints_of(records).values():
        assert all(tensor.isfinite().all() for name, tensor in tensors.items() if name.startswith("model."))
