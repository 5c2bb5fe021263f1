"""An order of a job over two processes, carried out by a worker's trainer."""

from dataclasses import replace
from pathlib import Path

import pytest

from normcore.menu.smoothness_probes import LandscapeProbeSpec
from normcore.probes.archive import unpack
from normcore.records import Finished, Metrics, Remark
from normcore.refusal import Refusal
from normcore.spec import JobSpec
from worker.exits import Exit
from worker.training import run
from worker.wire import Alive, Kept, Made, Order, decode, encode

SPEC = JobSpec.model_validate(
    {"model": {"kind": "mlp"}, "data": {"kind": "digits", "size": 8}, "batch_size_per_device": 8, "devices": 2}
    | {"steps": 2}
)


def order(folder, devices):
    places = {"folder": str(folder / "a1"), "data_dir": str(folder), "cache_dir": str(folder)}
    return Order(SPEC.model_dump_json(), resume=None, hub=False, devices=devices, **places)


def test_a_job_of_two_devices_is_trained_and_says_whose_statistics_it_keeps(tmp_path):
    said = []
    assert run(order(tmp_path, 2), "cpu", said.append, lambda: False) is Exit.DONE
    assert {type(message) for message in said} - {Alive} == {Metrics, Remark, Kept, Finished}
    assert "statistics-of-one-device" in {message.code for message in said if isinstance(message, Remark)}


def test_a_worker_with_fewer_devices_refuses_the_job(tmp_path):
    sentence = "got devices 2 on a worker that lets a job use 1 on its CPU; .* raise the worker's NORMCORE_DEVICES"
    with pytest.raises(Refusal, match=sentence) as refused:
        run(order(tmp_path, 1), "cpu", print, lambda: False)
    assert refused.value.code == "too-few-devices"


def test_readings_that_could_not_be_drawn_are_kept_and_the_failure_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(LandscapeProbeSpec, "figure", "math:nothing")
    probe = {"kind": "landscape", "every": 1, "points": 2}
    spec = SPEC.model_dump() | {"devices": 1, "batch_size_per_device": None, "batch_size": 8, "probes": [probe]}
    said = []
    sent = replace(order(tmp_path, 1), spec=JobSpec.model_validate(spec).model_dump_json())
    assert run(sent, "cpu", said.append, lambda: False) is Exit.DONE
    (remark,) = [message for message in said if isinstance(message, Remark)]
    assert remark.code == "probe-landscape-failed"
    assert remark.detail.startswith("the probe could not draw its figure: AttributeError")
    (made,) = [message for message in said if isinstance(message, Made)]
    assert made.path == "readings/landscape.npz"
    assert [reading.step for reading in unpack(Path(made.file).read_bytes())] == [1, 2]
    assert isinstance(said[-1], Finished)


def test_it_says_that_it_lives_all_through_a_long_reading(tmp_path, monkeypatch):
    monkeypatch.setattr("worker.training.ALIVE_S", 0.0)
    one = {**SPEC.model_dump(), "devices": 1, "batch_size_per_device": None, "batch_size": 8, "steps": 1}
    spec = JobSpec.model_validate(one | {"probes": [{"kind": "lr_range", "steps": 30}]})
    said = []
    sent = replace(order(tmp_path, 1), spec=spec.model_dump_json())
    assert run(sent, "cpu", lambda message: said.append(decode(encode(message))), lambda: False) is Exit.DONE
    first = next(place for place, message in enumerate(said) if isinstance(message, Metrics))
    assert said[:first].count(Alive()) >= 30


@pytest.mark.parametrize("kept", [True, False])
def test_weights_of_another_job_that_are_gone_fail_their_probe_and_not_the_training(tmp_path, kept):
    alone = SPEC.model_dump() | {"devices": 1, "batch_size_per_device": None, "batch_size": 8}
    sent = replace(order(tmp_path, 1), spec=JobSpec.model_validate(alone).model_dump_json())
    said = []
    assert run(sent, "cpu", said.append, lambda: False) is Exit.DONE
    (last,) = [message for message in said if isinstance(message, Kept)]
    if not kept:
        (Path(last.path) / "model.safetensors").unlink()
    line = {"kind": "interpolation", "points": 3, "job": "one"}
    named = JobSpec.model_validate(alone | {"seed": 1, "probes": [line]}).model_dump_json()
    said = []
    sent = replace(sent, spec=named, folder=str(tmp_path / "a2"), others={"one": last.path})
    assert run(sent, "cpu", said.append, lambda: False) is Exit.DONE
    assert isinstance(said[-1], Finished)
    remarks = [message.detail for message in said if isinstance(message, Remark)]
    files = [message.path for message in said if isinstance(message, Made)]
    if kept:
        assert (remarks, files) == ([], ["figures/interpolation.png", "readings/interpolation.npz"])
    else:
        (remark,) = remarks
        assert "interpolation begins at the last weights of job one, got none" in remark
        assert files == []
