from collections.abc import Callable
from typing import Any

import pytest

from normcore.spec import JobSpec
from worker.note import JOB_TAG, attempt_tags, flat_params, note, tags
from worker.states import Desired, State
from worker.views import Attempt, Job, Reason

SPEC = {
    "model": {"kind": "vgg", "width": 0.25},
    "data": {"kind": "digits"},
    "norm": {"kind": "group", "num_groups": 4},
    "noise": {"kind": "santurkar"},
    "steps": 1500,
    "probes": [{"kind": "landscape", "every": 25}],
    "labels": {"course": "6.867"},
}


@pytest.fixture
def job() -> Callable[..., Job]:
    def make(spec: dict[str, Any] = SPEC, **changes: Any) -> Job:
        parsed = JobSpec.model_validate(spec)
        fields: dict[str, Any] = {
            "id": "0195",
            "name": parsed.name,
            "state": State.RUNNING,
            "desired": Desired.RUN,
            "spec": parsed,
            "labels": parsed.labels,
            "priority": 0,
            "created_at": 1.0,
            "started_at": 2.0,
            "finished_at": None,
            "progress_step": 0,
            "num_steps": parsed.num_steps,
            "epoch": 0.0,
            "steps_per_s": None,
            "last_metrics": {},
            "attempt": 1,
            "infra_retries": 0,
            "reason": None,
            "mlflow_run_id": None,
            "mlflow_experiment_id": None,
            "study_id": None,
            "dispatch_seq": 1,
        }
        return Job(**fields | changes)

    return make


def test_every_part_of_a_spec_is_a_flat_parameter_under_its_own_name():
    params = flat_params(JobSpec.model_validate(SPEC))
    assert (
        params.items()
        >= {
            "model.kind": "vgg",
            "model.width": "0.25",
            "norm.num_groups": "4",
            "norm.eps": "1e-05",
            "norm.affine": "true",
            "noise.mean_range": "0.5",
            "optimizer.lr": "0.1",
            "schedule.warmup_steps": "0",
            "probes.landscape.every": "25",
            "batch_size": "128",
            "steps": "1500",
            "seed": "0",
        }.items()
    )
    assert not [name for name in params if name.startswith(("labels", "epochs", "probes.landscape.kind"))]


def test_epochs_stand_instead_of_steps():
    params = flat_params(JobSpec.model_validate({k: v for k, v in SPEC.items() if k != "steps"} | {"epochs": 3}))
    assert params["epochs"] == "3"
    assert "steps" not in params


def test_labels_become_tags_but_not_ours(job):
    labels = {"course": "6.867", "a b,c=d": "x", "MLflow.runName": "mine", "study_id": "x", "attempt.2.worker": "me"}
    labels |= {JOB_TAG: "another"}
    made = tags(job(SPEC | {"labels": labels}))
    assert made == {
        "course": "6.867",
        "a b_c_d": "x",
        JOB_TAG: "0195",
        "mlflow.source.name": "normcore job 0195",
        "mlflow.source.type": "JOB",
    }
    assert tags(job(study_id="s"))["study_id"] == "s"


def test_a_weight_method_stands_in_the_sentence_and_in_the_table(job):
    text = note(job(SPEC | {"weight": {"kind": "standardized", "convention": "timm"}}))
    assert text.startswith("vgg11w0.25 with group norm and noise after it, weight method standardized, on digits: ")
    assert "| weight | standardized, convention timm |" in text


def test_each_attempt_is_told():
    lost = Attempt(1, "w1", 1.0, 2.0, "lost", Reason("trainer-lost", "got SIGKILL"), 0, 7)
    running = Attempt(2, "w2", 3.0, None, None, None, 5, None)
    assert attempt_tags([lost, running]) == {
        "attempts": "2",
        "attempt.1.worker": "w1",
        "attempt.1.resumed_from": "0",
        "attempt.1.outcome": "lost",
        "attempt.1.reason": "got SIGKILL",
        "attempt.2.worker": "w2",
        "attempt.2.resumed_from": "5",
    }


SUBJECT = "vgg11w0.25 with group norm and noise after it on digits"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, f"{SUBJECT}: 1,500 steps ordered."),
        (
            {"state": State.SUCCEEDED, "last_metrics": {"test/accuracy": 0.97777}},
            f"{SUBJECT}: 1,500 steps, test accuracy 0.978.",
        ),
        (
            {
                "state": State.SUCCEEDED,
                "last_metrics": {"test/accuracy": 0.264, "test/accuracy_recomputed": 0.961},
            },
            f"{SUBJECT}: 1,500 steps, test accuracy 0.264 (0.961 with statistics recomputed without the noise).",
        ),
        (
            {
                "state": State.SUCCEEDED,
                "last_metrics": {
                    "test/accuracy": 0.264,
                    "test/accuracy_recomputed": 0.961,
                    "test/accuracy_noisy": 0.95,
                },
            },
            (
                f"{SUBJECT}: 1,500 steps, test accuracy 0.264 (0.961 with statistics recomputed without the noise, "
                "0.950 with the noise on)."
            ),
        ),
        (
            {"state": State.SUCCEEDED, "last_metrics": {"test/accuracy": 0.9, "test/accuracy_noisy": 0.8}},
            f"{SUBJECT}: 1,500 steps, test accuracy 0.900 (0.800 with the noise on).",
        ),
        (
            {"state": State.FAILED, "progress_step": 1000, "reason": Reason("exception", "ValueError: two\nlines")},
            f"{SUBJECT}: failed after 1,000 of 1,500 steps: ValueError: two lines.",
        ),
        ({"state": State.CANCELLED, "progress_step": 3}, f"{SUBJECT}: cancelled after 3 of 1,500 steps."),
    ],
)
def test_the_note_begins_with_one_sentence(job, changes, sentence):
    first, blank, *table = note(job(**changes)).splitlines()
    assert (first, blank) == (sentence, "")
    assert all(row.startswith(("| ", "|-")) for row in table)


def test_the_notes_table_says_what_is_not_as_usual_and_what_came_out(job):
    rows = note(job(last_metrics={"test/accuracy": 0.97777, "train/loss": 0.0123456})).splitlines()
    assert "| norm | group, num_groups 4 |" in rows
    assert "| noise | santurkar |" in rows
    assert "| test/accuracy | 0.9778 |" in rows
    assert "| train/loss | 0.01235 |" in rows


def test_without_a_norm_the_note_says_so(job):
    assert note(job(SPEC | {"norm": {"kind": "none"}, "noise": {"kind": "none"}})).startswith(
        "vgg11w0.25 without a norm on digits:"
    )


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
def test_a_part_with_a_knob_that_must_be_given_has_a_row(job, kind):
    said = note(job(SPEC | {"data": {"kind": kind, "path": "mine", "size": 16}}))
    assert f"| data | {kind}, path mine, size 16 |" in said
