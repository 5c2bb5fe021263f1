import io

import pytest
from matplotlib.image import imread
from rich.console import Console

from api.client import ApiUnreachable, Client, RequestRefused
from api.demo import ARMS, COMMON, SEEDS, _patiently, demo, run
from api.views import Problem
from normcore.preview import preview
from normcore.spec import JobSpec
from worker.book import Book, BookUnavailable, Reason
from worker.states import Event

BAND = {"none": 2.0, "batch": 0.5, "batch + noise": 1.0}


class Idle:
    """Waiting, in which a worker ends one job after the other."""

    def __init__(self, worker, book, ends):
        self.worker, self.book, self.ends = worker, book, dict(ends)
        self.seen = False

    def __call__(self, seconds):
        if not self.seen:
            self.seen = True
            self.book.worker_seen("worker-1", "cpu")
            return
        try:
            claim = self.worker.claim()
        except ValueError:
            return
        arm = claim.spec.labels["arm"]
        for step in (20, 40):
            self.worker.train(
                claim,
                step,
                train_accuracy=0.5 + claim.spec.seed / 4,
                landscape_loss_min=1.0,
                landscape_loss_max=1.0 + BAND[arm],
                landscape_gradient_change_min=0.1,
                landscape_gradient_change_max=BAND[arm],
                landscape_effective_beta_times_lr=BAND[arm],
            )
        self.worker.train(claim, 60, test_accuracy=0.25 + claim.spec.seed / 2)
        if arm == "batch + noise":
            self.worker.train(claim, 60, test_accuracy_recomputed=0.75)
        run_id = f"run{arm.replace(' ', '')}{claim.spec.seed}"
        self.book.set_mlflow_run(claim.job_id, run_id=run_id, experiment_id="7")
        event = self.ends.get((arm, claim.spec.seed), Event.SUCCEEDED)
        assert self.book.finish(claim.token, event, None if event is Event.SUCCEEDED else Reason("why", "it was so"))


@pytest.fixture
def played(server, worker, book, tmp_path):
    def play(ends=()):
        out = Console(file=io.StringIO(), width=1000, highlight=False)
        with Client(server) as client:
            status = run(client, tmp_path / "demo", out, Idle(worker, book, dict(ends)))
        return status, out.file.getvalue()

    return play


def test_arms_differ_in_norm_and_noise_and_nothing_else(tmp_path):
    specs = [JobSpec.model_validate({**COMMON, **arm}) for arm in ARMS.values()]
    assert [(spec.norm.kind, spec.noise.kind) for spec in specs] == [
        ("none", "none"),
        ("batch", "none"),
        ("batch", "santurkar"),
    ]
    assert len({spec.model_dump_json(exclude={"norm", "noise"}) for spec in specs}) == 1
    assert [preview(spec).reasons for spec in specs] == [()] * 3
    assert len(SEEDS) > 1


def test_demo_shows_table_figure_and_links(played, tmp_path):
    status, said = played()
    assert status == 0
    lines = said.splitlines()
    assert lines[0] == "Waiting for a worker: no worker is alive; orders wait until one is"
    table = next(number for number, line in enumerate(lines) if line.startswith("arm "))
    assert [line.split("  ")[0] for line in lines[table + 1 : table + 4]] == list(ARMS)
    assert lines[table + 1].split()[1:] == ["0.500±0.354", "-", "0.625±0.177", "2.000±0.000", "2.000±0.000"]
    assert lines[table + 3].split()[3:] == ["0.500±0.354", "0.750±0.000", "0.625±0.177", "1.000±0.000", "1.000±0.000"]
    assert f"Figure: {tmp_path / 'demo' / 'smoothness.png'}" in lines
    assert imread(tmp_path / "demo" / "smoothness.png").shape == (1350, 1200, 4)
    (curves,) = (line for line in lines if line.startswith("Curves:"))
    assert "http://mlflow.example:5000/#/experiments/7/runs?workflowType=machine_learning" in curves
    assert "&searchFilter=tags.%60demo%60%20%3D%20%222" in curves
    (compared,) = (line for line in lines if line.startswith("Compared:"))
    assert all(f"%22run{arm.replace(' ', '')}{seed}%22" in compared for arm in ("none", "batch") for seed in SEEDS)
    assert [line.split(": ")[0] for line in lines[-6:]] == [
        *("  none, seed 0", "  batch, seed 0", "  batch + noise, seed 0"),
        *("  none, seed 1", "  batch, seed 1", "  batch + noise, seed 1"),
    ]


def test_divergence_is_a_result(played):
    status, said = played({("none", 1): Event.DIVERGED})
    assert status == 0
    assert "vgg11w0.25 none bs64 lr0.1 seed1 diverged, which is a result: it was so" in said


@pytest.mark.parametrize("event", [Event.FAILED, Event.CANCELLED])
def test_failed_or_cancelled_job_fails_the_demo(played, event):
    status, said = played({("batch", 0): event})
    assert status == 1
    assert f"vgg11w0.25 batch bs64 lr0.1 seed0: {event}, it was so" in said
    assert "\narm " in said


def test_each_demo_is_a_set_of_its_own(server, played, monkeypatch):
    stamps = iter(["first", "second"])
    monkeypatch.setattr("api.demo._stamp", lambda: next(stamps))
    assert [played()[0], played()[0]] == [0, 0]
    with Client(server) as client:
        assert [len(list(client.jobs(labels={"demo": stamp}))) for stamp in ("first", "second")] == [6, 6]


def test_laboratory_that_was_named_must_answer(settings, monkeypatch):
    monkeypatch.setattr("api.client.PAUSES_S", (0.0,))
    out = Console(file=io.StringIO(), width=1000)
    assert demo(settings, "http://127.0.0.1:9", out, start=False) == 1
    assert out.file.getvalue().startswith("no laboratory answers at http://127.0.0.1:9")


def test_demo_gives_up_where_no_worker_comes(server, tmp_path, monkeypatch):
    monkeypatch.setattr("api.demo.PATIENCE_S", 0.0)
    out = Console(file=io.StringIO(), width=1000)
    with Client(server) as client, pytest.raises(ApiUnreachable, match="no worker came within 0 s"):
        run(client, tmp_path, out, lambda seconds: None)


def test_an_order_book_that_is_away_for_a_moment_is_waited_for(played, monkeypatch):
    answered = set()

    def away_at_first(name):
        method = getattr(Book, name)

        def ask(*args, **kwargs):
            if name not in answered:
                answered.add(name)
                raise BookUnavailable("the database must answer, got silence")
            return method(*args, **kwargs)

        monkeypatch.setattr(Book, name, ask)

    asked = ("submit", "jobs", "metrics")
    for name in asked:
        away_at_first(name)
    status, said = played()
    assert (status, answered) == (0, set(asked))
    assert "\narm " in said


def test_a_refusal_is_not_asked_for_again():
    problem = Problem(type="about:blank", title="No", status=422, detail="it cannot be built", instance="/v1/jobs")

    def ask():
        raise RequestRefused(problem)

    with pytest.raises(RequestRefused, match="it cannot be built"):
        _patiently(ask, lambda seconds: pytest.fail("waited"))
