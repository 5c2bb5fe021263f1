"""Every norm and every weight method trains inside a VGG, ordered over HTTP as a person orders it."""

from __future__ import annotations

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


@pytest.mark.parametrize("family", ["norm", "weight"])
def test_every_part_is_in_the_catalogue_and_trains_in_a_vgg_on_digits(laboratory: Laboratory, family: str) -> None:
    client = laboratory.client
    kinds = [kind_of(spec) for spec in MENU[family]]
    assert [part.kind for part in client.catalog().families[family]] == kinds

    jobs = {kind: client.submit(SPEC | {family: small(kind), "labels": {"part": kind}}) for kind in kinds}
    ended = {kind: client.wait(job.id) for kind, job in jobs.items()}
    assert {kind: job.reason for kind, job in ended.items() if job.state is not State.SUCCEEDED} == {}
    for kind, job in ended.items():
        losses = [point.value for point in client.metrics(job.id, key="train/loss")]
        assert len(losses) == SPEC["steps"], kind
        assert all(map(isfinite, losses)), kind
        assert len(set(losses)) > 1, kind
