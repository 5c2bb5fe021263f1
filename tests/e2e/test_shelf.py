"""Every norm and every weight method trains inside a VGG, ordered over HTTP as a person orders it."""

from __future__ import annotations

from itertools import zip_longest
from math import isfinite
from typing import Any

import pytest

from normcore.spec import MENU, kind_of
from tests.e2e.conftest import Laboratory
from tests.normcore.test_menu import small
from worker.states import State

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("laboratory"), pytest.mark.timeout(600)]

SPEC: dict[str, Any] = {
    "model": {"kind": "vgg", "width": 0.0625},
    "data": {"kind": "digits"},
    "optimizer": {"kind": "sgd", "lr": 0.01},
    "batch_size": 32,
    "steps": 4,
}


def test_every_norm_and_weight_method_is_in_the_catalogue_and_trains_in_a_vgg_on_digits(laboratory: Laboratory) -> None:
    """Each job brings one norm and, as long as there are any, one weight method: a trainer's start is what a job costs.

    Other pairs are walked without a laboratory in `tests/normcore/test_walk.py`.
    """
    client = laboratory.client
    norms, weights = ([kind_of(spec) for spec in MENU[family]] for family in ("norm", "weight"))
    families = client.catalog().families
    assert [[part.kind for part in families[family]] for family in ("norm", "weight")] == [norms, weights]

    pairs = [(norm or "batch", weight or "none") for norm, weight in zip_longest(norms, weights)]
    assert ({norm for norm, _ in pairs}, {weight for _, weight in pairs}) == (set(norms), set(weights))
    jobs = {
        (norm, weight): client.submit(
            SPEC | {"norm": small(norm), "weight": small(weight), "labels": {"norm": norm, "weight": weight}}
        )
        for norm, weight in pairs
    }
    ended = {pair: client.wait(job.id) for pair, job in jobs.items()}
    assert {pair: job.reason for pair, job in ended.items() if job.state is not State.SUCCEEDED} == {}
    for pair, job in ended.items():
        losses = [point.value for point in client.metrics(job.id, key="train/loss")]
        assert len(losses) == SPEC["steps"], pair
        assert all(map(isfinite, losses)), pair
        assert len(set(losses)) > 1, pair
