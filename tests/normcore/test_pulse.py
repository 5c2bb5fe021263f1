"""Signs of life of a training."""

import pytest

from normcore.pulse import beat, heard
from normcore.records import Reading, Remark
from normcore.spec import JobSpec
from normcore.train import train

MLP = {"model": {"kind": "mlp", "hidden": [4]}, "data": {"kind": "digits", "size": 8}, "batch_size": 8, "steps": 1}
MINUTES = [
    ({"kind": "lr_range", "steps": 50}, 50),
    ({"kind": "plane", "every": 1, "points": 7}, 7 * 7),
    ({"kind": "interpolation", "points": 50}, 50),
    ({"kind": "curvature", "every": 1, "iterations": 30, "samples": 20}, 30 + 20 - 1),
    ({"kind": "landscape", "every": 1, "points": 50}, 50),
    ({"kind": "gradients", "every": 1, "batches": 50}, 49),
]
"""Probes that may be asked for long readings, and the passes of one."""


def beats(probes):
    heard_of, records = [], []
    with heard(lambda: heard_of.append(len(records))):
        records.extend(train(JobSpec.model_validate(MLP | {"probes": probes})))
    assert not any(isinstance(record, Remark) for record in records)
    assert sum(isinstance(record, Reading) for record in records) == len(probes)
    return len(heard_of)


@pytest.mark.parametrize(("probe", "passes"), MINUTES, ids=[probe["kind"] for probe, _ in MINUTES])
def test_a_long_reading_gives_a_sign_of_life_at_every_pass(probe, passes):
    assert beats([probe]) - beats([]) >= passes


def test_who_listens_within_is_heard_alone_and_nobody_after():
    outer, inner = [], []
    with heard(lambda: outer.append(1)):
        with heard(lambda: inner.append(1)):
            beat()
        assert (outer, inner) == ([], [1])
        beat()
    beat()
    assert (outer, inner) == ([1], [1])
