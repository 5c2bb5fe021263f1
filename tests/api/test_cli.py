import json
import subprocess
import sys
import threading

import pytest
from typer.testing import CliRunner

from api.cli import app
from worker.book import Reason
from worker.settings import settings as settings_of_process
from worker.states import Event

FIELDS = ["model.kind=mlp", "data.kind=digits", "data.size=8", "steps=100"]


@pytest.fixture
def normcore(server, monkeypatch):
    """The command line, pointed at the server."""
    monkeypatch.setenv("NORMCORE_API_URL", server)
    settings_of_process.cache_clear()
    yield lambda *words, **more: CliRunner().invoke(app, [str(word) for word in words], **more)
    settings_of_process.cache_clear()


def submitted(normcore, *more):
    done = normcore("submit", *FIELDS, *more, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_help_needs_no_heavy_package():
    program = "import sys; from api.cli import app; app(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].strip("[]").replace("'", "").split(", "))
    assert {"typer", "api.cli"} <= loaded
    assert not loaded & {"torch", "mlflow", "fastapi", "httpx", "pydantic", "sqlalchemy", "celery", "numpy"}
    for command in ("up", "join", "demo", "submit", "watch", "ls", "cancel", "preview", "certify", "figure"):
        assert command in done.stdout


def test_submit_prints_the_id_first(normcore):
    done = normcore("submit", *FIELDS, "norm.kind=group")
    assert done.exit_code == 0
    first, link, hint = done.stdout.splitlines()
    identifier, name, state = first.split("  ")
    assert (name, state) == ("mlp128x128 group bs128 lr0.1 seed0", "queued")
    assert link.endswith(f"/v1/jobs/{identifier}")
    assert hint == f"  watch it with: normcore watch {identifier}"


def test_submit_takes_a_file_and_standard_input(normcore, order, tmp_path):
    (tmp_path / "job.json").write_text(json.dumps(order))
    assert json.loads(normcore("submit", tmp_path / "job.json", "seed=7", "--json").stdout)["spec"]["seed"] == 7
    assert json.loads(normcore("submit", "-", "--json", input=json.dumps(order)).stdout)["spec"]["steps"] == 100


def test_key_orders_once(normcore):
    assert submitted(normcore, "--key", "mine")["id"] == submitted(normcore, "--key", "mine")["id"]


@pytest.mark.parametrize("command", ["submit", "preview"])
def test_refused_order_exits_2_with_pointer_and_remedy(normcore, command):
    done = normcore(command, *FIELDS, "norm.kind=group", "norm.num_groups=3")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "/norm/num_groups at blocks.0.norm: num_groups must divide num_features, got num_groups 3" in done.stderr
    done = normcore(command, "model.kind=mlp", "norm.kind=grop")
    assert done.exit_code == 2
    assert '/norm/kind: there is no norm of kind "grop"; on offer: none, batch, ghost, sync' in done.stderr
    assert "/data: data must be given" in done.stderr


@pytest.mark.parametrize("words", [["submit", "nowhere.json"], ["preview", "seed=1", "x"], ["ls", "--label", "course"]])
def test_unreadable_words_exit_2_with_a_sentence(normcore, words):
    done = normcore(*words)
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_preview_says_size_and_cost(normcore):
    done = normcore("preview", *FIELDS)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[:2] == ["mlp128x128 batch bs128 lr0.1 seed0", "  parameters      26,634"]
    assert json.loads(normcore("preview", *FIELDS, "--json").stdout)["num_parameters"] == 26_634


def test_ls_filters_and_limits(normcore):
    jobs = [submitted(normcore, f"seed={seed}", f"labels.half=h{seed % 2}") for seed in range(4)]
    listed = normcore("ls", "--label", "half:h1").stdout.splitlines()
    assert listed[0].split() == ["ID", "NAME", "STATE", "STEP", "train/loss", "test/accuracy", "AGE"]
    assert [line.split()[0] for line in listed[1:]] == [jobs[3]["id"], jobs[1]["id"]]
    assert [job["id"] for job in json.loads(normcore("ls", "-n", 2, "--json").stdout)] == [jobs[3]["id"], jobs[2]["id"]]
    assert json.loads(normcore("ls", "--state", "running", "--json").stdout) == []


def test_cancel(normcore):
    job = submitted(normcore)
    done = normcore("cancel", job["id"])
    assert (done.exit_code, done.stdout) == (0, f"{job['id']}  {job['name']}  cancelled\n")
    done = normcore("cancel", "01a1fc43-9e4b-7e11-8c40-d921cd3c8afe")
    assert (done.exit_code, done.stderr[:12]) == (2, "there is no ")


@pytest.mark.parametrize(
    ("event", "status"), [(Event.SUCCEEDED, 0), (Event.FAILED, 1), (Event.DIVERGED, 3), (Event.CANCELLED, 4)]
)
def test_watching_exits_by_the_final_state(normcore, worker, book, event, status):
    job = submitted(normcore)
    claim = worker.claim()
    assert book.finish(claim.token, event, None if event is Event.SUCCEEDED else Reason("why", "so"))
    assert normcore("watch", job["id"]).exit_code == status
    done = normcore("watch", job["id"], "--json")
    assert done.exit_code == status
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["type"] for line in lines[:-1]] == ["submitted", "dispatched", "claimed", event.value]
    assert lines[-1]["state"] == event.value


def test_submit_can_stay_until_the_end(normcore, worker, book):
    def work():
        while True:
            try:
                claim = worker.claim()
            except ValueError:  # not ordered yet
                continue
            assert book.finish(claim.token, Event.SUCCEEDED, None)
            return

    thread = threading.Thread(target=work)
    thread.start()
    done = normcore("submit", *FIELDS, "--watch")
    thread.join()
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == "mlp128x128 batch bs128 lr0.1 seed0: succeeded"


def test_no_laboratory_is_one_sentence(normcore, monkeypatch):
    monkeypatch.setattr("api.client.PAUSES_S", (0.0,))
    done = normcore("ls", "--api", "http://127.0.0.1:9")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("no laboratory answers at http://127.0.0.1:9 (")
    assert done.stderr.endswith("start one with `normcore up`, or say where it is with --api or NORMCORE_API_URL\n")


def test_join_without_a_laboratory_says_what_is_missing(normcore, monkeypatch, caplog):
    monkeypatch.delenv("NORMCORE_LABORATORY", raising=False)
    assert normcore("join").exit_code == 2
    assert "have a key to it: NORMCORE_LABORATORY is not set; `make machine NAME=...`" in caplog.text


def test_wrong_setting_is_one_sentence(normcore, monkeypatch):
    monkeypatch.setenv("NORMCORE_API_PORT", "eight thousand")
    settings_of_process.cache_clear()
    done = normcore("ls")
    assert done.exit_code == 2
    assert done.stderr.startswith("a NORMCORE_* setting cannot be used: api_port is 'eight thousand': Input should be")


def test_api_of_this_machine_is_found_by_its_port(normcore, server, monkeypatch):
    monkeypatch.delenv("NORMCORE_API_URL")
    monkeypatch.setenv("NORMCORE_API_PORT", server.rpartition(":")[2])
    settings_of_process.cache_clear()
    assert normcore("ls").exit_code == 0
