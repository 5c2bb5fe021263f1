"""Links into MLflow that open the classic view with the columns that matter. Pure functions; no MLflow is imported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from urllib.parse import quote

COLUMNS = (
    "metrics.`test/accuracy`",
    "metrics.`train/loss`",
    "metrics.`landscape/effective_beta_times_lr`",
    "params.`norm.kind`",
    "params.`noise.kind`",
    "params.`batch_size`",
    "params.`optimizer.lr`",
    "params.`seed`",
)
"""The runs table's columns, beside name, time and duration, in their order."""

# Without it the interface opens its view for language models.
_CLASSIC = "workflowType=machine_learning"


def shared_view() -> tuple[str, str]:
    """The experiment's tag, name and value, that holds the shared view of the runs table.

    The value is the page state of MLflow's own "share" button (MLflow 3): an internal format, so it is made here and
    nowhere else; where MLflow does not understand it, the link opens the default table.

    Example:
        >>> name, value = shared_view()
        >>> name.startswith("mlflow.sharedViewState."), json.loads(value)["selectedColumns"][0]
        (True, 'metrics.`test/accuracy`')
    """
    state = json.dumps({"selectedColumns": COLUMNS}, separators=(",", ":"))
    return f"mlflow.sharedViewState.{hashlib.sha256(state.encode()).hexdigest()}", state


def runs_link(mlflow: str, experiment_id: str, *, search: str = "") -> str:
    """The runs table, with our columns; `search` is MLflow's filter, such as `tags.study_id = "..."`."""
    return f"{_experiment(mlflow, experiment_id)}/runs?{_CLASSIC}{_search(search)}&{_view()}"


def charts_link(mlflow: str, experiment_id: str, *, search: str = "") -> str:
    """The curves of the runs, side by side."""
    return f"{_experiment(mlflow, experiment_id)}/runs?{_CLASSIC}&compareRunsMode=CHART{_search(search)}&{_view()}"


def run_link(mlflow: str, experiment_id: str, run_id: str) -> str:
    """One run: its parameters, note and tags.

    Example:
        >>> run_link("http://127.0.0.1:5000/", "1", "abc")
        'http://127.0.0.1:5000/#/experiments/1/runs/abc?workflowType=machine_learning'
    """
    return f"{_experiment(mlflow, experiment_id)}/runs/{quote(run_id, safe='')}?{_CLASSIC}"


def compare_link(mlflow: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """Some runs, compared: parallel coordinates of their parameters and metrics.

    Example:
        >>> compare_link("http://127.0.0.1:5000", "1", ["a", "b"])
        'http://127.0.0.1:5000/#/compare-runs?runs=%5B%22a%22%2C%22b%22%5D&experiments=%5B%221%22%5D&workflowType=machine_learning'
    """
    runs, experiments = (quote(json.dumps(ids, separators=(",", ":"))) for ids in (list(run_ids), [experiment_id]))
    return f"{mlflow.rstrip('/')}/#/compare-runs?runs={runs}&experiments={experiments}&{_CLASSIC}"


def artifact_link(mlflow: str, experiment_id: str, run_id: str, path: str) -> str:
    """One artifact of a run, shown in its place.

    Example:
        >>> artifact_link("http://127.0.0.1:5000", "1", "abc", "figures/landscape.png")
        'http://127.0.0.1:5000/#/experiments/1/runs/abc/artifacts/figures/landscape.png?workflowType=machine_learning'
    """
    return f"{_experiment(mlflow, experiment_id)}/runs/{quote(run_id, safe='')}/artifacts/{quote(path)}?{_CLASSIC}"


def _experiment(mlflow: str, experiment_id: str) -> str:
    return f"{mlflow.rstrip('/')}/#/experiments/{quote(experiment_id, safe='')}"


def _search(search: str) -> str:
    return f"&searchFilter={quote(search, safe='')}" if search else ""


def _view() -> str:
    return f"viewStateShareKey={shared_view()[0].rpartition('.')[2]}"
